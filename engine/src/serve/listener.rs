//! The accept loop: how many connections at once, how long one may take to say what it wants, and a
//! stop that lets requests under way finish.
//!
//! `axum::serve` does the same without the two bounds: one client could hold every file handle with
//! requests that never end their headers.

use super::tls::Tls;
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
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
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        // A router is always ready.
        app.clone().call(request.map(Body::new))
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(headers_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(headers_timeout)
        .keep_alive_timeout(headers_timeout);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
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
