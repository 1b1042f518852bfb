//! Against a scripted SMTP peer; a real server is in the end-to-end tests.

use super::*;
use crate::channel::guard::Guard;
use crate::channel::tests::{delivery, hostile_message, outgoing};
use crate::channel::text;
use crate::store::Attempt;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

/// What a scripted mail server does: how it answers each recipient, and the data.
#[derive(Clone, Default)]
struct Script {
    recipients: Vec<(&'static str, &'static str)>,
    sender: Option<&'static str>,
    /// `None` closes the connection once the data has come; `SILENCE` keeps it open.
    data: Option<&'static str>,
    /// What is sent in the place of the above, byte by byte: to a command, to `.`, and as the greeting
    /// to nothing.
    raw: Vec<(&'static str, &'static [u8])>,
}

const SILENCE: &str = "";

/// All that clients said, by line, and every message as it was received.
#[derive(Default)]
struct Heard {
    connections: usize,
    commands: Vec<String>,
    messages: Vec<String>,
}

async fn server(script: Script) -> (u16, Arc<Mutex<Heard>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Heard::default()));
    let all = Arc::clone(&heard);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            all.lock().unwrap().connections += 1;
            tokio::spawn(talk(socket, script.clone(), Arc::clone(&all)));
        }
    });
    (port, heard)
}

async fn talk(socket: tokio::net::TcpStream, script: Script, heard: Arc<Mutex<Heard>>) {
    let (read, mut write) = socket.into_split();
    let mut lines = BufReader::new(read).lines();
    let raw = |command: &str| {
        let mut raw = script.raw.iter();
        raw.find(|(to, _)| *to == command).map(|(_, bytes)| *bytes)
    };
    let greeting = raw("").unwrap_or(b"220 test ESMTP\r\n");
    write.write_all(greeting).await.unwrap();
    while let Ok(Some(line)) = lines.next_line().await {
        heard.lock().unwrap().commands.push(line.clone());
        let command = line.split(' ').next().unwrap();
        if let Some(bytes) = raw(command).filter(|_| command != "DATA") {
            write.write_all(bytes).await.unwrap();
            continue;
        }
        let answer = match command {
            "EHLO" => "250-test\r\n250 8BITMIME",
            "MAIL" => script.sender.unwrap_or("250 sender ok"),
            "RCPT" => script
                .recipients
                .iter()
                .find(|(who, _)| line.contains(who))
                .map_or("250 recipient ok", |(_, answer)| answer),
            "DATA" => {
                write
                    .write_all(raw("DATA").unwrap_or(b"354 go on\r\n"))
                    .await
                    .unwrap();
                let mut message = String::new();
                while let Ok(Some(line)) = lines.next_line().await {
                    if line == "." {
                        break;
                    }
                    message.push_str(line.strip_prefix('.').unwrap_or(&line));
                    message.push('\n');
                }
                heard.lock().unwrap().messages.push(message);
                if let Some(bytes) = raw(".") {
                    write.write_all(bytes).await.unwrap();
                    continue;
                }
                match script.data {
                    Some(SILENCE) => std::future::pending().await,
                    Some(answer) => answer,
                    None => return,
                }
            }
            _ => "250 ok",
        };
        write
            .write_all(format!("{answer}\r\n").as_bytes())
            .await
            .unwrap();
    }
}

fn settings(port: u16, to: &[&str]) -> Settings {
    Settings {
        host: "127.0.0.1".into(),
        port,
        tls: Tls::None,
        username: None,
        password: None,
        from: "Hooks <hooks@example.com>".into(),
        to: to.iter().map(|&to| to.into()).collect(),
        reply_to: Some("Team <team@example.com>".into()),
        list_unsubscribe: None,
        dkim: None,
        timeout_ms: 2000,
    }
}

fn email(port: u16) -> Email {
    let to = [
        "ann@example.com",
        "Bob <bob@example.com>",
        "eve@example.com",
    ];
    Email::new(settings(port, &to)).unwrap()
}

async fn send(email: &Email, delivery: &Delivery) -> Result<Sent, Failure> {
    email.send(&outgoing(None), delivery).await
}

