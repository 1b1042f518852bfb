//! Shopify: `X-Shopify-Hmac-Sha256` is the HMAC-SHA256 of the body in base64. The event's name is
//! the topic, `orders/create`; its id is `X-Shopify-Webhook-Id`, the same when a delivery is
//! repeated. (Shopify's documentation, "Verify webhook deliveries".)

use super::{
    Incoming, Rejected, Secret, allowed, bounded, data, header, hmac_fits, is_json, is_kind,
    media_type, sender_id,
};
use axum::http::HeaderMap;
use base64::prelude::{BASE64_STANDARD, Engine as _};

const SIGNATURE: &str = "X-Shopify-Hmac-Sha256";

const HEADERS: [&str; 6] = [
    "x-shopify-topic",
    "x-shopify-shop-domain",
    "x-shopify-webhook-id",
    "x-shopify-event-id",
    "x-shopify-api-version",
    "x-shopify-triggered-at",
];

pub(super) fn read(
    secrets: &[Secret],
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Incoming, Rejected> {
    let Some(signature) = header(headers, SIGNATURE) else {
        return Err(Rejected::Unsigned { header: SIGNATURE });
    };
    let bytes = BASE64_STANDARD.decode(signature).ok();
    if !bytes.is_some_and(|bytes| hmac_fits(secrets, body, &bytes)) {
        return Err(Rejected::BadSignature { header: SIGNATURE });
    }
    let media_type = media_type(headers);
    if !is_json(&media_type) {
        return Err(Rejected::MediaType {
            found: media_type,
            expected: "application/json",
        });
    }
    let topic = header(headers, "x-shopify-topic").unwrap_or("");
    let kind = topic.replace('/', ".");
    if !is_kind(&kind) {
        return Err(Rejected::Body(
            "the X-Shopify-Topic header names no topic".to_owned(),
        ));
    }
    Ok(Incoming {
        kind,
        subject: header(headers, "x-shopify-shop-domain").map(bounded),
        sender_id: header(headers, "x-shopify-webhook-id").and_then(sender_id),
        headers: allowed(headers, &HEADERS),
        data: data(body)?,
        verified: "shopify: HMAC-SHA256 of the body",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::Sha256;

    #[test]
    fn a_topic_becomes_a_type_and_a_changed_body_is_refused() {
        let secrets = [Secret::new("shpss_new"), Secret::new("shpss_0123")];
        let body = br#"{"id": 1}"#;
        let mut mac = Hmac::<Sha256>::new_from_slice(b"shpss_0123").unwrap();
        mac.update(body);
        let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-shopify-hmac-sha256", signature.as_str()),
            ("content-type", "application/json"),
            ("x-shopify-topic", "orders/create"),
            ("x-shopify-webhook-id", "w-1"),
            ("x-shopify-shop-domain", "a.example"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let incoming = read(&secrets, &headers, body).unwrap();
        assert_eq!(incoming.kind, "orders.create");
        assert_eq!(incoming.sender_id.as_deref(), Some("w-1"));
        assert_eq!(incoming.subject.as_deref(), Some("a.example"));
        let bad = Rejected::BadSignature { header: SIGNATURE };
        assert_eq!(read(&secrets, &headers, br#"{"id": 2}"#), Err(bad));
    }
}
