//! What people set up while the engine runs.

use super::writer::Command;
use super::{SledStore, keys};
use crate::store::{Changes, Error, Records};
use async_trait::async_trait;
use serde_bytes::ByteBuf;
use std::ops::Bound;

#[async_trait]
impl Records for SledStore {
    async fn record(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let key = keys::record(key);
        let found = self.read(move |shared| shared.row::<ByteBuf>(&key)).await?;
        Ok(found.map(ByteBuf::into_vec))
    }

    async fn records(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let prefix = keys::record(prefix);
        self.read(move |shared| {
            // No byte of UTF-8 is this one.
            let mut end = prefix.clone();
            end.push(0xff);
            let rows = shared.range(Bound::Included(prefix), end);
            rows.map(|row| {
                let (key, value) = row?;
                let name = std::str::from_utf8(&key[1..]);
                let name = name.map_err(|error| shared.bad_row(&key, error))?;
                let value = shared.decode::<ByteBuf>(&key, &value)?;
                Ok((name.to_owned(), value.into_vec()))
            })
            .collect()
        })
        .await
    }

    async fn set_records(&self, changes: Changes) -> Result<(), Error> {
        self.write(|answer| Command::SetRecords { changes, answer })
            .await
    }
}