fn hostile() -> Delivery {
    delivery(Payload::Message(hostile_message()))
}

fn attempt_of(failure: &Failure) -> Attempt {
    Attempt {
        at_ms: 0,
        duration_ms: 0,
        status: failure.status,
        error: Some(failure.error.clone()),
        refused: failure.refused.clone(),
        accepted: failure.accepted.clone(),
        ..Attempt::default()
    }
}

/// When the deliveries of these tests were decided.
fn decided() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_748_779_201_000)
}

fn source(delivery: &Delivery) -> String {
    let Payload::Message(message) = &delivery.payload else {
        panic!("not a message");
    };
    String::from_utf8(email(25).source(delivery, message, decided()).unwrap()).unwrap()
}

#[test]
fn a_hostile_message_stays_text() {
    insta::assert_snapshot!(source(&hostile()).replace("\r\n", "\n"));
}

#[test]
fn no_title_makes_a_header() {
    let plain = source(&hostile());
    let names = |source: &str| -> Vec<String> {
        let (head, _) = source.split_once("\r\n\r\n").unwrap();
        head.split("\r\n")
            .filter(|line| !line.starts_with(' '))
            .map(|line| line.split(':').next().unwrap().to_owned())
            .collect()
    };
    for title in [
        "a\r\nBcc: b@example.com",
        "a\nBcc: b@example.com",
        "a\rBcc: b@example.com",
        "a\r\n\r\n<script>",
        "a\0b\u{0b}c\u{85}d\u{2028}Bcc: e",
        "\r\n",
        "",
        "🚨\r\nBcc: b@example.com",
        "مرحبا \u{202e}dlrow",
        "=?utf-8?q?=0D=0ABcc:_b=40example.com?=",
        &"x".repeat(100_000),
        &"x y ".repeat(10_000),
        &"🚨".repeat(10_000),
    ] {
        let mut message = hostile_message();
        message.title = title.to_owned();
        let source = source(&delivery(Payload::Message(message)));
        assert_eq!(names(&source), names(&plain), "{title:?}");
        let (head, _) = source.split_once("\r\n\r\n").unwrap();
        assert!(!head.replace("\r\n", "").contains(['\r', '\n', '\0']));
        for line in source.split("\r\n") {
            assert!(line.len() <= 998, "{title:?}: a line of {}", line.len());
        }
    }
}

