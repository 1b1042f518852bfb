//! Any program that can POST JSON: a bearer token of the source's or of the tenant's access tokens, or
//! nothing where the engine listens on loopback.
//! Type, sender's id and subject are read from the body where the source says where they stand;
//! otherwise the id is the `Idempotency-Key` header, if there is one.

use super::{
    Access, Incoming, MaySend, Rejected, allowed, bounded, data, header, is_json, is_kind,
    media_type, sender_id,
};
use axum::http::HeaderMap;
use hooksieve_sdk::wire::{Kind, Value};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub(super) struct Pointers<'a> {
    pub(super) kind: Option<&'a str>,
    pub(super) id: Option<&'a str>,
    pub(super) subject: Option<&'a str>,
}

pub(super) fn read(
    (access, may_send): (&Access, MaySend<'_>),
    kind: &str,
    pointers: &Pointers<'_>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Incoming, Rejected> {
    let given = || {
        bearer(headers).ok_or(Rejected::Unsigned {
            header: "Authorization: Bearer",
        })
    };
    let (good, verified) = match access {
        Access::Open => (true, "json: open on loopback"),
        Access::Tokens(tokens) => {
            let given = given()?;
            // Each is compared, so that the time does not tell which it was.
            let fits = (tokens.iter()).fold(false, |fits, it| fits | same(given, it.expose()));
            (fits, "json: bearer token")
        }
        Access::AccessTokens => (may_send(given()?), "json: access token"),
    };
    if !good {
        return Err(Rejected::BadToken);
    }
    let media_type = media_type(headers);
    if !is_json(&media_type) {
        return Err(Rejected::MediaType {
            found: media_type,
            expected: "application/json",
        });
    }
    let data = data(body)?;
    let value = Value::new(data.bytes());
    let text = |pointer: Option<&str>| -> Option<String> {
        let found = value.pointer(pointer?)?;
        match found.kind() {
            Kind::Str => found.as_str().map(str::to_owned),
            Kind::Integer => match found.as_i64() {
                Some(number) => Some(number.to_string()),
                None => Some(found.as_u64()?.to_string()),
            },
            _ => None,
        }
    };
    let kind = match (pointers.kind, text(pointers.kind)) {
        (Some(_), Some(found)) if is_kind(&found) => found,
        (Some(pointer), Some(found)) => {
            return Err(Rejected::Body(format!(
                "the event type at {pointer} is {:?}; a type has letters, digits and . _ - : only",
                bounded(&found)
            )));
        }
        _ => kind.to_owned(),
    };
    let own = text(pointers.id).and_then(|id| sender_id(&id));
    Ok(Incoming {
        kind,
        sender_id: own.or_else(|| header(headers, "idempotency-key").and_then(sender_id)),
        subject: text(pointers.subject).as_deref().map(bounded),
        headers: allowed(headers, &["user-agent"]),
        data,
        verified,
    })
}

pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = header(headers, "authorization")?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

/// Compares in a time that tells nothing of either text, not even their lengths.
pub(crate) fn same(given: &str, expected: &str) -> bool {
    Sha256::digest(given)
        .ct_eq(&Sha256::digest(expected))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn never(_: &str) -> bool {
        false
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    }

    const NONE: Pointers<'static> = Pointers {
        kind: None,
        id: None,
        subject: None,
    };

    #[test]
    fn the_token_is_needed_where_one_is_set() {
        let token = Access::Tokens(vec![Secret::new("another"), Secret::new("t0ken")]);
        let read = |pairs| {
            let proof = (&token, &never as MaySend<'_>);
            read(proof, "alert", &NONE, &headers(pairs), b"{}")
        };
        assert!(
            read(&[
                ("authorization", "Bearer t0ken"),
                ("content-type", "application/json")
            ])
            .is_ok()
        );
        assert!(
            read(&[
                ("authorization", "bearer t0ken"),
                ("content-type", "application/cloudevents+json")
            ])
            .is_ok()
        );
        assert_eq!(
            read(&[("authorization", "Bearer t0kem")]),
            Err(Rejected::BadToken)
        );
        assert!(matches!(
            read(&[("authorization", "Basic t0ken")]),
            Err(Rejected::Unsigned { .. })
        ));
        assert!(matches!(read(&[]), Err(Rejected::Unsigned { .. })));
        assert!(matches!(
            read(&[
                ("authorization", "Bearer t0ken"),
                ("content-type", "text/plain")
            ]),
            Err(Rejected::MediaType { .. })
        ));
    }

    #[test]
    fn access_tokens_are_asked_for_where_the_source_takes_them() {
        let may_send = |given: &str| given == "good";
        let read = |given: &'static str| {
            let proof = (&Access::AccessTokens, &may_send as MaySend<'_>);
            let headers = headers(&[
                ("authorization", given),
                ("content-type", "application/json"),
            ]);
            read(proof, "alert", &NONE, &headers, b"{}").map(|it| it.verified)
        };
        assert_eq!(read("Bearer good"), Ok("json: access token"));
        assert_eq!(read("Bearer other"), Err(Rejected::BadToken));
        assert!(matches!(read("good"), Err(Rejected::Unsigned { .. })));
    }

    #[test]
    fn type_id_and_subject_come_from_where_the_source_says() {
        let pointers = Pointers {
            kind: Some("/kind"),
            id: Some("/n"),
            subject: Some("/host"),
        };
        let headers = headers(&[
            ("content-type", "application/json"),
            ("idempotency-key", "k"),
        ]);
        let open = (&Access::Open, &never as MaySend<'_>);
        let read = |body: &[u8]| read(open, "alert", &pointers, &headers, body);
        let incoming = read(br#"{"kind": "disk.full", "n": 7, "host": "a"}"#).unwrap();
        assert_eq!(
            (
                incoming.kind.as_str(),
                incoming.sender_id.as_deref(),
                incoming.subject.as_deref()
            ),
            ("disk.full", Some("7"), Some("a"))
        );
        let incoming = read(br#"{"kind": 1.5}"#).unwrap();
        assert_eq!(
            (
                incoming.kind.as_str(),
                incoming.sender_id.as_deref(),
                incoming.subject
            ),
            ("alert", Some("k"), None)
        );
        assert!(matches!(
            read(br#"{"kind": "a b"}"#),
            Err(Rejected::Body(_))
        ));
        assert!(matches!(read(b"{"), Err(Rejected::Body(_))));
    }

    #[test]
    fn different_ids_stay_different() {
        let pointers = Pointers {
            id: Some("/id"),
            ..NONE
        };
        let headers = headers(&[("content-type", "application/json")]);
        let open = (&Access::Open, &never as MaySend<'_>);
        let id = |id: &str| {
            let body = format!(r#"{{"id": {id}}}"#);
            let incoming = read(open, "alert", &pointers, &headers, body.as_bytes());
            incoming.unwrap().sender_id
        };
        let text = |length: usize, end: &str| format!("\"{}{end}\"", "x".repeat(length));
        assert_eq!(id(&text(255, "a")).unwrap().len(), 256);
        let long = [id(&text(256, "a")), id(&text(256, "b"))];
        assert!(
            long.iter()
                .all(|id| id.as_ref().is_some_and(|id| id.len() <= 256))
        );
        assert_ne!(long[0], long[1]);
        assert_eq!(long[0], id(&text(256, "a")));
        // An empty one says nothing.
        assert_eq!(id("\"\""), None);
        assert_eq!(id("-7").as_deref(), Some("-7"));
        let largest = u64::MAX.to_string();
        assert_eq!(id(&largest), Some(largest));
    }
}
