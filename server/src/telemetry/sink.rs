//! A connection to an OpenTelemetry collector: OTLP over gRPC, or protobuf over HTTP. No more of either than one call
//! at a time needs, so that no client library comes along.

use crate::args::Environment;
use crate::config::SSL_CERT_FILE;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt::{Display, Formatter};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The port of OTLP over gRPC; over HTTP it is the next one.
const GRPC_PORT: u16 = 4317;
const HTTP_PORT: u16 = 4318;
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const HTTP_PATH: &str = "/v1/traces";
/// gRPC codes and HTTP statuses after which OTLP asks to try again.
const PASSING_CODES: [&str; 7] = ["1", "4", "8", "10", "11", "14", "15"];
const PASSING_STATUSES: [u16; 4] = [429, 502, 503, 504];
/// Bytes of an answer that are read.
const ANSWER: usize = 64 << 10;
/// Variables that name a file of authorities, the most particular first.
const NAMED_BY: [&str; 3] = ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE", SSL_CERT_FILE];
/// Where systems keep the authorities they trust.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why a message was not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It may be another time.
    Passing(String),
    /// It never will.
    Final(String),
}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let (Refusal::Passing(reason) | Refusal::Final(reason)) = self;
        f.write_str(reason)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
}

/// Where messages go.
pub(super) struct Sink {
    host: String,
    port: u16,
    protocol: Protocol,
    /// Of each request: absolute for HTTP/2, path and query for HTTP/1.
    uri: Uri,
    tls: Option<TlsConnector>,
    connection: Option<Connection>,
}

/// In the clear or not: one type, so that hyper's client is compiled once.
trait Pipe: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Pipe for S {}

enum Connection {
    Grpc(http2::SendRequest<Full<Bytes>>),
    Http(http1::SendRequest<Full<Bytes>>),
}

impl Sink {
    /// Where `endpoint` says. Nothing is connected yet. A path, or HTTP's own port, stands for HTTP, and anything
    /// else for gRPC. `variables` may name the authorities that its certificate is checked with.
    ///
    /// # Errors
    /// It is no URL of a collector, or there are no authorities to check its certificate with.
    pub(super) fn new(endpoint: &str, variables: &Environment) -> Result<Self, String> {
        // A query may hold a key.
        let shown = endpoint.split_once('?').map_or(endpoint, |(before, _)| before);
        let wrong = |why: &dyn Display| format!("OTLP endpoint `{shown}`: {why}");
        let uri: Uri = endpoint.parse().map_err(|error| wrong(&error))?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("http") => ("http", 80),
            Some("https") => ("https", 443),
            _ => return Err(wrong(&"not a URL that begins with http:// or https://")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong(&"no host"))?.to_owned();
        let path = uri.path().trim_end_matches('/');
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let (protocol, port, path) = match (path, uri.port_u16()) {
            ("", None) => (Protocol::Grpc, GRPC_PORT, GRPC_PATH.to_owned()),
            ("", Some(port)) if port != HTTP_PORT => (Protocol::Grpc, port, GRPC_PATH.to_owned()),
            (path, port) if path.ends_with(HTTP_PATH) => {
                (Protocol::Http, port.unwrap_or(default_port), path.to_owned())
            }
            (path, port) => (Protocol::Http, port.unwrap_or(default_port), format!("{path}{HTTP_PATH}")),
        };
        if protocol == Protocol::Grpc && !query.is_empty() {
            return Err(wrong(&"OTLP over gRPC has no query; a path before it (/v1/traces) stands for OTLP over HTTP"));
        }
        let uri = format!("{scheme}://{host}:{port}{path}{query}").parse().map_err(|error| wrong(&error))?;
        let tls = match scheme {
            "https" => Some(connector(protocol, variables).map_err(|error| wrong(&error))?),
            _ => None,
        };
        Ok(Sink { host, port, protocol, uri, tls, connection: None })
    }

