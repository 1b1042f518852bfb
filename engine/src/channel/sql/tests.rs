use super::*;
use crate::channel::tests::{delivery, hostile_message, outgoing};
use crate::channel::{Channel, Retry};
use hooksieve_sdk::wire::Payload;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn settings() -> Settings {
    Settings {
        driver: Driver::Postgres,
        host: "db.example".into(),
        port: None,
        database: "shop".into(),
        username: "hooks".into(),
        password: Some(Secret::new("hidden")),
        tls: true,
        statement: "INSERT INTO orders VALUES ($1)".into(),
        values: vec![Binding::Given(Given::DeliveryId)],
        timeout_ms: 1000,
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        let error = Sql::new(settings).err().unwrap_or_default();
        assert!(!error.contains("hidden"), "{error}");
        error
    };
    assert_eq!(refused(|_| ()), "");
    for host in ["127.0.0.1", "::1", "DB-1_a.example.", "localhost"] {
        let mut settings = settings();
        host.clone_into(&mut settings.host);
        assert!(Sql::new(settings).is_ok(), "{host}");
    }
    for host in [
        "",
        ".",
        "/var/run/postgresql",
        "%2Fvar%2Frun",
        "\0abstract",
        "postgres://db.example/shop",
        "db.example:5432",
        "[::1]",
        "user@db.example",
        "db example",
        "-db.example",
        "db..example",
        "дб.example",
    ] {
        let mut settings = settings();
        host.clone_into(&mut settings.host);
        let error = Sql::new(settings).err().unwrap_or_default();
        assert!(error.contains("is not a host"), "{host}: {error}");
    }
    for (change, error) in [
        (
            (|settings| settings.tls = false) as fn(&mut Settings),
            "the password would travel unencrypted to \"db.example\"; leave tls at \"require\"",
        ),
        (|settings| settings.username.clear(), "\"\" is no username"),
        (
            |settings| settings.database.push('\0'),
            "\"shop\\0\" is no database",
        ),
        (
            |settings| settings.values.clear(),
            "the statement has places for 1 values ($1, $2), and `values` lists 0",
        ),
        (
            |settings| settings.statement = "DROP TABLE orders".into(),
            "the statement begins with \"DROP\"; there are call, delete, insert, merge, replace, select, update, with",
        ),
        (
            |settings| settings.values = vec![Binding::Given(Given::Time); VALUES_MAX + 1],
            "there are 1001 values, and at most 1000 are bound",
        ),
    ] {
        assert_eq!(refused(change), error);
    }
}

#[tokio::test]
async fn a_driver_that_panics_is_a_broken_connection() {
    let panics = async { panic!("as sqlx does where a packet is too short") };
    let failure = quiet::<()>("db.example", panics).await.unwrap_err();
    assert_eq!(
        failure,
        Failure::later("db.example answered what the driver cannot read")
    );
}

/// What one attempt comes to through a channel to this port of this machine.
async fn attempted(driver: Driver, port: u16, ca: Option<&str>) -> Result<Sent, Failure> {
    let sql = Sql::new(Settings {
        driver,
        host: "localhost".into(),
        port: Some(port),
        tls: ca.is_some(),
        statement: "DELETE FROM orders".into(),
        values: Vec::new(),
        timeout_ms: 20_000,
        ..settings()
    });
    let client = outgoing(ca.map(str::as_bytes));
    let delivery = delivery(Payload::Message(hostile_message()));
    let sent = Channel::Sql(Box::new(sql.unwrap()))
        .send(&client, &delivery)
        .await;
    if let Err(failure) = &sent {
        assert!(failure.error.contains("localhost"), "{failure:?}");
        assert!(!failure.error.contains("hidden"), "{failure:?}");
        assert_eq!(failure.retry, Retry::Later, "{failure:?}");
    }
    sent
}

/// A server that has one conversation; gives its port.
async fn conversing<F: Future<Output = io::Result<()>> + Send>(
    converse: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        // It ends when the other side has had enough.
        let _ = converse(stream).await;
    });
    port
}

#[tokio::test]
async fn what_a_postgres_claims_is_not_believed() {
    let error = async |port, ca| {
        let failure = attempted(Driver::Postgres, port, ca).await.unwrap_err();
        failure.error.replace(&port.to_string(), "PORT")
    };
    let too_much = "localhost:PORT answered more than the 1048576 bytes that are read";
    // Four gigabytes follow, it says.
    let long = conversing(async |mut stream: TcpStream| {
        stream.write_all(&[b'R', 0xff, 0xff, 0xff, 0xff]).await?;
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    });
    assert_eq!(error(long.await, None).await, too_much);
    let endless = conversing(async |mut stream: TcpStream| {
        stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
        loop {
            stream.write_all(b"S\0\0\0\x08a\0b\0").await?;
        }
    });
    assert_eq!(error(endless.await, None).await, too_much);
    // Neither a refusal nor an error in the open leads to a connection without TLS.
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = made.cert.pem();
    for answer in [b'N', b'E'] {
        let plain = conversing(async move |mut stream: TcpStream| {
            stream.read_exact(&mut [0; 8]).await?;
            stream.write_all(&[answer]).await?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await?;
            assert_eq!(rest, b"");
            Ok(())
        });
        assert_eq!(
            error(plain.await, Some(&pem)).await,
            "localhost:PORT does not offer TLS, so nothing was sent"
        );
    }
}

