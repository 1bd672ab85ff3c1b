//! TLS on the listener: protocols, certificates that change under connections, clients that dawdle.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use server::edge::activity::Timeouts;
use server::edge::listener::{self, Phase, Services};
use server::edge::tls::{Files, Tls};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

struct Certificate {
    pem: String,
    key: String,
    der: CertificateDer<'static>,
}

fn certificate_until(year: i32) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    Certificate { pem: certificate.pem(), key: key.serialize_pem(), der: certificate.der().clone() }
}

fn certificate() -> Certificate {
    certificate_until(2096)
}

fn write(directory: &Path, certificate: &Certificate) -> Files {
    let files = Files { certificate: directory.join("tls.crt"), key: directory.join("tls.key") };
    fs::write(&files.certificate, &certificate.pem).unwrap();
    fs::write(&files.key, &certificate.key).unwrap();
    files
}

struct Server {
    address: SocketAddr,
    phase: watch::Sender<Phase>,
    ended: tokio::task::JoinHandle<()>,
}

async fn serve(tls: Arc<Tls>) -> Server {
    let rest = Router::new().route("/hello", get(|| async { "hello" }));
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let grpc = tonic::service::Routes::new(health).into_axum_router();
    let minute = Duration::from_secs(60);
    let options = listener::Options::new(Timeouts { header: minute, idle: minute, stalled: minute }, 1024, Some(tls));
    let (phase, watching) = watch::channel(Phase::Serving);
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let ended = tokio::spawn(listener::serve(socket, Services::new(rest, grpc), options, watching));
    Server { address, phase, ended }
}

fn open(files: Files) -> Arc<Tls> {
    Tls::open(files, Duration::from_millis(500)).unwrap()
}

type Versions<'a> = &'a [&'static SupportedProtocolVersion];
const VERSIONS: Versions<'static> = rustls::ALL_VERSIONS;

fn config(trusted: &[&Certificate], versions: Versions<'_>, alpn: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|certificate| roots.add(certificate.der.clone()).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = if alpn.is_empty() { Vec::new() } else { vec![alpn.as_bytes().to_vec()] };
    config
}

async fn connect(server: &Server, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    shake_hands(TcpStream::connect(server.address).await?, config).await
}

async fn shake_hands(stream: TcpStream, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn h1(server: &Server, config: ClientConfig) -> Result<String, Box<dyn std::error::Error>> {
    hello(connect(server, config).await?).await
}

async fn hello(stream: TlsStream<TcpStream>) -> Result<String, Box<dyn std::error::Error>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/hello").header("host", "localhost").body(Empty::<Bytes>::new())?;
    let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec())?)
}

/// Does the server show this certificate to those who connect now?
async fn shows(server: &Server, certificate: &Certificate) -> bool {
    h1(server, config(&[certificate], VERSIONS, "http/1.1")).await.is_ok()
}

#[tokio::test]
async fn every_protocol_on_one_port() {
    let (directory, mine) = (tempfile::tempdir().unwrap(), certificate());
    let server = serve(open(write(directory.path(), &mine))).await;
    for versions in [VERSIONS, &[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        for alpn in ["http/1.1", ""] {
            assert_eq!(h1(&server, config(&[&mine], versions, alpn)).await.unwrap(), "hello");
        }
    }
    let stream = connect(&server, config(&[&mine], VERSIONS, "h2")).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/hello").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);

    let stream = connect(&server, config(&[&mine], VERSIONS, "h2")).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let channel = tower::service_fn(move |request: Request<tonic::body::Body>| sender.clone().send_request(request));
    let mut health = HealthClient::with_origin(channel, "https://localhost".parse().unwrap());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status, 1);

    assert!(connect(&server, config(&[&mine], VERSIONS, "spdy/3")).await.is_err(), "no protocol in common");
    assert!(!shows(&server, &certificate()).await, "a certificate that the client does not trust");
}

/// As Kubernetes mounts a secret: `tls.crt -> ..data/tls.crt`, `..data -> ..<number>`.
fn mount(directory: &Path, number: u32, certificate: &Certificate) {
    let data = directory.join(format!("..{number}"));
    fs::create_dir(&data).unwrap();
    write(&data, certificate);
    let link = directory.join("..link");
    std::os::unix::fs::symlink(data.file_name().unwrap(), &link).unwrap();
    fs::rename(&link, directory.join("..data")).unwrap();
}