    /// Forgets the connection; the next message opens another.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Sends a message and waits for the answer.
    ///
    /// # Errors
    /// It was not taken.
    pub(super) async fn send(&mut self, message: Bytes) -> Result<(), Refusal> {
        let request = self.request(message).map_err(|error| Refusal::Final(error.to_string()))?;
        let mut connection = match self.connection.take().filter(Connection::is_open) {
            Some(connection) => connection,
            None => self.connect().await.map_err(Refusal::Passing)?,
        };
        let answer = connection.send(request).await.map_err(|error| Refusal::Passing(error.to_string()))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER).collect().await.map_err(|error| Refusal::Passing(error.to_string()))?;
        self.connection = Some(connection);
        judge(self.protocol, head.status, &head.headers, body.trailers())
    }

    fn request(&self, message: Bytes) -> http::Result<Request<Full<Bytes>>> {
        match self.protocol {
            Protocol::Grpc => {
                // One message, not compressed.
                let mut framed = BytesMut::with_capacity(5 + message.len());
                framed.put_u8(0);
                framed.put_u32(message.len() as u32);
                framed.put(message);
                Request::post(&self.uri)
                    .header(CONTENT_TYPE, "application/grpc")
                    .header(TE, "trailers")
                    .body(Full::new(framed.freeze()))
            }
            Protocol::Http => {
                let host = self.uri.authority().map_or("", |authority| authority.as_str());
                let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
                Request::post(target)
                    .header(HOST, host)
                    .header(CONTENT_TYPE, "application/x-protobuf")
                    .body(Full::new(message))
            }
        }
    }

    async fn connect(&self) -> Result<Connection, String> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, self.port)).await.map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else { return Connection::open(self.protocol, Box::new(stream)).await };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let stream = tls.connect(name, stream).await.map_err(|error| error.to_string())?;
        Connection::open(self.protocol, Box::new(stream)).await
    }
}

impl Connection {
    async fn open(protocol: Protocol, stream: Box<dyn Pipe>) -> Result<Self, String> {
        let stream = TokioIo::new(stream);
        match protocol {
            Protocol::Grpc => {
                let shaken = http2::handshake(TokioExecutor::new(), stream).await;
                let (sender, connection) = shaken.map_err(|error| error.to_string())?;
                tokio::spawn(connection);
                Ok(Connection::Grpc(sender))
            }
            Protocol::Http => {
                let (sender, connection) = http1::handshake(stream).await.map_err(|error| error.to_string())?;
                tokio::spawn(connection);
                Ok(Connection::Http(sender))
            }
        }
    }

