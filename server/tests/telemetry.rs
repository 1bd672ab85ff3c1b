//! Telemetry around the listener: ids, logs and traces, and sinks that fail.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use server::args::Environment;
use server::edge::activity::Timeouts;
use server::edge::listener::{self, Phase, Services};
use server::telemetry::{self, Format, Guard, Options};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tracing::level_filters::LevelFilter;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A server with one route, on the current thread's runtime and with its telemetry.
struct Server {
    address: SocketAddr,
    _phase: watch::Sender<Phase>,
}

async fn serve() -> Server {
    let rest = Router::new().route("/hello/{who}", get(|Path(who): Path<String>| async move { who }));
    let second = Duration::from_secs(60);
    let options = listener::Options::new(Timeouts { header: second, idle: second, stalled: second }, 64, None);
    let (phase, watching) = watch::channel(Phase::Serving);
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let services = Services::new(rest, Router::new());
    tokio::spawn(listener::serve(socket, services, options, watching));
    Server { address, _phase: phase }
}

struct Client(http1::SendRequest<Empty<Bytes>>);

impl Client {
    async fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Client(sender)
    }

    async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> HeaderMap {
        let mut request = Request::get(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.0.ready().await.unwrap();
        let response = self.0.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        body.collect().await.unwrap();
        head.headers
    }
}

/// What is logged and traced on this thread goes to `out` and `endpoint` while the second value lives.
fn telemetry(
    level: LevelFilter,
    endpoint: Option<String>,
    out: impl Write + Send + 'static,
) -> (Guard, tracing::dispatcher::DefaultGuard) {
    let options = Options { level, format: Format::Json, otlp_endpoint: endpoint, endpoint_of_cluster: false };
    let (dispatch, guard) = telemetry::build(&options, &Environment::new(), out, false).unwrap();
    (guard, tracing::dispatcher::set_default(&dispatch))
}

/// A collector: (port, calls as path, content type and message).
async fn collector(tls: Option<TlsAcceptor>) -> (u16, mpsc::Receiver<(String, String, Bytes)>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let (calls, received) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            let (calls, tls) = (calls.clone(), tls.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let calls = calls.clone();
                async move {
                    let path = request.uri().path_and_query().unwrap().as_str().to_owned();
                    let kind = request.headers()["content-type"].to_str().unwrap().to_owned();
                    let message = request.into_body().collect().await.unwrap().to_bytes();
                    calls.send((path, kind, message)).await.unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    let frames =
                        [Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(trailers))];
                    let body = http_body_util::StreamBody::new(tokio_stream::iter(frames));
                    Ok::<_, Infallible>(
                        Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
                    )
                }
            });
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = match tls {
                    None => builder.serve_connection(TokioIo::new(stream), service).await,
                    Some(tls) => {
                        let stream = tls.accept(stream).await.unwrap();
                        builder.serve_connection(TokioIo::new(stream), service).await
                    }
                };
            });
        }
    });
    (port, received)
}

