//! `baseline`: bare hyper, which reads the whole request and answers a fixed body.
//!
//! The yardstick of the server: same HTTP library, same socket options, no routing, no parsing, no model. What a server
//! costs above this is its own doing.

use crate::Failure;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use tokio::net::{TcpListener, TcpStream};

/// Arguments of `baseline`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port to listen on; 0 for any free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Length of the answer's body
    #[arg(long, default_value_t = 200, conflicts_with = "response")]
    response_bytes: usize,
    /// File with the answer's body
    #[arg(long)]
    response: Option<PathBuf>,
    /// Threads; all cores by default
    #[arg(long)]
    threads: Option<usize>,
    /// Speak gRPC: HTTP/2, the body framed as a message, a status behind it
    #[arg(long)]
    grpc: bool,
}

/// Serves until the process is ended.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let body = match &args.response {
        Some(path) => std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?,
        None => vec![b'1'; args.response_bytes],
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = args.threads {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()?.block_on(serve(args.port, body.into(), args.grpc))
}

async fn serve(port: u16, body: Bytes, grpc: bool) -> Result<(), Failure> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        if grpc {
            tokio::spawn(serve_http2(stream, framed(&body)));
        } else {
            tokio::spawn(serve_http1(stream, body.clone()));
        }
    }
}

async fn serve_http1(stream: TcpStream, body: Bytes) {
    let service = service_fn(move |request: Request<Incoming>| {
        let body = body.clone();
        async move {
            request.into_body().collect().await?;
            let mut response = Response::new(Full::new(body));
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
            Ok::<_, hyper::Error>(response)
        }
    });
    // A client that goes away is no news here.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn serve_http2(stream: TcpStream, message: Bytes) {
    let service = service_fn(move |request: Request<Incoming>| {
        let message = message.clone();
        async move {
            request.into_body().collect().await?;
            let mut response = Response::new(with_status(message));
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok::<_, hyper::Error>(response)
        }
    });
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

fn with_status(message: Bytes) -> BoxBody<Bytes, Infallible> {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static("0"))]);
    Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed()
}

/// A message as gRPC sends it: not compressed, and its length before it.
fn framed(body: &[u8]) -> Bytes {
    [&[0], &(body.len() as u32).to_be_bytes()[..], body].concat().into()
}
