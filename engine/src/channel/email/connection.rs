//! A connection to a mail server: one command, one reply.
//!
//! Guarantees:
//! - A reply counts by its code and by nothing else ("only the reply code", RFC 5321, section 4.2): its
//!   text may be empty, in any encoding, without a code on some of its lines, and end its lines as it
//!   likes. lettre's own client takes such a reply for a broken connection, and a mail that was taken is
//!   sent again.
//! - One reply is read to a cap.
//! - What the server says without being asked counts for nothing: a connection on which it does is not
//!   used again, and TLS does not begin on it, as a stranger may have put it there.

use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

/// One reply: many times the longest that there are.
const REPLY_BYTES_MAX: usize = 64 * 1024;
const PIECE_BYTES: usize = 4 * 1024;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    /// What was read and belongs to no reply yet.
    read: Vec<u8>,
}

/// What a server replied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    /// What stood after the code, line by line.
    pub(super) lines: Vec<String>,
}

/// Why there is no reply. The connection is of no use after it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it was closed before the reply")]
    Closed,
    #[error("it said {0:?}, and no code with it")]
    NoCode(String),
    #[error("it said more than {} bytes at once", REPLY_BYTES_MAX)]
    TooLong,
    #[error("it spoke without being asked")]
    Unasked,
}

