//! `grpc-load`: unary gRPC calls with a message that is already encoded.
//!
//! Plain HTTP/2 by hyper: the message is framed once and sent again and again, and of the answer only the status (and,
//! if asked, the bytes) are looked at. A connection for each caller, as separate clients have.

use crate::Failure;
use crate::load::{self, Answers, Caller, Plan, Turns};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Arguments of `grpc-load`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address and port of the server
    #[arg(long)]
    address: SocketAddr,
    /// The method to call
    #[arg(long, default_value = "/inference.GRPCInferenceService/ModelInfer")]
    method: String,
    #[command(flatten)]
    plan: Plan,
}

/// Loads a server.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let messages = args.plan.requests(frame)?;
    let answers = args.plan.answers()?;
    let uri: http::Uri = format!("http://{}{}", args.address, args.method).parse()?;
    let caller = || Channel {
        address: args.address,
        uri: uri.clone(),
        messages: messages.clone(),
        answers: answers.clone(),
        sender: None,
    };
    load::run(&args.plan, &uri.to_string(), (0..args.plan.concurrency).map(|_| caller()).collect())
}

/// Bytes before a message: whether it is compressed, and its length.
const FRAME: usize = 5;

/// A message as gRPC sends it, not compressed.
fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(FRAME + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

/// A connection, opened when it is first needed and again after a failure.
struct Channel {
    address: SocketAddr,
    uri: http::Uri,
    messages: Turns<Bytes>,
    answers: Answers,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Caller for Channel {
    async fn call(&mut self) -> Result<(), String> {
        let mut sender = match self.sender.take() {
            Some(sender) => sender,
            None => connect(self.address).await.map_err(|error| format!("connect: {error}"))?,
        };
        let request = Request::post(self.uri.clone())
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(self.messages.take()))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        // A call that fails at once has its status among the headers.
        let early = status(response.headers());
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        self.sender = Some(sender);
        match early.or_else(|| body.trailers().and_then(status)) {
            Some(0) => {}
            Some(code) => return Err(format!("grpc-status {code}")),
            None => return Err("no grpc-status".into()),
        }
        let framed = body.to_bytes();
        self.answers.take(framed.get(FRAME..).ok_or("no message")?)
    }
}

fn status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Windows as gRPC clients have them: HTTP/2's own 64 KiB would make every large answer wait for the client.
const WINDOW: u32 = 4 << 20;

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
