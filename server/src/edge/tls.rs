//! TLS for the listeners, from PEM files that are read again when they change. What cannot be used is reported, and
//! what served before goes on serving: a rotation gone wrong must not take the server down.
//!
//! Clients are not asked for certificates: they show API keys (`keys.rs`).

use super::expiry;
use super::followed::{self, Followed};
use crate::clock::since_1970;
use crate::metrics;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Where certificates lie.
#[derive(Clone, Debug)]
pub struct Files {
    /// The server's chain, its own certificate first.
    pub certificate: PathBuf,
    /// The private key of the first certificate.
    pub key: PathBuf,
}

/// What the listeners need for TLS.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    handshake: Duration,
    loaded: Followed<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// Seconds since 1970.
    expires: Option<u64>,
}

impl Loaded {
    fn expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= since_1970().as_secs())
    }
}

impl Tls {
    /// Reads the files. A handshake may take as long as `handshake`.
    ///
    /// # Errors
    /// A file cannot be read, or they do not fit together.
    pub fn open(files: Files, handshake: Duration) -> Result<Arc<Self>, String> {
        let loaded = Followed::open(vec![files.certificate.clone(), files.key.clone()], || load(&files))?;
        let (expired, expires) = (loaded.current().expired(), loaded.current().expires);
        if expired {
            tracing::warn!(certificate = %files.certificate.display(), "the TLS certificate has expired");
        }
        metrics::certificate_expires(expires);
        Ok(Arc::new(Tls { files, handshake, loaded }))
    }

    /// Looks at the files every second, forever.
    pub async fn watch(self: Arc<Self>) {
        followed::watch(self, Self::refresh).await;
    }

    /// Reads the files again if they changed; keeps what served before when they cannot be used.
    pub fn refresh(&self) {
        let told = self.loaded.look(|| {
            let loaded = load(&self.files)?;
            if loaded.expired() && !self.loaded.current().expired() {
                return Err("the new certificate has expired".into());
            }
            Ok(loaded)
        });
        match told {
            Some(Ok(loaded)) => {
                tracing::info!(certificate = %self.files.certificate.display(), "TLS certificate read again");
                metrics::certificate_expires(loaded.expires);
            }
            Some(Err(reason)) => {
                tracing::warn!(%reason, "the new TLS files cannot be used; the old certificate stays");
            }
            None => {}
        }
    }

    /// Shakes hands, for no longer than `most`. `None`: the client did not, or not in time.
    pub(super) async fn accept(&self, stream: TcpStream, most: Duration) -> Option<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(self.loaded.current().config.clone());
        match tokio::time::timeout(self.handshake.min(most), acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            // Port scanners and plaintext clients come here: no reason to fill the log.
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::debug!("TLS handshake took too long");
                None
            }
        }
    }
}

/// Errors name the file.
fn load(files: &Files) -> Result<Loaded, String> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| at(&files.key, pem_error(&error)))?;
    let expires = chain.iter().filter_map(|certificate| expiry::not_after(certificate)).min();
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| error.to_string())?
        .with_no_client_auth();
    // Refuses a key that is not the certificate's, which is what a half-done rotation looks like.
    let mut config = builder.with_single_cert(chain, key).map_err(|error| at(&files.certificate, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), expires })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = read.map_err(|error| at(path, pem_error(&error)))?;
    if chain.is_empty() { Err(at(path, "no certificate in PEM")) } else { Ok(chain) }
}

/// What is wrong with a PEM file. The library shows parts of it as lists of numbers.
fn pem_error(error: &pem::Error) -> String {
    let shown = |part: &[u8]| {
        let text = String::from_utf8_lossy(part);
        text.trim().escape_debug().take(LONGEST_PART).collect::<String>()
    };
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("the line that ends the section {} is missing: the file is cut off", shown(end_marker))
        }
        pem::Error::IllegalSectionStart { line } => {
            format!("'{}' begins no section: expected a line like -----BEGIN CERTIFICATE-----", shown(line))
        }
        other => other.to_string(),
    }
}

/// Characters of a file that an error shows.
const LONGEST_PART: usize = 64;

fn at(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