#[test]
fn no_text_ends_its_part() {
    let id = hostile().id;
    let mut message = hostile_message();
    message.text = format!("--=_{id}\r\nContent-Type: text/html\r\n\r\n<b>\r\n--=_{id}--");
    let source = source(&delivery(Payload::Message(message)));
    assert_eq!(source.matches(&format!("\r\n--=_{id}")).count(), 3);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |change: fn(&mut Settings)| {
        let mut settings = settings(25, &["ann@example.com"]);
        change(&mut settings);
        Email::new(settings).err().unwrap()
    };
    for (change, error) in [
        (
            (|it| it.to.clear()) as fn(&mut Settings),
            "there is no recipient",
        ),
        (
            |it| it.host = "mail example".into(),
            "\"mail example\" is not a host: it takes a name (its xn-- form where it has one) or an address, and the port stands in `port`",
        ),
        (
            |it| it.to = vec!["ann@example.com".into(); 51],
            "there are 51 recipients, and at most 50 are taken; use a mailing list",
        ),
        (
            |it| it.username = Some("ann".into()),
            "there is a username and no password",
        ),
        (
            |it| it.password = Some(Secret::new("hidden")),
            "there is a password and no username",
        ),
        (
            |it| it.from = "ann@exämple.com".into(),
            "\"ann@exämple.com\" has letters outside of ASCII in its address; write its domain in the xn-- form",
        ),
        (
            |it| it.list_unsubscribe = Some("http://example.com/stop".into()),
            "the list_unsubscribe address begins with \"http\", and only https and mailto are taken",
        ),
        (
            |it| it.list_unsubscribe = Some("stop".into()),
            "the list_unsubscribe address is not one: relative URL without a base",
        ),
        (
            |it| it.list_unsubscribe = Some(format!("https://example.com/{}", "x".repeat(881))),
            "the list_unsubscribe address may have 900 bytes, and neither `<`, `>` nor a comma",
        ),
        (
            |it| it.list_unsubscribe = Some("https://example.com/a,b".into()),
            "the list_unsubscribe address may have 900 bytes, and neither `<`, `>` nor a comma",
        ),
        (
            |it| {
                it.host = "mail.example.com".into();
                it.username = Some("ann".into());
                it.password = Some(Secret::new("hidden"));
            },
            "the password would travel unencrypted to \"mail.example.com\"; set tls to \"starttls\" or \"tls\"",
        ),
    ] {
        assert_eq!(refused(change), error);
    }
    for bad in [
        "",
        "[mail.example]",
        "[127.0.0.1]",
        "smtp://mail",
        "mail:25",
        "[::1]:25",
        "mäil",
    ] {
        let mut settings = settings(25, &["ann@example.com"]);
        settings.host = bad.into();
        let error = Email::new(settings).err().unwrap();
        assert!(error.contains("is not a host"), "{bad:?}: {error}");
    }
    for bad in [
        "ann",
        "ann@",
        "ann@example.com\r\nBcc: b@example.com",
        "a@b, c@d",
    ] {
        assert!(mailbox(bad).is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn one_message_goes_to_all_and_the_connection_serves_the_next() {
    let (port, heard) = server(Script {
        data: Some("250 queued"),
        ..Script::default()
    })
    .await;
    let email = email(port);
    let delivery = hostile();
    for _ in 0..2 {
        let sent = send(&email, &delivery).await.unwrap();
        assert_eq!((sent.status, sent.refused), (Some(250), Vec::new()));
    }
    let heard = heard.lock().unwrap();
    assert_eq!((heard.connections, heard.messages.len()), (1, 2));
    // What arrives is what was built, dots at line starts included, and the same every time.
    let Payload::Message(message) = &delivery.payload else {
        panic!("not a message");
    };
    let source = email.source(&delivery, message, decided()).unwrap();
    let source = String::from_utf8(source).unwrap().replace("\r\n", "\n");
    let undated = |message: &str| {
        let lines = message.trim_end().lines();
        let lines: Vec<_> = lines.filter(|line| !line.starts_with("Date: ")).collect();
        lines.join("\n")
    };
    for message in &heard.messages {
        assert_eq!(undated(message), undated(&source));
    }
}

#[tokio::test]
async fn one_refusal_keeps_the_message_from_nobody_else() {
    let (port, heard) = server(Script {
        recipients: vec![("bob", "550-5.1.1 no such\r\n550 5.1.1 user")],
        data: Some("250 queued"),
        ..Script::default()
    })
    .await;
    let sent = send(&email(port), &hostile()).await.unwrap();
    assert_eq!(sent.status, Some(250));
    assert_eq!(sent.refused, ["bob@example.com: 550 5.1.1 no such user"]);
    assert_eq!(heard.lock().unwrap().messages.len(), 1);
}

#[tokio::test]
async fn refused_by_all_is_final_and_the_connection_stays_good() {
    let (port, heard) = server(Script {
        recipients: vec![("example.com", "550 no")],
        ..Script::default()
    })
    .await;
    let email = email(port);
    for _ in 0..2 {
        let failure = send(&email, &hostile()).await.unwrap_err();
        assert_eq!((failure.status, failure.retry), (Some(550), Retry::Never));
        assert_eq!(
            failure.error,
            "127.0.0.1 refused every recipient: ann@example.com: 550 no"
        );
        assert_eq!(failure.refused.len(), 3);
    }
    let heard = heard.lock().unwrap();
    assert_eq!((heard.connections, heard.messages.len()), (1, 0));
}

#[tokio::test]
async fn who_has_it_is_not_mailed_again() {
    let script = |recipients| Script {
        recipients,
        data: Some("250 queued"),
        ..Script::default()
    };
    let refusals = vec![("bob", "451 later"), ("eve", "550 no")];
    let (port, heard) = server(script(refusals)).await;
    let mut delivery = hostile();
    let failure = send(&email(port), &delivery).await.unwrap_err();
    assert_eq!(failure.retry, Retry::Later);
    assert_eq!(
        failure.error,
        "127.0.0.1 put off 1 of 3 recipients: bob@example.com: 451 later"
    );
    assert_eq!(failure.accepted, ["ann@example.com"]);
    assert_eq!(
        failure.refused,
        ["eve@example.com: 550 no", "bob@example.com: 451 later"]
    );
    assert_eq!(heard.lock().unwrap().messages.len(), 1);

    // Now the server takes Bob too: Ann is not asked for again.
    delivery.attempts.push(attempt_of(&failure));
    let (port, heard) = server(script(vec![("eve", "550 no")])).await;
    let sent = send(&email(port), &delivery).await.unwrap();
    assert_eq!(sent.refused, ["eve@example.com: 550 no"]);
    let recipients: Vec<_> = {
        let heard = heard.lock().unwrap();
        let rcpt = heard.commands.iter().filter(|it| it.starts_with("RCPT"));
        rcpt.cloned().collect()
    };
    assert_eq!(
        recipients,
        ["RCPT TO:<bob@example.com>", "RCPT TO:<eve@example.com>"]
    );

    // Or it refuses Bob for good: it is delivered all the same, as Ann has it.
    let (port, heard) = server(script(vec![("example.com", "550 no")])).await;
    let sent = send(&email(port), &delivery).await.unwrap();
    assert_eq!(sent.refused.len(), 2);
    assert_eq!(heard.lock().unwrap().messages.len(), 0);
}

#[tokio::test]
async fn what_the_server_says_of_the_message_decides() {
    for (sender, data, status, retry, error) in [
        (
            Some("550 not you"),
            None,
            Some(550),
            Retry::Never,
            "127.0.0.1 refused the sender: 550 not you",
        ),
        (
            Some("451 busy"),
            None,
            Some(451),
            Retry::Later,
            "127.0.0.1 refused the sender: 451 busy",
        ),
        (
            None,
            Some("554 spam"),
            Some(554),
            Retry::Never,
            "127.0.0.1 refused the message: 554 spam",
        ),
        (
            None,
            Some("452 full"),
            Some(452),
            Retry::Later,
            "127.0.0.1 refused the message: 452 full",
        ),
        (
            None,
            None,
            None,
            Retry::Later,
            "the connection to 127.0.0.1 broke: it was closed before the reply",
        ),
    ] {
        let (port, _) = server(Script {
            sender,
            data,
            ..Script::default()
        })
        .await;
        let failure = send(&email(port), &hostile()).await.unwrap_err();
        assert_eq!((failure.status, failure.retry), (status, retry));
        assert_eq!(failure.error, error);
        // Whoever is cut off after the message knows nothing; an answer tells, either way.
        assert_eq!(failure.ambiguous, status.is_none());
        assert_eq!(failure.answer.is_some(), status.is_some());
        assert!(failure.accepted.is_empty());
    }
}

#[tokio::test]
async fn a_server_without_starttls_gets_nothing() {
    let (port, heard) = server(Script::default()).await;
    let mut settings = settings(port, &["ann@example.com"]);
    settings.tls = Tls::StartTls;
    settings.username = Some("ann".into());
    settings.password = Some(Secret::new("hidden"));
    let failure = send(&Email::new(settings).unwrap(), &hostile())
        .await
        .unwrap_err();
    assert_eq!(failure.retry, Retry::Later);
    assert_eq!(
        failure.error,
        "127.0.0.1 does not offer STARTTLS, so nothing was sent"
    );
    let commands = heard.lock().unwrap().commands.join("\n");
    assert!(commands.starts_with("EHLO "), "{commands}");
    assert!(!commands.contains('\n'), "{commands}");
}

#[tokio::test]
async fn a_silent_server_is_left_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = settings(silent.local_addr().unwrap().port(), &["ann@example.com"]);
    settings.timeout_ms = 100;
    let failure = send(&Email::new(settings).unwrap(), &hostile())
        .await
        .unwrap_err();
    assert_eq!(failure.retry, Retry::Later);
    assert_eq!(
        failure.error,
        "127.0.0.1 did not take the message within 100ms"
    );
    assert!(!failure.ambiguous, "no message was sent");
}

#[tokio::test]
async fn a_server_that_falls_silent_over_the_message_may_have_it() {
    let (port, heard) = server(Script {
        data: Some(SILENCE),
        ..Script::default()
    })
    .await;
    let mut settings = settings(port, &["ann@example.com"]);
    settings.timeout_ms = 300;
    let failure = send(&Email::new(settings).unwrap(), &hostile())
        .await
        .unwrap_err();
    assert_eq!((failure.retry, failure.ambiguous), (Retry::Later, true));
    assert_eq!(heard.lock().unwrap().messages.len(), 1);
}

#[tokio::test]
async fn a_server_that_never_ends_its_line_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let talking = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut said = 0_u64;
        while socket.write_all(&[b'x'; 4_096]).await.is_ok() {
            said += 4_096;
            assert!(said < 1 << 30, "nobody stops it");
        }
    });
    let email = Email::new(settings(port, &["ann@example.com"])).unwrap();
    let failure = send(&email, &hostile()).await.unwrap_err();
    assert!(failure.error.contains("65536 bytes at once"), "{failure:?}");
    talking.await.unwrap();
}

