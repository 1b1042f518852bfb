//! A callback server, as each user would host: another process of this program on this machine, asked
//! over HTTP/1.1 on one connection that stays open.

use super::{Row, Runner};
use crate::events::Input;
use anyhow::{Context as _, Result};
use axum::serve::ListenerExt as _;
use axum::{Json, Router, routing::post};
use hooksieve_sdk::wire::Decision;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

struct Callback {
    runtime: Runtime,
    connection: SendRequest<Full<Bytes>>,
    server: Child,
}

pub(super) fn row() -> Result<Row> {
    let mut server = Command::new(std::env::current_exe()?)
        .arg("callback-server")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    let stdout = server.stdout.take().context("the server's output")?;
    BufReader::new(stdout).read_line(&mut address)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let connection = runtime.block_on(connect(address.trim()))?;
    let callback = Callback {
        runtime,
        connection,
        server,
    };
    Ok(Row {
        name: "callback server",
        version: "axum 0.8, hyper 1".to_owned(),
        how: "another process on this machine, one HTTP/1.1 connection kept open; JSON both ways",
        isolated: true,
        runner: Box::new(callback),
    })
}

impl Runner for Callback {
    fn decide(&mut self, input: &Input) -> Result<Decision> {
        let request = Request::post("/")
            .header("host", "127.0.0.1")
            .header("content-type", "application/json")
            .body(Full::from(input.json.clone()))?;
        let answer = self.runtime.block_on(async {
            self.connection.ready().await?;
            let answer = self.connection.send_request(request).await?;
            answer.into_body().collect().await
        })?;
        let answer = answer.to_bytes();
        Ok(serde_json::from_slice(&answer)?)
    }
}

async fn connect(address: &str) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the connection, and a request on a connection that ended is an error of its own.
    tokio::spawn(connection);
    Ok(sender)
}

impl Drop for Callback {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The server's side: says where it listens and answers until its standard input ends.
pub(crate) fn serve() -> Result<()> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().lines().count();
        std::process::exit(0);
    });
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{}", listener.local_addr()?)?;
        stdout.flush()?;
        let listener = listener.tap_io(|stream| {
            // Without it the answers wait for more to send.
            let _ = stream.set_nodelay(true);
        });
        let router = Router::new().route(
            "/",
            post(async |Json(event): Json<Value>| Json(decide(&event))),
        );
        Ok(axum::serve(listener, router).await?)
    })
}

/// The rule over JSON.
fn decide(event: &Value) -> Value {
    let text = |pointer| event.pointer(pointer).and_then(Value::as_str);
    if text("/data/sender/type") == Some("Bot") {
        return json!({"reason": "a bot's", "actions": []});
    }
    let repository = text("/data/repository/full_name").unwrap_or("");
    if repository != "Codertocat/Hello-World" {
        return json!({"reason": "another repository", "actions": []});
    }
    let title = text("/data/issue/title")
        .or_else(|| text("/data/pull_request/title"))
        .unwrap_or("untitled");
    json!({
        "reason": "a person's",
        "actions": [{"channel": "mail", "message": {"title": title, "text": repository}}],
    })
}