const SSL: u32 = 0x0800;

/// A MySQL server's greeting, which offers TLS and asks for this way to log in.
fn greeting(plugin: &str) -> Vec<u8> {
    let flags: u32 = 0x0108_8208 | SSL;
    let mut body = b"\x0a8.4.0\0\x01\0\0\0nonce-8b\0".to_vec();
    body.extend_from_slice(&flags.to_le_bytes()[..2]);
    body.extend_from_slice(&[45, 2, 0]);
    body.extend_from_slice(&flags.to_le_bytes()[2..]);
    body.push(21);
    body.extend_from_slice(&[0; 10]);
    body.extend_from_slice(b"nonce-of-12b\0");
    body.extend_from_slice(plugin.as_bytes());
    body.push(0);
    body
}

async fn write(to: &mut (impl AsyncWrite + Unpin), number: u8, body: &[u8]) -> io::Result<()> {
    let long = u32::try_from(body.len()).unwrap().to_le_bytes();
    to.write_all(&[long[0], long[1], long[2], number]).await?;
    to.write_all(body).await?;
    to.flush().await
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 4];
    from.read_exact(&mut head).await?;
    let mut body = vec![0; usize::from(head[0]) + (usize::from(head[1]) << 8)];
    from.read_exact(&mut body).await?;
    Ok((head[3], body))
}

const OK: &[u8] = &[0, 1, 0, 2, 0, 0, 0];

/// Takes the driver's settings, then answers the statement with this.
async fn serve(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    answer: &[u8],
) -> io::Result<()> {
    let mut executed = 0;
    loop {
        let (_, question) = read(stream).await?;
        match question.first() {
            Some(0x16) => write(stream, 1, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await?,
            Some(0x17) if executed == 1 => {
                write(stream, 1, answer).await?;
                // Nothing more is said to it, whatever it asked for.
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await?;
                assert!(!String::from_utf8_lossy(&rest).contains("root"));
                return Ok(());
            }
            Some(0x17) => {
                executed += 1;
                write(stream, 1, OK).await?;
            }
            Some(0x19) => {}
            _ => write(stream, 1, OK).await?,
        }
    }
}

#[tokio::test]
async fn what_a_mysql_claims_is_not_believed() {
    let not_asked = "answered what no statement here asks for";
    for (answer, error) in [
        // So many columns: memory for them would end the process.
        (&b"\xfe\0\0\0\0\x10\0\0\0"[..], not_asked),
        (b"\xfd\xff\xff\xff", not_asked),
        (b"\xfb/etc/passwd", not_asked),
        (b"\xfc\xff", "its answer is not the protocol's"),
        (b"", "whether it ran is not known"),
    ] {
        let port = conversing(async move |mut stream: TcpStream| {
            write(&mut stream, 0, &greeting("mysql_native_password")).await?;
            read(&mut stream).await?;
            write(&mut stream, 2, OK).await?;
            serve(&mut stream, answer).await
        });
        let failure = attempted(Driver::MySql, port.await, None)
            .await
            .unwrap_err();
        assert!(failure.error.contains(error), "{answer:?}: {failure:?}");
    }
    let long = conversing(async |mut stream: TcpStream| {
        stream.write_all(&[0xff, 0xff, 0xff, 0]).await?;
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    });
    let failure = attempted(Driver::MySql, long.await, None)
        .await
        .unwrap_err();
    assert!(failure.error.contains("answered more than"), "{failure:?}");
}

/// MySQL 8 asks for the password itself where it has none cached; it has it over TLS and no other way.
#[tokio::test]
async fn mysql_has_the_password_within_tls_alone() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = made.cert.pem();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let port = conversing(async move |mut stream: TcpStream| {
        write(&mut stream, 0, &greeting("caching_sha2_password")).await?;
        let (first, asked) = read(&mut stream).await?;
        assert_eq!((first, asked.len()), (1, 32));
        let mut stream = tls.accept(stream).await?;
        let (second, answer) = read(&mut stream).await?;
        assert_eq!((second, &answer[..32]), (2, &asked[..]));
        assert_eq!(
            u32::from_le_bytes([asked[0], asked[1], asked[2], asked[3]]) & SSL,
            SSL
        );
        write(&mut stream, 3, &[1, 4]).await?;
        assert_eq!(read(&mut stream).await?, (4, b"hidden\0".to_vec()));
        write(&mut stream, 5, OK).await?;
        serve(&mut stream, OK).await
    });
    let sent = attempted(Driver::MySql, port.await, Some(&pem)).await;
    assert_eq!(sent, Ok(Sent::default()));
}
