//! Events for a rule's native tests, and a look at them: no wasm needed.

use crate::wire::{Event, EventHead, SkipIndex, json::Data};

/// An event that a test owns.
#[derive(Clone, Debug)]
pub struct Recorded {
    encoded: Vec<u8>,
    index: Vec<u8>,
}

/// An event of this type with this JSON payload, from a source called `test`.
///
/// # Panics
/// When the payload is not JSON.
pub fn event(kind: &str, json: impl AsRef<[u8]>) -> Recorded {
    let data = match Data::from_json(json.as_ref()) {
        Ok(data) => data,
        Err(error) => panic!("the test event's payload: {error}"),
    };
    let (encoded, index) = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "test",
        kind,
        subject: None,
        time: "2026-01-01T00:00:00Z",
        headers: &[],
    }
    .encode(&data);
    Recorded { encoded, index }
}

impl Recorded {
    /// The event, as a rule gets it.
    pub fn event(&self) -> Event<'_> {
        match Event::decode(&self.encoded, SkipIndex::new(&self.index)) {
            Ok(event) => event,
            Err(error) => unreachable!("an event that was just encoded: {error}"),
        }
    }
}

/// A configuration from JSON, for a rule that reads its [`Settings`](crate::Settings) by path. It
/// lives as long as the test's process, as a rule's lives as long as its instance.
///
/// ```
/// let settings = hooksieve_sdk::testing::settings(r#"{"channel": "mail"}"#);
/// assert_eq!(settings.str("/channel"), Some("mail"));
/// ```
///
/// # Panics
/// When it is not JSON.
pub fn settings(json: impl AsRef<[u8]>) -> crate::Settings {
    match config(json) {
        Ok(settings) => settings,
        Err(error) => unreachable!("settings read by path take every value: {error}"),
    }
}

/// A rule's configuration from JSON, as the rule is given it before the first event.
///
/// ```
/// #[derive(Debug, serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Config {
///     channel: String,
/// }
///
/// let config = hooksieve_sdk::testing::config::<Config>(r#"{"chanel": "mail"}"#);
/// assert!(config.unwrap_err().message().contains("chanel"));
/// ```
///
/// # Errors
/// When it does not fit: what the engine tells who set it.
///
/// # Panics
/// When it is not JSON.
pub fn config<C: crate::FromConfig>(json: impl AsRef<[u8]>) -> Result<C, crate::Error> {
    let data = match Data::from_json(json.as_ref()) {
        Ok(data) => data,
        Err(error) => panic!("the test's configuration: {error}"),
    };
    let bytes: &'static [u8] = data.bytes().to_vec().leak();
    C::from_config(crate::Value::new(bytes))
}