impl Connection {
    pub(super) fn new(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            read: Vec::new(),
        }
    }

    /// Sends one line and reads the reply to it.
    pub(super) async fn command(&mut self, line: &str) -> Result<Reply, Error> {
        // Addresses and names were checked; none of them ends a line.
        debug_assert!(!line.contains(['\r', '\n']));
        if !self.is_quiet() {
            return Err(Error::Unasked);
        }
        self.stream
            .write_all(format!("{line}\r\n").as_bytes())
            .await?;
        self.stream.flush().await?;
        self.reply().await
    }

    /// Sends a message, whose lines end with CR and LF, and reads the reply to it.
    pub(super) async fn message(&mut self, source: &[u8]) -> Result<Reply, Error> {
        let mut out = Vec::with_capacity(source.len() + source.len() / 64 + 5);
        for line in source.split_inclusive(|byte| *byte == b'\n') {
            // RFC 5321, section 4.5.2.
            if line.starts_with(b".") {
                out.push(b'.');
            }
            out.extend_from_slice(line);
        }
        if !out.ends_with(b"\r\n") {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;
        self.reply().await
    }

    /// Reads one reply; the greeting is one to nothing.
    pub(super) async fn reply(&mut self) -> Result<Reply, Error> {
        let mut reply: Option<Reply> = None;
        let mut uncoded = Vec::new();
        let mut long = 0;
        loop {
            let (line, closed) = match self.line(REPLY_BYTES_MAX - long).await? {
                Some(line) => (line, false),
                // A line that breaks off may have said its code all the same.
                None => (std::mem::take(&mut self.read), true),
            };
            long += line.len();
            match coded(&line) {
                Some((code, last, text)) => {
                    let so_far = reply.get_or_insert_with(|| Reply {
                        code,
                        lines: Vec::new(),
                    });
                    so_far.code = code;
                    so_far.lines.push(text);
                    if last && !closed {
                        break;
                    }
                }
                None if line.trim_ascii().is_empty() => {}
                None => uncoded = line,
            }
            if closed {
                break;
            }
        }
        match reply {
            Some(reply) => Ok(reply),
            None if uncoded.is_empty() => Err(Error::Closed),
            None => Err(Error::NoCode(
                String::from_utf8_lossy(&uncoded).trim_end().into(),
            )),
        }
    }

    /// Whether it said nothing but its replies.
    pub(super) fn is_quiet(&self) -> bool {
        self.read.is_empty()
    }

    /// Goes on in TLS.
    pub(super) async fn encrypt(
        self,
        config: Arc<rustls::ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, Error> {
        if !self.is_quiet() {
            return Err(Error::Unasked);
        }
        let stream = TlsConnector::from(config)
            .connect(name, self.stream)
            .await?;
        Ok(Self::new(stream))
    }

    /// The next line with its end, or `None` where the connection was closed before that.
    async fn line(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, Error> {
        let mut searched = 0;
        loop {
            let found = self.read[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(at) = found {
                let end = searched + at + 1;
                if end > bytes_max {
                    return Err(Error::TooLong);
                }
                let rest = self.read.split_off(end);
                return Ok(Some(std::mem::replace(&mut self.read, rest)));
            }
            searched = self.read.len();
            if searched >= bytes_max {
                return Err(Error::TooLong);
            }
            let mut piece = [0; PIECE_BYTES];
            match self.stream.read(&mut piece).await? {
                0 => return Ok(None),
                long => self.read.extend_from_slice(&piece[..long]),
            }
        }
    }
}

/// The code of a line, whether it is its reply's last, and what it says.
fn coded(line: &[u8]) -> Option<(u16, bool, String)> {
    let (code, rest) = line.split_at_checked(3)?;
    let is_code = matches!(code[0], b'2'..=b'5') && code.iter().all(u8::is_ascii_digit);
    if !is_code || rest.first().is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let code = str::from_utf8(code).ok()?.parse().ok()?;
    let last = rest.first() != Some(&b'-');
    let text = String::from_utf8_lossy(match rest {
        [b'-' | b' ' | b'\t', text @ ..] => text,
        text => text,
    });
    Some((code, last, text.trim().to_owned()))
}

impl Reply {
    /// It did what it was asked.
    pub(super) fn is_good(&self) -> bool {
        self.code / 100 == 2
    }

    /// It will not, now or ever.
    pub(super) fn is_final(&self) -> bool {
        self.code / 100 == 5
    }

    /// All of the text, in which a code that each line begins with (RFC 2034) stands once.
    pub(super) fn text(&self) -> String {
        let mut lines = self.lines.iter().filter(|line| !line.is_empty());
        let mut text = lines.next().cloned().unwrap_or_default();
        let first = text.split(' ').next().unwrap_or_default().to_owned();
        let fits = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        let repeated = first.contains('.') && first.bytes().all(fits);
        for line in lines {
            let again = line.strip_prefix(&first).filter(|_| repeated);
            let rest = again.and_then(|rest| rest.strip_prefix(' '));
            text.push(' ');
            text.push_str(rest.unwrap_or(line));
        }
        text
    }

    /// What follows a keyword of an extension, where the server has it (RFC 5321, section 4.1.1.1).
    pub(super) fn extension(&self, keyword: &str) -> Option<Vec<String>> {
        self.lines.iter().skip(1).find_map(|line| {
            // "AUTH=LOGIN" is how it was written once.
            let mut words = line.split([' ', '=']).filter(|word| !word.is_empty());
            let said = words.next()?;
            let words = words.map(str::to_ascii_uppercase);
            said.eq_ignore_ascii_case(keyword).then(|| words.collect())
        })
    }
}

/// The code and the text, in as far as there is one.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = crate::channel::text::one_line(&self.text(), super::REPLY_CHARS_MAX);
        match text.is_empty() {
            true => write!(f, "{}", self.code),
            false => write!(f, "{} {text}", self.code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn replies(said: &[u8], count: usize) -> Vec<Result<Reply, String>> {
        let (mut server, client) = tokio::io::duplex(1 << 20);
        server.write_all(said).await.unwrap();
        drop(server);
        let mut connection = Connection::new(client);
        let mut replies = Vec::new();
        for _ in 0..count {
            let reply = connection.reply().await;
            replies.push(reply.map_err(|error| error.to_string()));
        }
        replies
    }

    #[tokio::test]
    async fn a_clear_code_is_a_reply() {
        for (said, code, text) in [
            (&b"250\r\n"[..], 250, ""),
            (b"250 ok\r\n", 250, "ok"),
            (b"250-a\r\n250-\r\n250 b\n", 250, "a b"),
            (
                b"550-5.1.1 no such\r\n550 5.1.1 user\r\n",
                550,
                "5.1.1 no such user",
            ),
            (b"550-5.1 a\r\n550 5.12 b\r\n", 550, "5.1 a 5.12 b"),
            (b"250-a\r\n550 b\r\n", 550, "a b"),
            (b"hello\r\n220 \xe4\r\n", 220, "\u{fffd}"),
            (b"250\0ok\r\n", 250, "\0ok"),
            (b"354go\r\n", 354, "go"),
            // It breaks off, and the code has been said.
            (b"250 o", 250, "o"),
            (b"250-o\r\n", 250, "o"),
        ] {
            let reply = replies(said, 1).await.remove(0).unwrap();
            assert_eq!((reply.code, &*reply.text()), (code, text), "{said:?}");
        }
    }

    #[tokio::test]
    async fn what_has_no_code_is_no_reply() {
        let closed = "it was closed before the reply";
        for (said, error) in [
            (&b""[..], closed),
            (b"\r\n", closed),
            (b"25", "it said \"25\", and no code with it"),
            (b"2500 ok\r\n", "it said \"2500 ok\", and no code with it"),
            (
                b"HTTP/1.1 400\r\n",
                "it said \"HTTP/1.1 400\", and no code with it",
            ),
            (b"150 ok\r\n", "it said \"150 ok\", and no code with it"),
        ] {
            assert_eq!(replies(said, 1).await, [Err(error.to_owned())], "{said:?}");
        }
        let too_long = "it said more than 65536 bytes at once";
        for said in [
            "x".repeat(70_000),
            "250-x\r\n".repeat(10_000),
            "x\r\n".repeat(30_000),
        ] {
            assert_eq!(
                replies(said.as_bytes(), 1).await,
                [Err(too_long.to_owned())]
            );
        }
    }

    #[tokio::test]
    async fn nothing_is_said_over_what_nobody_asked_for() {
        let (mut server, client) = tokio::io::duplex(1 << 10);
        server
            .write_all(b"220 hello\r\n220 and more\r\n")
            .await
            .unwrap();
        let mut connection = Connection::new(client);
        assert_eq!(connection.reply().await.unwrap().code, 220);
        assert!(!connection.is_quiet());
        let error = connection.command("NOOP").await.unwrap_err();
        assert_eq!(error.to_string(), "it spoke without being asked");
    }

    #[test]
    fn extensions_are_told_by_their_keywords() {
        let lines = [
            "test",
            "8BITMIME",
            "auth PLAIN login",
            "AUTH=CRAM-MD5",
            "STARTTLS",
        ];
        let reply = Reply {
            code: 250,
            lines: lines.map(str::to_owned).into(),
        };
        assert_eq!(reply.extension("STARTTLS"), Some(Vec::new()));
        assert_eq!(reply.extension("SIZE"), None);
        let auth = ["PLAIN", "LOGIN"].map(str::to_owned);
        assert_eq!(reply.extension("AUTH"), Some(auth.into()));
        assert_eq!(reply.extension("test"), None);
    }
}