#[test]
fn a_reader_can_say_that_he_wants_no_more() {
    let head = |address: &str| {
        let mut settings = settings(25, &["ann@example.com"]);
        settings.list_unsubscribe = Some(address.into());
        let email = Email::new(settings).unwrap_or_else(|error| panic!("{error}"));
        let source = email
            .source(&hostile(), &hostile_message(), decided())
            .unwrap();
        let source = String::from_utf8(source).unwrap();
        source.split_once("\r\n\r\n").unwrap().0.to_owned()
    };
    let long = format!("https://example.com/{}?a=1&b=2", "x".repeat(860));
    for address in ["https://example.com/stop?id=1", long.as_str()] {
        let head = head(address);
        let line = format!("\r\nList-Unsubscribe: <{address}>\r\n");
        assert!(head.contains(&line), "{head}");
        assert!(head.contains("\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"));
    }
    let head = head("mailto:stop@example.com?subject=stop");
    assert!(head.contains("\r\nList-Unsubscribe: <mailto:stop@example.com?subject=stop>\r\n"));
    assert!(!head.contains("List-Unsubscribe-Post"), "{head}");
}

/// Postfix, Exchange and whatever else is out there say what they like after the code.
#[tokio::test]
async fn a_reply_counts_by_its_code_whatever_its_text() {
    let taken: [&[u8]; 9] = [
        b"250\r\n",
        b"250 Nachricht \xfcbernommen\r\n",
        b"250-angenommen f\xfcr\r\n250 ann@example.com\r\n",
        b"250-\r\n250\r\n",
        b"250 ok\n",
        b"250 ok\r\r\n",
        b"250-ok\r\nand a line without a code\r\n250 queued\r\n",
        b"250\tqueued\r\n",
        b"299 queued\r\n",
    ];
    for answer in taken {
        let (port, heard) = server(Script {
            raw: vec![(".", answer)],
            ..Script::default()
        })
        .await;
        let sent = send(&email(port), &hostile()).await;
        let shown = String::from_utf8_lossy(answer);
        assert!(
            matches!(&sent, Ok(sent) if sent.status.is_some_and(|code| code / 100 == 2)),
            "{shown:?}: {sent:?}"
        );
        assert_eq!(heard.lock().unwrap().messages.len(), 1);
    }
    let refused: [(&[u8], Retry, &str); 4] = [
        (
            b"550 zur\xfcckgewiesen\r\n",
            Retry::Never,
            "127.0.0.1 refused the message: 550 zur\u{fffd}ckgewiesen",
        ),
        (
            b"550\r\n",
            Retry::Never,
            "127.0.0.1 refused the message: 550",
        ),
        (
            b"554-no\r\n550 no\r\n",
            Retry::Never,
            "127.0.0.1 refused the message: 550 no no",
        ),
        (
            b"451 sp\xe4ter\n",
            Retry::Later,
            "127.0.0.1 refused the message: 451 sp\u{fffd}ter",
        ),
    ];
    for (answer, retry, error) in refused {
        let (port, _) = server(Script {
            raw: vec![(".", answer)],
            ..Script::default()
        })
        .await;
        let failure = send(&email(port), &hostile()).await.unwrap_err();
        assert_eq!(
            (failure.error.as_str(), failure.retry, failure.ambiguous),
            (error, retry, false)
        );
    }
}

