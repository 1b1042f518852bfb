//! TLS at the door, with a certificate and its key from files. Whoever renews certificates replaces the
//! files, so they can be read again while the engine runs.

use super::StartError;
use crate::config::Server;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;

pub(super) struct Tls {
    cert: PathBuf,
    key: PathBuf,
    acceptor: RwLock<TlsAcceptor>,
}

impl Tls {
    /// `None` where no certificate is configured: then somebody else is at the door.
    pub(super) fn open(server: &Server) -> Result<Option<Arc<Self>>, StartError> {
        let (cert, key) = (server.tls_cert.clone(), server.tls_key.clone());
        if cert.as_os_str().is_empty() {
            return Ok(None);
        }
        let acceptor = RwLock::new(read(&cert, &key)?);
        Ok(Some(Arc::new(Self {
            cert,
            key,
            acceptor,
        })))
    }

    /// Reads the files again, for the connections to come.
    ///
    /// # Errors
    /// When they cannot be used; then all stays as it was.
    pub(super) fn reload(&self) -> Result<(), StartError> {
        let new = read(&self.cert, &self.key)?;
        let mut acceptor = self
            .acceptor
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *acceptor = new;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let acceptor = self.acceptor.read();
        acceptor.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(cert: &Path, key: &Path) -> Result<TlsAcceptor, StartError> {
    let failed = |path: &Path, error: String| StartError::File {
        path: path.to_owned(),
        error,
    };
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<_, _>>);
    let chain: Vec<CertificateDer<'_>> =
        chain.map_err(|error| failed(cert, format!("tls_cert cannot be read: {error}")))?;
    if chain.is_empty() {
        let error = "tls_cert holds no certificate in PEM form".to_owned();
        return Err(failed(cert, error));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| failed(key, format!("tls_key cannot be read: {error}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| {
            config
                .with_no_client_auth()
                .with_single_cert(chain, private)
        });
    let mut config =
        config.map_err(|error| failed(cert, format!("it does not go with tls_key: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
