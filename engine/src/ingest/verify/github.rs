//! GitHub: `X-Hub-Signature-256` is `sha256=` and the HMAC-SHA256 of the body in hexadecimal, also
//! where the hook is set to form encoding, which wraps the JSON as the field `payload`. The event's
//! name is `X-GitHub-Event`, its id `X-GitHub-Delivery`. (GitHub's documentation, "Validating
//! webhook deliveries" and "Webhook events and payloads".)

use super::{
    Incoming, Rejected, Secret, allowed, bounded, data, header, hmac_fits, is_json, is_kind,
    media_type, sender_id, with_action,
};
use axum::http::HeaderMap;
use hooksieve_sdk::wire::Value;
use hooksieve_sdk::wire::json::Data;

const SIGNATURE: &str = "X-Hub-Signature-256";

const HEADERS: [&str; 5] = [
    "x-github-event",
    "x-github-delivery",
    "x-github-hook-id",
    "x-github-hook-installation-target-type",
    "x-github-hook-installation-target-id",
];

pub(super) fn read(
    secrets: &[Secret],
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Incoming, Rejected> {
    let Some(signature) = header(headers, SIGNATURE) else {
        return Err(Rejected::Unsigned { header: SIGNATURE });
    };
    let bytes = signature.strip_prefix("sha256=").and_then(from_hex);
    if !bytes.is_some_and(|bytes| hmac_fits(secrets, body, &bytes)) {
        return Err(Rejected::BadSignature { header: SIGNATURE });
    }
    let media_type = media_type(headers);
    let data = if is_json(&media_type) {
        data(body)?
    } else if media_type == "application/x-www-form-urlencoded" {
        let mut fields = url::form_urlencoded::parse(body);
        match fields.find(|(name, _)| name == "payload") {
            Some((_, json)) => data(json.as_bytes())?,
            None => return Err(Rejected::Body("the form has no field `payload`".to_owned())),
        }
    } else {
        return Err(Rejected::MediaType {
            found: media_type,
            expected: "application/json or application/x-www-form-urlencoded",
        });
    };
    let Some(name) = header(headers, "x-github-event").filter(|name| is_kind(name)) else {
        return Err(Rejected::Body(
            "the X-GitHub-Event header names no event".to_owned(),
        ));
    };
    Ok(Incoming {
        kind: with_action(name, &data),
        subject: subject(&data),
        sender_id: header(headers, "x-github-delivery").and_then(sender_id),
        headers: allowed(headers, &HEADERS),
        verified: "github: HMAC-SHA256 of the body",
        data,
    })
}

/// The repository it is about, or the organisation.
pub(super) fn subject(data: &Data) -> Option<String> {
    let body = Value::new(data.bytes());
    let subject = body
        .str("/repository/full_name")
        .or(body.str("/organization/login"));
    subject.map(bounded)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let pairs = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok());
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The test values of GitHub's documentation of validating deliveries.
    const SECRET: &str = "It's a Secret to Everybody";
    const SIGNED: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn headers(extra: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-hub-signature-256", SIGNED),
            ("content-type", "application/json"),
            ("x-github-event", "push"),
        ]
        .iter()
        .chain(extra)
        {
            headers.insert(*name, value.parse().unwrap());
        }
        headers
    }

    fn read(headers: &HeaderMap, body: &str) -> Result<Incoming, Rejected> {
        super::read(
            &[Secret::new("another"), Secret::new(SECRET)],
            headers,
            body.as_bytes(),
        )
    }

    #[test]
    fn the_documented_signature_is_taken_and_any_other_refused() {
        // The documented body is not JSON, so a signature that fits is told from one that does not
        // by what is complained about.
        assert!(matches!(
            read(&headers(&[]), "Hello, World!"),
            Err(Rejected::Body(_))
        ));
        let bad = Rejected::BadSignature { header: SIGNATURE };
        assert_eq!(read(&headers(&[]), "Hello, World?"), Err(bad.clone()));
        for signature in [
            "",
            "sha256=",
            "sha256=zz",
            "757107ea",
            "sha1=757107ea0eb2509fc211221cce984b8a37570b6d",
        ] {
            assert_eq!(
                read(
                    &headers(&[("x-hub-signature-256", signature)]),
                    "Hello, World!"
                ),
                Err(bad.clone())
            );
        }
        assert_eq!(
            read(&HeaderMap::new(), "{}"),
            Err(Rejected::Unsigned { header: SIGNATURE })
        );
    }

    #[test]
    fn signatures_and_cookies_never_reach_a_rule() {
        let headers = headers(&[
            ("cookie", "a=b"),
            ("authorization", "Bearer x"),
            ("x-github-delivery", "1"),
        ]);
        let names: Vec<_> = allowed(&headers, &HEADERS)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["x-github-event", "x-github-delivery"]);
    }
}