/// The same holds of everything that is said before the message.
#[tokio::test]
async fn a_conversation_goes_by_its_codes() {
    let (port, heard) = server(Script {
        data: Some("250 queued"),
        raw: vec![
            ("", b"220-gr\xfc\xdf Gott\r\n220\r\n"),
            ("EHLO", b"250-m\xfcnchen\r\n250-8BITMIME\r\n250\r\n"),
            ("MAIL", b"250\r\n"),
            ("RCPT", b"250 empf\xe4nger\n"),
            ("DATA", b"354\r\n"),
        ],
        ..Script::default()
    })
    .await;
    let sent = send(&email(port), &hostile()).await.unwrap();
    assert_eq!(sent.status, Some(250));
    assert_eq!(heard.lock().unwrap().messages.len(), 1);
}

#[tokio::test]
async fn it_says_hello_by_the_name_of_its_host() {
    let (port, heard) = server(Script::default()).await;
    send(&email(port), &hostile()).await.unwrap_err();
    let hello = heard.lock().unwrap().commands[0].clone();
    // Every host in the world is 127.0.0.1; one that has no name has its address at least.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    match name.as_deref().map(str::trim) {
        Ok(name) if !name.starts_with("localhost") => assert_eq!(hello, format!("EHLO {name}")),
        _ => assert_eq!(hello, "EHLO [127.0.0.1]"),
    }
    for (name, said) in [
        ("hooks.example.com", "EHLO hooks.example.com"),
        ("1.2.3.4", "EHLO [1.2.3.4]"),
        ("2001:db8::1", "EHLO [IPv6:2001:db8::1]"),
    ] {
        let (port, heard) = server(Script::default()).await;
        let client = outgoing(None).named(name).unwrap();
        email(port).send(&client, &hostile()).await.unwrap_err();
        assert_eq!(heard.lock().unwrap().commands[0], said);
    }
    for bad in ["a b", "a\r\nb", "[1.2.3.4]", "-", "über.example"] {
        assert!(outgoing(None).named(bad).is_err(), "{bad:?}");
    }
}

