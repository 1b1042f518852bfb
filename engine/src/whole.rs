//! Where JSON and serde differ: for JSON Schema `3.0` is a whole number, and a list is no object.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, Unexpected, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::marker::PhantomData;

/// Up to here a float tells whole numbers apart.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// A number that is whole, however it is written, or nothing.
pub(crate) fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    from.deserialize_any(Whole(PhantomData))
}

/// The same where there has to be one.
pub(crate) fn one_whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    from: D,
) -> Result<T, D::Error> {
    let found = whole(from)?;
    found.ok_or_else(|| D::Error::invalid_type(Unexpected::Unit, &"a whole number"))
}

/// What consists of named fields, and not of the same ones in a row.
pub(crate) fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    from: D,
) -> Result<T, D::Error> {
    let fields = Map::deserialize(from)?;
    T::deserialize(Value::Object(fields)).map_err(D::Error::custom)
}

struct Whole<T>(PhantomData<T>);

impl<T: TryFrom<u64>> Visitor<'_> for Whole<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = size_of::<T>() * 8;
        write!(f, "a whole number from 0 on, of at most {bits} bits")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        let fits = T::try_from(number).map(Some);
        fits.map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        if number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number) {
            self.visit_u64(number as u64)
        } else {
            Err(E::invalid_value(Unexpected::Float(number), &self))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Settings {
        #[serde(default, deserialize_with = "whole")]
        size: Option<u32>,
        #[serde(deserialize_with = "one_whole")]
        version: u64,
        #[serde(default, deserialize_with = "object")]
        inner: Inner,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    struct Inner {
        name: Option<String>,
    }

    #[test]
    fn whole_numbers_are_taken_as_they_are_written_and_nothing_else() {
        let read = |value: Value| serde_json::from_value::<Settings>(value);
        let given = read(json!({ "size": 3.0, "version": 4, "inner": { "name": "a" } })).unwrap();
        let name = Some("a".to_owned());
        let inner = Inner { name };
        assert_eq!(
            given,
            Settings {
                size: Some(3),
                version: 4,
                inner
            }
        );
        assert_eq!(
            read(json!({ "size": null, "version": 1e3 }))
                .unwrap()
                .version,
            1_000
        );
        let wrong = [
            (json!({ "version": 0.5 }), "floating point `0.5`"),
            (json!({ "version": -1 }), "integer `-1`"),
            (json!({ "version": 1e300 }), "floating point"),
            (json!({ "version": "1" }), "string \"1\""),
            (json!({ "version": null }), "null"),
            (
                json!({ "version": 1, "size": 4_294_967_296_u64 }),
                "at most 32 bits",
            ),
            (json!({ "version": 1, "inner": [null] }), "expected a map"),
        ];
        for (value, part) in wrong {
            let error = read(value.clone()).unwrap_err().to_string();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
