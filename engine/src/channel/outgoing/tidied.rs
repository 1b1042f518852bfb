//! A receiver's answers, tidied before the HTTP client reads them: what is clear counts, however odd
//! what stands around it.
//!
//! Guarantees:
//! - A status line that is clear is the answer's status, whatever the headers after it are: a space
//!   before a colon, a line without one, folded lines, thousands of them. Of such a head the status and
//!   the headers that are read here are left, and `connection: close`: where one message ends and the
//!   next begins is then a matter of opinion, so the connection is never used again.
//! - What comes before the answer itself (`100 Continue`, `103 Early Hints`) is read away, and is
//!   bounded in number and in bytes.
//! - A plain answer passes byte by byte as it is, and so does every body.
//!
//! The client (hyper) can be told to be lenient about some of this, but then it does not say that it was,
//! and it reads what comes before an answer for as long as it comes.
//!
//! What it does not do: read a body, or make an answer of what has no clear status.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// All that may come up to the end of an answer's headers.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How many times a receiver may say that an answer is to come.
const INFORMATIONAL_MAX: usize = 16;
/// Headers of a plain answer; one with more is tidied.
const HEADERS_MAX: usize = 100;
/// What is read at once while there is no whole head.
const PIECE_BYTES: usize = 8 * 1024;
/// What is left of an odd head. The first two say where the body ends.
const HEADERS_LEFT: [&str; 3] = ["content-length", "transfer-encoding", "retry-after"];
/// How requests begin.
const METHODS: [&[u8]; 6] = [b"GET ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"HEAD "];

/// A connection whose answers are tidied.
pub(super) struct Tidied<S> {
    stream: S,
    stage: Stage,
}

enum Stage {
    /// A request is on its way or to come: what is read begins an answer.
    Head(Head),
    /// This is to be handed on, then what comes is a body.
    Tidy { bytes: Vec<u8>, given: usize },
    /// Until the next request begins.
    Body,
}

/// What came so far of the headers.
#[derive(Default)]
struct Head {
    /// Of the answer that is being read.
    bytes: Vec<u8>,
    /// Where to look for its end from.
    searched: usize,
    /// With all that came before it.
    total: usize,
    informational: usize,
    /// Something before it was odd.
    odd: bool,
}

impl<S> Tidied<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            stage: Stage::Head(Head::default()),
        }
    }
}

impl Head {
    /// Takes what was read; gives what is to be handed on once the head is whole.
    ///
    /// # Errors
    /// When too much comes before an answer.
    fn take(&mut self, piece: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.bytes.extend_from_slice(piece);
        self.total += piece.len();
        loop {
            if self
                .bytes
                .first()
                .is_some_and(|byte| matches!(byte, b'\r' | b'\n'))
            {
                let blank = |byte: &u8| matches!(byte, b'\r' | b'\n');
                let long = self.bytes.iter().take_while(|byte| blank(byte)).count();
                self.bytes.drain(..long);
                self.odd = true;
            }
            let Some(end) = self.end() else {
                if self.total <= HEAD_BYTES_MAX {
                    return Ok(None);
                }
                return match status(&self.bytes) {
                    Some(status) if is_final(status) => Ok(Some(self.cut_off(status))),
                    _ => Err(too_much(format!(
                        "it said more than {HEAD_BYTES_MAX} bytes before its answer"
                    ))),
                };
            };
            match status(&self.bytes[..end]) {
                Some(status) if !is_final(status) => {
                    self.informational += 1;
                    if self.informational > INFORMATIONAL_MAX {
                        return Err(too_much(format!(
                            "it said more than {INFORMATIONAL_MAX} times before its answer that it goes on"
                        )));
                    }
                    self.odd |= !is_plain(&self.bytes[..end]);
                    self.bytes.drain(..end);
                    self.searched = 0;
                }
                Some(status) if self.odd || !is_plain(&self.bytes[..end]) => {
                    let mut tidy = tidied(status, &self.bytes[..end]);
                    tidy.extend_from_slice(&self.bytes[end..]);
                    return Ok(Some(tidy));
                }
                // Plain, or nothing of which anyone could say what it means.
                _ => return Ok(Some(std::mem::take(&mut self.bytes))),
            }
        }
    }