#[tokio::test]
async fn certificates_change_under_connections() {
    let directory = tempfile::tempdir().unwrap();
    let all: Vec<Certificate> = (0..4).map(|_| certificate()).collect();
    mount(directory.path(), 0, &all[0]);
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(file), directory.path().join(file)).unwrap();
    }
    let path = |file| directory.path().join(file);
    let tls = open(Files { certificate: path("tls.crt"), key: path("tls.key") });
    let server = Arc::new(serve(tls.clone()).await);
    let watching = tokio::spawn(tls.watch());

    // A connection that was there before and stays, and new ones all the time.
    let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let trusted: Vec<&Certificate> = all.iter().collect();
    let stream = connect(&server, config(&trusted, VERSIONS, "h2")).await.unwrap();
    let (mut old, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let load = {
        let config = config(&trusted, VERSIONS, "http/1.1");
        let (server, stop, requests) = (server.clone(), stop.clone(), requests.clone());
        tokio::spawn(async move {
            while !stop.load(Relaxed) {
                // Without resumption: every connection looks at the certificate.
                let mut config = config.clone();
                config.resumption = rustls::client::Resumption::disabled();
                assert_eq!(h1(&server, config).await.unwrap(), "hello");
                let request = Request::get("https://localhost/hello").body(Empty::<Bytes>::new()).unwrap();
                assert_eq!(old.send_request(request).await.unwrap().status(), 200);
                requests.fetch_add(2, Relaxed);
            }
        })
    };
    for (number, certificate) in all.iter().enumerate().skip(1) {
        mount(directory.path(), number as u32, certificate);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !shows(&server, certificate).await {
            assert!(Instant::now() < deadline, "certificate {number} is not shown");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!shows(&server, &all[number - 1]).await);
    }
    stop.store(true, Relaxed);
    load.await.unwrap();
    assert!(requests.load(Relaxed) > 20);
    watching.abort();
}

#[tokio::test]
async fn what_cannot_be_used_leaves_the_old_certificate() {
    let (directory, old, new) = (tempfile::tempdir().unwrap(), certificate(), certificate());
    let files = write(directory.path(), &old);
    let tls = open(files.clone());
    let server = serve(tls.clone()).await;
    let spoil: [(&str, &dyn Fn()); 6] = [
        ("garbage", &|| fs::write(&files.certificate, "garbage").unwrap()),
        ("half of it", &|| fs::write(&files.certificate, &new.pem[..new.pem.len() / 2]).unwrap()),
        ("nothing", &|| fs::write(&files.certificate, "").unwrap()),
        ("another's key", &|| fs::write(&files.certificate, &new.pem).unwrap()),
        ("expired", &|| drop(write(directory.path(), &certificate_until(2001)))),
        ("missing", &|| fs::remove_file(&files.key).unwrap()),
    ];
    for (what, spoil) in spoil {
        spoil();
        tls.refresh();
        tls.refresh();
        assert!(shows(&server, &old).await, "{what}");
    }
    write(directory.path(), &new);
    tls.refresh();
    assert!(shows(&server, &new).await && !shows(&server, &old).await);

    fs::write(&files.key, "garbage").unwrap();
    let error = Tls::open(files, Duration::from_secs(1)).unwrap_err();
    assert!(error.contains("tls.key"), "at the start there is no old one: {error}");
}

#[tokio::test]
async fn handshakes_that_stall_are_closed() {
    let (directory, mine) = (tempfile::tempdir().unwrap(), certificate());
    let server = serve(open(write(directory.path(), &mine))).await;
    // Nothing at all, the beginning of a record, and no TLS.
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let start = Instant::now();
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "still open after {:?}", start.elapsed());
        assert!(shows(&server, &mine).await);
    }
}

#[tokio::test]
async fn a_handshake_under_way_is_finished_while_the_server_leaves() {
    let (directory, mine) = (tempfile::tempdir().unwrap(), certificate());
    let hour = Duration::from_secs(3600);
    let server = serve(Tls::open(write(directory.path(), &mine), hour).unwrap()).await;
    let begun = TcpStream::connect(server.address).await.unwrap();
    // This one is given a second, and no more.
    let _stalled = TcpStream::connect(server.address).await.unwrap();
    // Later ones are accepted later: now both are.
    assert!(shows(&server, &mine).await);
    server.phase.send(Phase::Closing).unwrap();
    let stream = shake_hands(begun, config(&[&mine], VERSIONS, "http/1.1")).await.unwrap();
    assert_eq!(hello(stream).await.unwrap(), "hello");
    tokio::time::timeout(Duration::from_secs(30), server.ended).await.unwrap().unwrap();
}
