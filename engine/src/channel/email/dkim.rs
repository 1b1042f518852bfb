//! DKIM signatures (RFC 6376), so that a receiving server can tell who answers for a message.
//!
//! Signed are the body and every header that a reader sees or acts on, those of RFC 8058 among them,
//! in relaxed form, which survives the servers on the way. The signature carries the time of its
//! attempt; otherwise it is the same at every try.

use super::HEADERS_OF_LISTS;
use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lettre::message::dkim::{
    DkimCanonicalization, DkimCanonicalizationType, DkimConfig, DkimSigningAlgorithm,
    DkimSigningKey,
};
use lettre::message::header::HeaderName;
use std::ops::RangeInclusive;

/// Keys of 1,024 bits, which RFC 8301 asks for at least, to 4,096 bits, which a signature takes tens
/// of milliseconds with, as PKCS#1 writes them.
const RSA_BYTES: RangeInclusive<usize> = 600..=2_400;
/// How long a domain may be (RFC 1035, section 2.3.4); a selector is part of one.
const DOMAIN_CHARS_MAX: usize = 253;

const HEADERS: [&str; 8] = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Reply-To",
    "Auto-Submitted",
    "MIME-Version",
];

/// What a tenant file says of a signature.
pub struct Settings {
    /// Who answers for the message.
    pub domain: String,
    /// Where the key is: the record `<selector>._domainkey.<domain>`.
    pub selector: String,
    /// An RSA key as PEM (PKCS#1), or an Ed25519 key: its 32 bytes in Base64.
    pub key: Secret,
}

/// Checks the settings. No error holds the key.
pub(super) fn config(settings: &Settings) -> Result<DkimConfig, String> {
    for (what, name) in [
        ("domain", &settings.domain),
        ("selector", &settings.selector),
    ] {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if name.is_empty() || name.len() > DOMAIN_CHARS_MAX || !name.bytes().all(fits) {
            return Err(format!("{name:?} is not a dkim {what}"));
        }
    }
    let headers = HEADERS.into_iter().chain(HEADERS_OF_LISTS);
    Ok(DkimConfig::new(
        settings.selector.clone(),
        settings.domain.clone(),
        key(settings.key.expose())?,
        headers.map(HeaderName::new_from_ascii_str).collect(),
        DkimCanonicalization {
            header: DkimCanonicalizationType::Relaxed,
            body: DkimCanonicalizationType::Relaxed,
        },
    ))
}

fn key(text: &str) -> Result<DkimSigningKey, String> {
    let text = text.trim();
    if !text.starts_with("-----BEGIN") {
        return DkimSigningKey::new(text, DkimSigningAlgorithm::Ed25519).map_err(|_| {
            "the dkim key is neither PEM nor the 32 bytes of an Ed25519 key in Base64".into()
        });
    }
    if !text.starts_with("-----BEGIN RSA PRIVATE KEY-----") {
        return Err(
            "the dkim key is PEM of another kind than RSA PRIVATE KEY; `openssl rsa -traditional` makes that of an RSA key"
                .into(),
        );
    }
    let inner: String = text.lines().filter(|line| !line.contains('-')).collect();
    let bytes = BASE64.decode(inner.replace(char::is_whitespace, ""));
    let read = bytes.ok().filter(|bytes| RSA_BYTES.contains(&bytes.len()));
    let key = read.and_then(|_| DkimSigningKey::new(text, DkimSigningAlgorithm::Rsa).ok());
    key.ok_or_else(|| "the dkim key is not an RSA key of 1024 to 4096 bits".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let seed = BASE64.encode([7; 32]);
        let refused = |domain: &str, selector: &str, key: &str| {
            config(&Settings {
                domain: domain.into(),
                selector: selector.into(),
                key: Secret::new(key),
            })
            .err()
        };
        assert_eq!(refused("example.com", "s1", &seed), None);
        let neither = "the dkim key is neither PEM nor the 32 bytes of an Ed25519 key in Base64";
        let short = BASE64.encode([7; 31]);
        let pem = |kind: &str, inner: &str| {
            format!("-----BEGIN {kind}-----\n{inner}\n-----END {kind}-----\n")
        };
        let broken = BASE64.encode([7; 1_200]);
        for (domain, selector, key, error) in [
            ("", "s1", &seed, "\"\" is not a dkim domain"),
            ("a; b=c", "s1", &seed, "\"a; b=c\" is not a dkim domain"),
            (
                "example.com",
                "s 1",
                &seed,
                "\"s 1\" is not a dkim selector",
            ),
            ("example.com", "s1", &"hidden".to_owned(), neither),
            ("example.com", "s1", &short, neither),
            (
                "example.com",
                "s1",
                &pem("PRIVATE KEY", &broken),
                "the dkim key is PEM of another kind than RSA PRIVATE KEY; `openssl rsa -traditional` makes that of an RSA key",
            ),
            (
                "example.com",
                "s1",
                &pem("RSA PRIVATE KEY", &broken),
                "the dkim key is not an RSA key of 1024 to 4096 bits",
            ),
            (
                "example.com",
                "s1",
                &pem("RSA PRIVATE KEY", &seed),
                "the dkim key is not an RSA key of 1024 to 4096 bits",
            ),
        ] {
            assert_eq!(refused(domain, selector, key).as_deref(), Some(error));
        }
    }
}
