//! TLS for the listeners, from PEM files that are read again when they change. What cannot be used is reported, and
//! what served before goes on serving: a rotation gone wrong must not take the server down.
//!
//! Nothing here watches for client certificates to be revoked.

use super::expiry;
use crate::metrics;
use crate::stamp::Stamps;
use arc_swap::ArcSwap;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
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
    /// Who signs clients' certificates. Without it clients need none.
    pub client_authority: Option<PathBuf>,
}

impl Files {
    /// As they are now, behind all symbolic links: Kubernetes changes a mounted secret by swapping the link `..data`.
    fn stamps(&self) -> Stamps {
        Stamps::of([&self.certificate, &self.key].into_iter().chain(&self.client_authority).cloned())
    }
}

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// What the listeners need for TLS.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    handshake: Duration,
    current: ArcSwap<Loaded>,
    /// The last files that could not be used: they are reported once, and tried at every look in case they were read
    /// while they were being written.
    refused: Mutex<Option<Stamps>>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// Seconds since 1970.
    expires: Option<u64>,
    stamps: Stamps,
}

impl Loaded {
    fn expired(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expires.is_some_and(|expires| expires <= now.as_secs())
    }
}

impl Tls {
    /// Reads the files. A handshake may take as long as `handshake`.
    ///
    /// # Errors
    /// A file cannot be read, or they do not fit together.
    pub fn open(files: Files, handshake: Duration) -> Result<Arc<Self>, String> {
        let loaded = load(&files)?;
        if loaded.expired() {
            tracing::warn!(certificate = %files.certificate.display(), "the TLS certificate has expired");
        }
        metrics::certificate_expires(loaded.expires);
        Ok(Arc::new(Tls { files, handshake, current: ArcSwap::from_pointee(loaded), refused: Mutex::new(None) }))
    }

    /// Looks at the files every second, forever.
    pub async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let tls = self.clone();
            // A network file system may hang; the runtime must not.
            let _ = tokio::task::spawn_blocking(move || tls.refresh()).await;
        }
    }

    /// Reads the files again if they changed; keeps what served before when they cannot be used.
    pub fn refresh(&self) {
        let current = self.current.load();
        let seen = self.files.stamps();
        if seen == current.stamps {
            return;
        }
        let loaded = load(&self.files).and_then(|loaded| {
            if loaded.expired() && !current.expired() {
                Err("the new certificate has expired".into())
            } else {
                Ok(loaded)
            }
        });
        let mut refused = self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match loaded {
            Ok(loaded) => {
                tracing::info!(certificate = %self.files.certificate.display(), "TLS certificate read again");
                metrics::certificate_expires(loaded.expires);
                self.current.store(Arc::new(loaded));
                *refused = None;
            }
            Err(reason) => {
                if refused.as_ref() != Some(&seen) {
                    tracing::warn!(%reason, "the new TLS files cannot be used; the old certificate stays");
                    *refused = Some(seen);
                }
            }
        }
    }

    /// Shakes hands, for no longer than `most`. `None`: the client did not, or not in time.
    pub(super) async fn accept(&self, stream: TcpStream, most: Duration) -> Option<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(self.current.load().config.clone());
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
    // Looked at before they are read: whoever writes to them in the meantime makes them differ at the next look.
    let stamps = files.stamps();
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| at(&files.key, pem_error(&error)))?;
    let expires = chain.iter().filter_map(|certificate| expiry::not_after(certificate)).min();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| error.to_string())?;
    let builder = match &files.client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| at(path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| at(path, error))?)
        }
    };
    // Refuses a key that is not the certificate's, which is what a half-done rotation looks like.
    let mut config = builder.with_single_cert(chain, key).map_err(|error| at(&files.certificate, error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Loaded { config: Arc::new(config), expires, stamps })
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
