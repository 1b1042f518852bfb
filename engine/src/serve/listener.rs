//! The accept loop: how many connections at once, how long one may take to say what it wants, what becomes
//! of bodies that nobody read, and a stop that lets requests under way finish.
//!
//! `axum::serve` does the same without the two bounds: one client could hold every file handle with
//! requests that never end their headers.

use super::pieces::Pieces;
use super::rest::{Left, Rest};
use super::tls::Tls;
use axum::Router;
use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

/// Serves until cancelled, then until the last request under way is answered.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    app: Router,
    connections_max: usize,
    headers_timeout: Duration,
    cancel: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(connections_max));
    let connections = TaskTracker::new();
    loop {
        // At the limit nothing is accepted: further clients wait in the system's queue.
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = cancel.cancelled() => break,
        };
        match accepted {
            Ok((connection, _)) => {
                let (app, cancel) = (app.clone(), cancel.clone());
                let acceptor = tls.as_ref().map(|tls| tls.acceptor());
                connections.spawn(async move {
                    // Answers are small and wanted at once.
                    let _ = connection.set_nodelay(true);
                    match acceptor {
                        None => serve_one(connection, app, headers_timeout, cancel).await,
                        Some(acceptor) => {
                            let shaken = acceptor.accept(connection);
                            match tokio::time::timeout(headers_timeout, shaken).await {
                                Ok(Ok(stream)) => {
                                    serve_one(stream, app, headers_timeout, cancel).await;
                                }
                                Ok(Err(error)) => {
                                    tracing::debug!(%error, "a client and the engine did not agree on TLS");
                                }
                                Err(_) => tracing::debug!("a client took too long over TLS"),
                            }
                        }
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // No handles left, most likely: some are freed as requests end.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve_one(
    connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    headers_timeout: Duration,
    cancel: CancellationToken,
) {
    let activity = Arc::new(Activity::new());
    let seen = activity.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let under_way = UnderWay::new(&seen);
        let left = Left::default();
        let request = Rest::of(request, &left);
        // A router is always ready.
        let answered = app.clone().call(request.map(Body::new));
        let seen = seen.clone();
        async move {
            let answered = answered.await;
            drop(under_way);
            // What is read of the answer counts; what is not read does not.
            answered.map(|mut answer| {
                if left.ends_the_connection() {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(CONNECTION, close);
                }
                answer.map(|body| {
                    Body::new(Pieces::of(body).map_frame(move |frame| {
                        seen.touch();
                        frame
                    }))
                })
            })
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(BUFFER_BYTES_MAX)
        .header_read_timeout(headers_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(headers_timeout)
        .keep_alive_timeout(headers_timeout);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = activity.idle(headers_timeout) => {
            tracing::debug!("a connection on which nothing happened is closed");
            return;
        }
        () = cancel.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // Clients break off all day; that is no fault of ours.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// What one connection holds of a request's headers, and of an answer that is not read.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Requests that one connection has under way.
const STREAMS_MAX: u32 = 64;
/// How long a connection is kept on which no request begins, and of no answer is anything read.
const IDLE: Duration = Duration::from_secs(75);

/// What happens on a connection. Pings, which cost nothing, do not count.
struct Activity {
    accepted: Instant,
    /// When something happened last, in milliseconds since then; 0 before the first request.
    last_ms: AtomicU64,
    under_way: AtomicUsize,
}

impl Activity {
    fn new() -> Self {
        Self {
            accepted: Instant::now(),
            last_ms: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
        }
    }

    fn touch(&self) {
        let now_ms = self.accepted.elapsed().as_millis() as u64;
        self.last_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// Returns when nothing has happened for too long. What is under way has time limits of its own.
    async fn idle(&self, first_timeout: Duration) {
        loop {
            let until = match self.last_ms.load(Ordering::Relaxed) {
                0 => first_timeout,
                last_ms => Duration::from_millis(last_ms) + IDLE,
            };
            let left = until.saturating_sub(self.accepted.elapsed());
            if left.is_zero() {
                if self.under_way.load(Ordering::Relaxed) == 0 {
                    return;
                }
                tokio::time::sleep(first_timeout).await;
            } else {
                tokio::time::sleep(left).await;
            }
        }
    }
}

/// A request that is being answered.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.touch();
        activity.under_way.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.touch();
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
