//! Events of the engine's own, by which a tenant learns what became of its rules and channels. They take
//! the way of every event: whoever wants them has a rule that subscribes to `hooksieve.*`.

use crate::id::{Hash, Name};
use crate::store::NewEvent;
use hooksieve_sdk::wire::json::Data;

/// Where they come from: no source of a tenant's has this name.
pub(crate) const SOURCE: &str = "hooksieve";

/// Whether a type is of such an event. No sender's is, or any of them could say that a rule has failed.
pub(crate) fn is_own(kind: &str) -> bool {
    kind.split('.').next() == Some(SOURCE)
}

/// An event of type `kind` about `subject`.
pub(crate) fn event(
    tenant: &Name,
    kind: &str,
    subject: &Name,
    body: &serde_json::Value,
    at_ms: i64,
) -> Result<NewEvent, String> {
    let body = body.to_string();
    Ok(NewEvent {
        tenant: tenant.clone(),
        source: SOURCE.parse().map_err(|_| "no name".to_owned())?,
        kind: kind.to_owned(),
        subject: Some(subject.to_string()),
        time: crate::ingest::time(at_ms),
        headers: Vec::new(),
        data: Data::from_json(body.as_bytes()).map_err(|error| error.to_string())?,
        sender_id: None,
        body_hash: Hash::of(body.as_bytes()),
        verified: "the engine's own".to_owned(),
        received_ms: at_ms,
    })
}