fn spans(message: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(message).unwrap();
    let resource = request.resource_spans[0].resource.as_ref().unwrap();
    assert!(resource.attributes.iter().any(|attribute| attribute.key == "service.name"));
    request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn arrives(endpoint: impl Fn(u16) -> String, path: &str, kind: &str, skip: usize) {
    let (port, mut calls) = collector(None).await;
    let (guard, _default) = telemetry(LevelFilter::INFO, Some(endpoint(port)), std::io::sink());
    let server = serve().await;
    let mut client = Client::connect(&server).await;
    client.get("/hello/a", &[("traceparent", &format!("00-{TRACE}-{PARENT}-01"))]).await;
    client.get("/hello/b", &[("traceparent", &format!("00-{TRACE}-{PARENT}-00"))]).await;
    client.get("/hello/c", &[("traceparent", &format!("00-{TRACE}-{PARENT}-01!"))]).await;
    client.get("/elsewhere", &[]).await;
    let mut spans = Vec::new();
    while spans.len() < 3 {
        let (called, content, message) = calls.recv().await.unwrap();
        assert_eq!((called.as_str(), content.as_str()), (path, kind));
        spans.extend(self::spans(&message[skip..]));
    }
    assert_eq!(spans.len(), 3, "the caller did not want one of them");
    assert_eq!((hex(&spans[0].trace_id), hex(&spans[0].parent_span_id)), (TRACE.into(), PARENT.into()));
    assert_eq!((spans[0].name.as_str(), spans[0].kind), ("GET /hello/{who}", 2));
    let attributes = format!("{:?}", spans[0].attributes);
    for part in ["http.response.status_code", "IntValue(200)", "/hello/a", "request_id"] {
        assert!(attributes.contains(part), "{part} in {attributes}");
    }
    assert!(spans[1].trace_id != spans[0].trace_id && spans[1].parent_span_id.is_empty(), "a malformed parent is none");
    assert_eq!(spans[2].name, "GET");
    // What was recorded last is sent on leaving.
    client.get("/hello/d", &[]).await;
    drop(client);
    tokio::task::spawn_blocking(move || drop(guard)).await.unwrap();
    // A batch whose answer was not read before leaving comes again: sent twice rather than lost.
    let last = async {
        loop {
            let again = self::spans(&calls.recv().await.unwrap().2[skip..]);
            if again.iter().any(|span| format!("{:?}", span.attributes).contains("/hello/d")) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), last).await.unwrap();
}

#[tokio::test]
async fn spans_arrive_over_grpc() {
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    arrives(|port| format!("http://127.0.0.1:{port}"), path, "application/grpc", 5).await;
}

#[tokio::test]
async fn spans_arrive_over_http() {
    let path = "/v1/traces?key=a%2Fb";
    arrives(|port| format!("http://localhost:{port}{path}"), path, "application/x-protobuf", 0).await;
}

#[tokio::test]
async fn spans_arrive_where_a_named_authority_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let authority = folder.path().join("authority.pem");
    std::fs::write(&authority, certificate.pem()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let (port, mut calls) = collector(Some(TlsAcceptor::from(Arc::new(config)))).await;
    let endpoint = Some(format!("https://localhost:{port}/v1/traces"));
    let options =
        Options { level: LevelFilter::INFO, format: Format::Json, otlp_endpoint: endpoint, endpoint_of_cluster: false };
    let mut variables = Environment::new();
    variables.insert("OTEL_EXPORTER_OTLP_CERTIFICATE".into(), authority.display().to_string());
    variables.insert("OTEL_SERVICE_NAME".into(), "named".into());
    let (dispatch, guard) = telemetry::build(&options, &variables, std::io::sink(), false).unwrap();
    let default = tracing::dispatcher::set_default(&dispatch);
    let server = serve().await;
    Client::connect(&server).await.get("/hello/a", &[]).await;
    let (path, _, message) = tokio::time::timeout(Duration::from_secs(10), calls.recv()).await.unwrap().unwrap();
    assert_eq!(path, "/v1/traces");
    assert_eq!(spans(&message)[0].name, "GET /hello/{who}");
    let resources = ExportTraceServiceRequest::decode(message).unwrap().resource_spans;
    assert!(format!("{:?}", resources[0].resource).contains("named"));
    drop((default, dispatch));
    tokio::task::spawn_blocking(move || drop(guard)).await.unwrap();
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_spans_and_nothing_else() {
    let recorded = server::metrics::install().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(silent.accept().await.unwrap());
        }
    });
    let (guard, _default) = telemetry(LevelFilter::INFO, Some(endpoint), std::io::sink());
    let server = serve().await;
    let mut client = Client::connect(&server).await;
    let mut slowest = Duration::ZERO;
    // More than the queue and the batches in between hold.
    for _ in 0..6000 {
        let start = Instant::now();
        client.get("/hello/a", &[]).await;
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let dropped = recorded.render();
    let dropped = dropped.lines().find_map(|line| line.strip_prefix("tensorgate_spans_dropped_total ")).unwrap();
    assert!(dropped.parse::<u64>().unwrap() > 500, "{dropped}");
    let start = Instant::now();
    tokio::task::spawn_blocking(move || drop(guard)).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(4500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_log_that_nobody_reads_costs_lines_and_nothing_else() {
    let (reader, pipe) = std::io::pipe().unwrap();
    let (guard, _default) = telemetry(LevelFilter::DEBUG, None, pipe);
    let server = serve().await;
    let mut client = Client::connect(&server).await;
    let (path, id) = (format!("/hello/{}", "x".repeat(200)), "i".repeat(128));
    let mut slowest = Duration::ZERO;
    for _ in 0..5000 {
        let start = Instant::now();
        client.get(&path, &[("x-request-id", &id)]).await;
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(guard.dropped() > 0);
    let start = Instant::now();
    tokio::task::spawn_blocking(move || drop(guard)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(2));
    drop(reader);
}

#[tokio::test]
async fn ids_are_echoed_or_made() {
    let server = serve().await;
    let mut client = Client::connect(&server).await;
    for kept in ["abc-123", &"x".repeat(128)] {
        for path in ["/hello/a", "/no/such/route"] {
            assert_eq!(client.get(path, &[("x-request-id", kept)]).await["x-request-id"], kept);
        }
    }
    for replaced in ["has space", "", &"x".repeat(129)] {
        let headers = client.get("/hello/a", &[("x-request-id", replaced)]).await;
        let id = headers["x-request-id"].to_str().unwrap();
        assert!(id != replaced && id.len() == 36, "{id}");
    }
    let made = client.get("/hello/a", &[]).await["x-request-id"].clone();
    assert_ne!(made, client.get("/hello/a", &[]).await["x-request-id"]);
}

#[tokio::test]
async fn at_level_debug_each_request_has_a_line() {
    let (mut reader, pipe) = std::io::pipe().unwrap();
    let (guard, default) = telemetry(LevelFilter::DEBUG, None, pipe);
    let server = serve().await;
    let mut client = Client::connect(&server).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    client.get("/hello/a%0Afake", &[("x-request-id", "mine"), ("traceparent", &parent)]).await;
    // The server lets go of the answer a moment after the client has it.
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(default);
    tokio::task::spawn_blocking(move || drop(guard)).await.unwrap();
    drop((client, server));
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        // The last sender of lines may live on in a task: the pipe has no end then, but what it has is here.
        let mut buffer = [0; 65536];
        let read = reader.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        text
    });
    let text = text.await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = lines.iter().find(|line| line["target"] == "tensorgate::access").unwrap();
    assert_eq!((&line["status"], &line["complete"], &line["bytes"]), (&200.into(), &true.into(), &6.into()));
    let span = &line["span"];
    assert_eq!((&span["request_id"], &span["trace_id"]), (&"mine".into(), &TRACE.into()));
    assert_eq!((&span["http.request.method"], &span["url.path"]), (&"GET".into(), &"/hello/a%0Afake".into()));
}
