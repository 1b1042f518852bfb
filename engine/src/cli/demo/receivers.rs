//! Who the demo delivers to: an SMTP server that keeps what it is given, and an HTTP receiver that
//! stands for a chat's incoming webhook and for a customer's own webhook.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// One mail as it came in.
#[derive(Clone)]
pub(super) struct Mail {
    pub(super) data: String,
}

/// A mail server for one purpose: it takes every mail, up to a bound, and keeps it. It speaks as much
/// of SMTP (RFC 5321) as a client needs to deliver.
pub(super) struct Mailbox {
    pub(super) addr: SocketAddr,
    mails: Arc<Mutex<Vec<Mail>>>,
}

const LINE_BYTES_MAX: usize = 64 << 10;
const MAILS_MAX: usize = 1_000;

impl Mailbox {
    pub(super) async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let mails = Arc::new(Mutex::new(Vec::new()));
        let kept = mails.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let kept = kept.clone();
                // A client that breaks off ends its own conversation only.
                tokio::spawn(async move { converse(connection, &kept).await });
            }
        });
        Ok(Self { addr, mails })
    }

    pub(super) fn received(&self) -> Vec<Mail> {
        lock(&self.mails).clone()
    }
}

async fn converse(connection: TcpStream, kept: &Mutex<Vec<Mail>>) -> std::io::Result<()> {
    let mut peer = BufReader::new(connection);
    let mut data: Option<String> = None;
    peer.write_all(b"220 demo ESMTP\r\n").await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = peer.read_until(b'\n', &mut line).await?;
        if read == 0 || line.len() > LINE_BYTES_MAX {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\r', '\n']);
        if let Some(mail) = &mut data {
            if text != "." {
                mail.push_str(text.strip_prefix('.').unwrap_or(text));
                mail.push('\n');
                continue;
            }
            let mail = Mail {
                data: std::mem::take(mail),
            };
            data = None;
            {
                let mut kept = lock(kept);
                if kept.len() < MAILS_MAX {
                    kept.push(mail);
                }
            }
            peer.write_all(b"250 kept\r\n").await?;
            continue;
        }
        let verb = text
            .split([' ', ':'])
            .next()
            .unwrap_or("")
            .to_ascii_uppercase();
        let answer: &[u8] = match verb.as_str() {
            "EHLO" => b"250-demo\r\n250 8BITMIME\r\n",
            "HELO" | "MAIL" | "RCPT" | "RSET" | "NOOP" => b"250 ok\r\n",
            "DATA" => {
                data = Some(String::new());
                b"354 go on, end with a dot\r\n"
            }
            "QUIT" => {
                peer.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            _ => b"502 not here\r\n",
        };
        peer.write_all(answer).await?;
    }
}

/// The receiver of chat messages and webhooks.
pub(super) struct Posts {
    pub(super) addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    key: Vec<u8>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    chat: Vec<Value>,
    hooks: Vec<Value>,
    badly_signed: usize,
}

impl Posts {
    /// `key` is what webhooks must be signed with.
    pub(super) async fn start(key: Vec<u8>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            key,
            kept: Mutex::default(),
        });
        let app = Router::new()
            .route("/services/{*path}", post(chat))
            .route("/hook", post(hook))
            .with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { addr, shared })
    }

    pub(super) fn chat(&self) -> Vec<Value> {
        lock(&self.shared.kept).chat.clone()
    }

    pub(super) fn hooks(&self) -> Vec<Value> {
        lock(&self.shared.kept).hooks.clone()
    }

    pub(super) fn badly_signed(&self) -> usize {
        lock(&self.shared.kept).badly_signed
    }
}

/// An incoming webhook of a chat answers `ok`.
async fn chat(State(shared): State<Arc<Shared>>, Json(message): Json<Value>) -> &'static str {
    lock(&shared.kept).chat.push(message);
    "ok"
}

async fn hook(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let signed = signature_fits(&shared.key, &headers, &body);
    let mut kept = lock(&shared.kept);
    if !signed {
        kept.badly_signed += 1;
        return StatusCode::UNAUTHORIZED;
    }
    kept.hooks
        .push(serde_json::from_slice(&body).unwrap_or_default());
    StatusCode::NO_CONTENT
}

/// As the Standard Webhooks specification says: HMAC-SHA256 over id, time and body.
fn signature_fits(key: &[u8], headers: &HeaderMap, body: &[u8]) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(id), Some(time), Some(given)) = (
        text("webhook-id"),
        text("webhook-timestamp"),
        text("webhook-signature"),
    ) else {
        return false;
    };
    let Some(signature) = given
        .strip_prefix("v1,")
        .and_then(|s| BASE64_STANDARD.decode(s).ok())
    else {
        return false;
    };
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(format!("{id}.{time}.").as_bytes());
            mac.update(body);
            mac.verify_slice(&signature).is_ok()
        }
        Err(_) => false,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