/// A host of several addresses, of which one takes connections and says nothing, and one does not even
/// take them.
#[tokio::test]
async fn the_next_address_is_tried_when_one_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let full = tokio::net::TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = full.listen(1).unwrap();
    // Its queue is full: whoever comes now waits.
    let mut waiting = Vec::new();
    for _ in 0..8 {
        waiting.push(tokio::spawn(tokio::net::TcpStream::connect(
            full.local_addr().unwrap(),
        )));
    }
    let (port, _) = server(Script::default()).await;
    let good = format!("127.0.0.1:{port}").parse().unwrap();
    let addresses = [
        full.local_addr().unwrap(),
        silent.local_addr().unwrap(),
        good,
    ];
    let began = Instant::now();
    let greeted = email(port).greeted(&outgoing(None), &addresses).await;
    assert!(greeted.is_ok(), "{:?}", greeted.err());
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "within its timeout"
    );
    let failure = email(port)
        .greeted(&outgoing(None), &addresses[..2])
        .await
        .err();
    let failure = failure.unwrap();
    assert_eq!(failure.retry, Retry::Later);
    assert_eq!(
        failure.error,
        "no connection to 127.0.0.1 within 666.666666ms"
    );
}

#[tokio::test]
async fn no_line_of_a_mail_is_longer_than_the_standard_allows() {
    let to: Vec<String> = (0..RECIPIENTS_MAX)
        .map(|n| {
            format!(
                "Somebody of {n} <{}{n:02}@{}.example.com>",
                "a".repeat(60),
                "b".repeat(60)
            )
        })
        .collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let (port, heard) = server(Script {
        data: Some("250 queued"),
        ..Script::default()
    })
    .await;
    let email = Email::new(settings(port, &to)).unwrap();
    send(&email, &hostile()).await.unwrap();
    let heard = heard.lock().unwrap();
    let message = &heard.messages[0];
    for line in message.lines() {
        assert!(line.len() <= 998, "a line of {}", line.len());
    }
    for to in to {
        let address = to.split(['<', '>']).nth(1).unwrap();
        assert!(message.contains(address), "{address}");
    }
}