    /// Where the empty line after the headers ends.
    fn end(&mut self) -> Option<usize> {
        let from = self.searched;
        self.searched = self.bytes.len().saturating_sub(2);
        let rest = &self.bytes[from..];
        let feeds = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let mut ends = feeds.filter_map(|(at, _)| match rest[at + 1..] {
            [b'\n', ..] => Some(at + 2),
            [b'\r', b'\n', ..] => Some(at + 3),
            _ => None,
        });
        ends.next().map(|end| from + end)
    }

    /// What is handed on where the head never ends: it was closed, or there was too much.
    fn cut_off(&self, status: u16) -> Vec<u8> {
        let mut tidy = tidied(status, &self.bytes);
        // There is no body to be had.
        if let Some(end) = tidy.windows(2).position(|pair| pair == b"\r\n") {
            tidy.truncate(end + 2);
        }
        if let Some(wait) = values(&self.bytes, "retry-after").first() {
            tidy.extend_from_slice(format!("retry-after: {wait}\r\n").as_bytes());
        }
        tidy.extend_from_slice(b"content-length: 0\r\nconnection: close\r\n\r\n");
        tidy
    }
}

fn too_much(error: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Whether it is an answer, and not the word that one is to come. `101` is one: nothing here asks for it.
fn is_final(status: u16) -> bool {
    !(100..200).contains(&status) || status == 101
}

/// The status of a head whose first line says it clearly: `HTTP/1.`, a digit, a space and three digits,
/// of which the first is not 0; then the line ends or a space follows.
fn status(head: &[u8]) -> Option<u16> {
    let line = &head[..head.iter().position(|byte| *byte == b'\n')?];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let (version, rest) = rest.split_first()?;
    let (code, rest) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    if !version.is_ascii_digit() || !matches!(rest, [] | [b' ', ..]) || code[0] == b'0' {
        return None;
    }
    str::from_utf8(code)
        .ok()?
        .parse()
        .ok()
        .filter(|_| code.iter().all(u8::is_ascii_digit))
}

/// Whether the client reads it as everyone does.
fn is_plain(head: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    if !matches!(response.parse(head), Ok(httparse::Status::Complete(_))) {
        return false;
    }
    let of = |name: &'static str| {
        let named = response.headers.iter();
        named.filter(move |header| header.name.eq_ignore_ascii_case(name))
    };
    let mut lengths = of("content-length");
    match (lengths.next(), of("transfer-encoding").next()) {
        (None, _) => true,
        (Some(one), None) => length(one.value).is_some() && lengths.next().is_none(),
        (Some(_), Some(_)) => false,
    }
}

