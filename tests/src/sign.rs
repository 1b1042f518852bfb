//! Signatures as the senders make them.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

fn hmac(secret: &str, body: &[u8]) -> Vec<u8> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of every length");
    mac.update(body);
    mac.finalize().into_bytes().to_vec()
}

/// `X-Hub-Signature-256`.
pub fn github(secret: &str, body: &[u8]) -> String {
    let digits = hmac(secret, body);
    let digits: String = digits.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

/// `X-Shopify-Hmac-Sha256`.
pub fn shopify(secret: &str, body: &[u8]) -> String {
    BASE64_STANDARD.encode(hmac(secret, body))
}
