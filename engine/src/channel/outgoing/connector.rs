//! How the HTTP client gets its connections: to addresses that the guard lets through, with TLS where
//! the address of a receiver says so, and tidied.

use super::tidied::Tidied;
use crate::channel::guard::Guard;
use hyper::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tower_service::Service;

type BoxError = Box<dyn StdError + Send + Sync>;

/// How often the kernel asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);

pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// Makes connections; each within a time, in which all of a host's addresses have their share.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector<Guard>,
    tls: TlsConnector,
    within: Duration,
}

/// A connection to a receiver.
type Line = TokioIo<Tidied<Box<dyn Duplex>>>;

impl Connector {
    pub(super) fn new(guard: Guard, tls: &rustls::ClientConfig, within: Duration) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(guard);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_connect_timeout(Some(within));
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            tcp,
            tls: TlsConnector::from(Arc::new(tls)),
            within,
        }
    }

    async fn connect(mut self, uri: Uri) -> Result<Line, BoxError> {
        let host = uri.host().unwrap_or_default();
        let name = match uri.scheme_str() {
            Some("https") => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                Some(ServerName::try_from(host.to_owned())?)
            }
            _ => None,
        };
        let stream = self.tcp.call(uri).await?.into_inner();
        let stream: Box<dyn Duplex> = match name {
            Some(name) => Box::new(self.tls.connect(name, stream).await?),
            None => Box::new(stream),
        };
        Ok(TokioIo::new(Tidied::new(stream)))
    }
}

impl Service<Uri> for Connector {
    type Response = Line;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Line, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connector, within) = (self.clone(), self.within);
        Box::pin(async move {
            match tokio::time::timeout(within, connector.connect(uri)).await {
                Ok(connected) => connected,
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        })
    }
}

impl Service<Name> for Guard {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.clone();
        // The port is the connector's to set.
        Box::pin(async move {
            let found = guard.resolve(name.as_str(), 0).await;
            found.map(Vec::into_iter)
        })
    }
}

impl Connection for Tidied<Box<dyn Duplex>> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