    fn is_open(&self) -> bool {
        match self {
            Connection::Grpc(sender) => !sender.is_closed(),
            Connection::Http(sender) => !sender.is_closed(),
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Connection::Grpc(sender) => sender.send_request(request).await,
            Connection::Http(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// What an answer means. gRPC's verdict is in the trailers, or in the headers where there is no message.
fn judge(
    protocol: Protocol,
    status: StatusCode,
    headers: &HeaderMap,
    trailers: Option<&HeaderMap>,
) -> Result<(), Refusal> {
    if !status.is_success() {
        let reason = format!("the collector answered {status}");
        let passing = PASSING_STATUSES.contains(&status.as_u16());
        return Err(if passing { Refusal::Passing(reason) } else { Refusal::Final(reason) });
    }
    if protocol == Protocol::Http {
        return Ok(());
    }
    let code = trailers.and_then(|trailers| trailers.get("grpc-status")).or_else(|| headers.get("grpc-status"));
    match code.and_then(|code| code.to_str().ok()) {
        Some("0") => Ok(()),
        Some(code) if PASSING_CODES.contains(&code) => Err(Refusal::Passing(format!("gRPC status {code}"))),
        Some(code) => Err(Refusal::Final(format!("gRPC status {code}"))),
        None => Err(Refusal::Passing("an answer without a gRPC status".into())),
    }
}

/// The authorities that are trusted: those of the file that a variable names, else the system's.
fn authorities(variables: &Environment) -> Result<RootCertStore, String> {
    let named = NAMED_BY.iter().find_map(|name| Some((format!("{name}: "), Path::new(variables.get(*name)?))));
    let system = || AUTHORITIES.into_iter().map(Path::new).find(|path| path.exists());
    let (place, file) = match named {
        Some(named) => named,
        None => {
            let missing = || format!("the system has no file of certificate authorities; {SSL_CERT_FILE} may name one");
            (String::new(), system().ok_or_else(missing)?)
        }
    };
    let wrong = |why: &dyn Display| format!("{place}{}: {why}", file.display());
    let text = std::fs::read(file).map_err(|error| wrong(&error))?;
    let mut roots = RootCertStore::empty();
    // Such files have entries that not every library reads; the rest counts.
    let (taken, _) = roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
    if taken == 0 {
        return Err(wrong(&"holds no certificate of an authority in PEM"));
    }
    Ok(roots)
}

/// TLS towards the collector.
fn connector(protocol: Protocol, variables: &Environment) -> Result<TlsConnector, String> {
    let roots = authorities(variables)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if protocol == Protocol::Grpc { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let place = |endpoint: &str| {
            let sink = Sink::new(endpoint, &Environment::new())?;
            Ok::<_, String>((sink.port, sink.protocol, sink.uri.to_string()))
        };
        let grpc = |authority: &str, port| Ok((port, Protocol::Grpc, format!("http://{authority}{GRPC_PATH}")));
        let http = |url: &str, port| Ok((port, Protocol::Http, url.to_owned()));
        assert_eq!(place("http://c:4317"), grpc("c:4317", 4317));
        assert_eq!(place("http://c:4317/"), grpc("c:4317", 4317));
        assert_eq!(place("http://c"), grpc("c:4317", 4317));
        assert_eq!(place("http://[::1]:9"), grpc("[::1]:9", 9));
        assert_eq!(place("http://c:4318"), http("http://c:4318/v1/traces", 4318));
        assert_eq!(place("http://c:4318/v1/traces"), http("http://c:4318/v1/traces", 4318));
        assert_eq!(place("http://c/otel"), http("http://c:80/otel/v1/traces", 80));
        assert_eq!(place("http://c/v1/traces?key=a%2Fb"), http("http://c:80/v1/traces?key=a%2Fb", 80));
        assert_eq!(place("http://c:4318/?key=a"), http("http://c:4318/v1/traces?key=a", 4318));
        for wrong in ["c:4317", "ftp://c", "http://", "", "http://a b", "http://c:4317?key=a"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn authorities_lie_where_variables_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["c".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(path("authority"), certificate.pem()).unwrap();
        std::fs::write(path("empty"), "no certificate\n").unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        let reason = |endpoint: &str, said: &[(&str, &str)]| {
            let variables = said.iter().map(|(name, file)| ((*name).to_owned(), path(file))).collect();
            Sink::new(endpoint, &variables).err()
        };
        for name in NAMED_BY {
            assert_eq!(reason("https://c", &[(name, "authority")]), None, "{name}");
            for file in ["empty", "folder", "missing"] {
                let reason = reason("https://c", &[(name, file)]).unwrap();
                assert!(
                    reason.starts_with(&format!("OTLP endpoint `https://c`: {name}: {}: ", path(file))),
                    "{reason}"
                );
            }
            assert_eq!(reason("http://c", &[(name, "missing")]), None, "without TLS nobody is trusted");
        }
        assert_eq!(reason("https://c", &[(NAMED_BY[1], "authority"), (SSL_CERT_FILE, "missing")]), None);
    }

    #[test]
    fn verdicts() {
        let judged = |protocol, status, code: Option<&str>| {
            let mut trailers = HeaderMap::new();
            if let Some(code) = code {
                trailers.insert("grpc-status", code.parse().unwrap());
            }
            match judge(protocol, StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), Some(&trailers)) {
                Ok(()) => "taken",
                Err(Refusal::Passing(_)) => "passing",
                Err(Refusal::Final(_)) => "final",
            }
        };
        assert_eq!(judged(Protocol::Http, 200, None), "taken");
        assert_eq!(judged(Protocol::Http, 503, None), "passing");
        assert_eq!(judged(Protocol::Http, 400, None), "final");
        assert_eq!(judged(Protocol::Grpc, 200, Some("0")), "taken");
        assert_eq!(judged(Protocol::Grpc, 200, Some("14")), "passing");
        assert_eq!(judged(Protocol::Grpc, 200, Some("3")), "final");
        assert_eq!(judged(Protocol::Grpc, 200, None), "passing");
        assert_eq!(judged(Protocol::Grpc, 404, None), "final");
    }
}