/// How long a body is said to be.
fn length(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// The values of a header in an odd head, each in one line and of visible ASCII.
fn values(head: &[u8], name: &str) -> Vec<String> {
    let head = String::from_utf8_lossy(head);
    let named = head.lines().skip(1).filter_map(|line| {
        let (said, value) = line.split_once(':')?;
        said.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    });
    let fits = |value: &&str| value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    named.filter(fits).map(str::to_owned).collect()
}

/// The head without all that is odd.
fn tidied(status: u16, head: &[u8]) -> Vec<u8> {
    let mut tidy = format!("HTTP/1.1 {status}\r\n");
    let [lengths, encodings, waits] = HEADERS_LEFT.map(|name| values(head, name));
    let mut put = |name: &str, value: &str| tidy.push_str(&format!("{name}: {value}\r\n"));
    let length = match lengths.as_slice() {
        [one, rest @ ..] if rest.iter().all(|other| other == one) => self::length(one.as_bytes()),
        _ => None,
    };
    match (encodings.as_slice(), length) {
        ([one], _) if one.eq_ignore_ascii_case("chunked") => put(HEADERS_LEFT[1], "chunked"),
        ([], Some(length)) => put(HEADERS_LEFT[0], &length.to_string()),
        // It lasts until the connection closes.
        ([], None) if lengths.is_empty() => {}
        // Where it ends is not told, so none of it is read.
        _ => put(HEADERS_LEFT[0], "0"),
    }
    if let Some(wait) = waits.first() {
        put(HEADERS_LEFT[2], wait);
    }
    put("connection", "close");
    tidy.push_str("\r\n");
    tidy.into_bytes()
}

impl<S: AsyncRead + Unpin> AsyncRead for Tidied<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.stage {
                Stage::Body => return Pin::new(&mut this.stream).poll_read(context, buffer),
                Stage::Tidy { bytes, given } => {
                    let rest = &bytes[*given..];
                    let long = rest.len().min(buffer.remaining());
                    buffer.put_slice(&rest[..long]);
                    *given += long;
                    if *given == bytes.len() {
                        this.stage = Stage::Body;
                    }
                    return Poll::Ready(Ok(()));
                }
                Stage::Head(head) => {
                    let mut piece = [0; PIECE_BYTES];
                    let mut piece = ReadBuf::new(&mut piece);
                    ready!(Pin::new(&mut this.stream).poll_read(context, &mut piece))?;
                    let whole = match (piece.filled(), status(&head.bytes)) {
                        ([], Some(status)) if is_final(status) => Some(head.cut_off(status)),
                        // The client says what it thinks of an end without an answer.
                        ([], _) if head.bytes.is_empty() => return Poll::Ready(Ok(())),
                        ([], _) => Some(std::mem::take(&mut head.bytes)),
                        (piece, _) => head.take(piece)?,
                    };
                    if let Some(bytes) = whole {
                        this.stage = Stage::Tidy { bytes, given: 0 };
                    }
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tidied<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // A receiver may answer before it has all of a request. What is written then belongs to the same
        // one and begins like no request; should a body's piece do so, the rest of that early answer's
        // body is lost, and its connection was to be closed anyway.
        if matches!(self.stage, Stage::Body) && METHODS.iter().any(|it| bytes.starts_with(it)) {
            self.stage = Stage::Head(Head::default());
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the client is given of these pieces.
    fn check(pieces: &[&str], expect: &str) {
        let mut head = Head::default();
        let mut told = None;
        for piece in pieces {
            assert!(told.is_none(), "{pieces:?}");
            told = head.take(piece.as_bytes()).unwrap();
        }
        let told = String::from_utf8(told.expect("a whole head")).unwrap();
        assert_eq!(told, expect, "{pieces:?}");
    }

    #[test]
    fn a_plain_head_stays_as_it_is() {
        let plain = "HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 2\r\n\r\nok";
        check(&[plain], plain);
        check(&["HTTP/1.0 204\n\n"], "HTTP/1.0 204\n\n");
        for at in 1..plain.len() - 2 {
            let (begun, rest) = plain.split_at(at);
            check(&[begun, rest], plain);
        }
        check(&["HTTP/1.1 100 Continue\r\n\r\n", plain], plain);
        check(&["hello\r\n\r\n"], "hello\r\n\r\n");
    }

    #[test]
    fn of_an_odd_head_what_counts_is_left() {
        let close = "connection: close\r\n\r\n";
        for (head, left) in [
            ("content-length : 2\r\n", "content-length: 2\r\n"),
            ("X : 1\r\nContent-Length: 2\r\n", "content-length: 2\r\n"),
            (
                "X : 1\r\ntransfer-encoding: Chunked\r\n",
                "transfer-encoding: chunked\r\n",
            ),
            ("odd\r\n", ""),
            ("Retry-After : 3\r\n", "retry-after: 3\r\n"),
            (
                "content-length: 2\r\ncontent-length: 3\r\n",
                "content-length: 0\r\n",
            ),
            (
                "content-length: 2\r\ncontent-length: 2\r\n",
                "content-length: 2\r\n",
            ),
            ("content-length: -2\r\n", "content-length: 0\r\n"),
            (
                "content-length: 2\r\ntransfer-encoding: chunked\r\n",
                "transfer-encoding: chunked\r\n",
            ),
            (
                "odd\r\ntransfer-encoding: gzip\r\n",
                "content-length: 0\r\n",
            ),
        ] {
            check(
                &["HTTP/1.1 503 no\r\n", head, "\r\nrest"],
                &format!("HTTP/1.1 503\r\n{left}{close}rest"),
            );
        }
    }

    proptest! {
        /// Whatever comes, in whatever pieces: bounded, and never a panic.
        #[test]
        fn nothing_said_grows_without_bound(pieces in prop::collection::vec("(HTTP/1.1 1?[0-9]{2,3}|x|:|\r?\n|[ -~]{0,9}|ü){0,9}", 0..40)) {
            let mut head = Head::default();
            for piece in pieces {
                match head.take(piece.as_bytes()) {
                    Ok(None) => prop_assert!(head.bytes.len() <= HEAD_BYTES_MAX),
                    Ok(Some(_)) | Err(_) => break,
                }
            }
        }
    }
}