#[tokio::test]
async fn a_mail_is_dated_when_it_is_sent() {
    let (port, heard) = server(Script {
        data: Some("250 queued"),
        ..Script::default()
    })
    .await;
    // Its event came in June 2025.
    send(&email(port), &hostile()).await.unwrap();
    let heard = heard.lock().unwrap();
    let mut lines = heard.messages[0].lines();
    let date = lines.find_map(|line| line.strip_prefix("Date: ")).unwrap();
    let date = jiff::fmt::rfc2822::parse(date).unwrap().timestamp();
    let age_s = jiff::Timestamp::now().as_second() - date.as_second();
    assert!((0..60).contains(&age_s), "{date}");
}

#[tokio::test]
async fn an_address_of_ipv6_may_stand_in_brackets() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        panic!("this test needs IPv6 on the loopback interface");
    };
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Heard::default()));
    let all = Arc::clone(&heard);
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let script = Script {
            data: Some("250 queued"),
            ..Script::default()
        };
        talk(socket, script, all).await;
    });
    let mut settings = settings(port, &["ann@example.com"]);
    settings.host = "[::1]".into();
    let here = Guard::new(&["::1".parse().unwrap()]);
    let client = Outgoing::new(None, here).unwrap();
    let email = Email::new(settings).unwrap();
    email.send(&client, &hostile()).await.unwrap();
    assert_eq!(heard.lock().unwrap().messages.len(), 1);
}

/// What a mail reader makes of a subject, in as far as it decodes it.
#[test]
fn no_title_is_read_as_an_encoded_word() {
    for title in [
        "=?utf-8?q?=0D=0ABcc:_b=40example.com?=",
        "fine =?utf-8?b?4oCu?= so far",
        "=?UTF-8?Q?a?=\u{a0}=?UTF-8?Q?b?=",
        "ends in =?",
    ] {
        let mut message = hostile_message();
        message.title = title.to_owned();
        let source = source(&delivery(Payload::Message(message)));
        let (head, _) = source.split_once("\r\n\r\n").unwrap();
        let (_, subject) = head.split_once("\r\nSubject: ").unwrap();
        let mut read = String::new();
        for line in subject.split("\r\n").enumerate() {
            match line {
                (0, line) => read.push_str(line),
                (_, line) if line.starts_with(' ') => read.push_str(line),
                _ => break,
            }
        }
        let said = text::one_line(title, SUBJECT_CHARS_MAX);
        assert_eq!(decoded(&read), said, "{read}");
    }
}

/// Encoded words (RFC 2047) in UTF-8 and Base64, with nothing between them; anything else as it is.
fn decoded(text: &str) -> String {
    use base64::Engine as _;
    let mut out = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let inner = word
            .strip_prefix("=?utf-8?b?")
            .and_then(|rest| rest.strip_suffix("?="));
        let Some(inner) = inner else {
            assert!(!word.starts_with("=?"), "another would decode {word:?}");
            out.push_str(word);
            continue;
        };
        let bytes = base64::engine::general_purpose::STANDARD.decode(inner);
        out.push_str(&String::from_utf8(bytes.unwrap()).unwrap());
    }
    out
}
