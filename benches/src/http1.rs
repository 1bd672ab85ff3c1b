//! `load`: an HTTP/1.1 client that does as little as possible.
//!
//! Client and server share the machine, so what the client does not do is measured as the server's: the request is
//! built once, the answer's head is searched for the two headers that say where the answer ends, and bodies are
//! looked at in place. It does not redirect, decompress, pipeline or resolve names.

use crate::Failure;
use crate::load::{self, Answers, Caller, Plan, Turns};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Arguments of `load`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to call, such as http://127.0.0.1:8080/v2/models/iris/infer; the host is an address
    #[arg(long)]
    url: String,
    /// A header of the request, as `Name: value`; may be repeated
    #[arg(long = "header")]
    headers: Vec<String>,
    /// The status of a good answer
    #[arg(long, default_value_t = 200)]
    status: u16,
    #[command(flatten)]
    plan: Plan,
}

/// Loads a server.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let target = Target::parse(&args.url)?;
    let requests = args.plan.requests(|body| Rc::from(request(&target, &args.headers, body)))?;
    let answers = args.plan.answers()?;
    let connection = || Connection {
        address: target.address,
        requests: requests.clone(),
        status: args.status,
        answers: answers.clone(),
        stream: None,
        buffer: Vec::new(),
    };
    let callers = (0..args.plan.concurrency).map(|_| connection()).collect();
    load::run(&args.plan, &args.url, callers)
}

/// An address and what to ask it for.
#[derive(Debug, PartialEq)]
pub(crate) struct Target {
    /// Where the server is.
    pub(crate) address: SocketAddr,
    /// The path and query.
    pub(crate) path: String,
}

impl Target {
    /// Reads `http://ADDRESS:PORT/PATH`.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn parse(url: &str) -> Result<Target, Failure> {
        let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url}: expected http://"))?;
        let slash = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(slash);
        let address = authority.parse().map_err(|_| format!("{url}: expected an address and a port"))?;
        Ok(Target { address, path: if path.is_empty() { "/".into() } else { path.into() } })
    }
}

/// The bytes of a request: GET without a body, POST with one, JSON unless a header says otherwise.
pub(crate) fn request(target: &Target, headers: &[String], body: &[u8]) -> Vec<u8> {
    let method = if body.is_empty() { "GET" } else { "POST" };
    let mut head = format!("{method} {} HTTP/1.1\r\nHost: {}\r\n", target.path, target.address);
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
        if !headers.iter().any(|header| header.to_ascii_lowercase().starts_with("content-type:")) {
            head += "Content-Type: application/json\r\n";
        }
    }
    for header in headers {
        head += header;
        head += "\r\n";
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// A connection, opened when it is first needed and again after a failure.
struct Connection {
    address: SocketAddr,
    requests: Turns<Rc<[u8]>>,
    status: u16,
    answers: Answers,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

/// Free space kept for each read.
const READ: usize = 64 << 10;

impl Caller for Connection {
    async fn call(&mut self) -> Result<(), String> {
        // Taken out, so that a call that fails leaves no half-read connection behind.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.address).await.map_err(|error| format!("connect: {}", error.kind()))?,
        };
        stream.write_all(&self.requests.take()).await.map_err(|error| format!("write: {}", error.kind()))?;
        self.buffer.clear();
        let (head, end) = loop {
            if self.buffer.capacity() - self.buffer.len() < READ {
                self.buffer.reserve(READ);
            }
            match stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err("read: closed".into()),
                Ok(_) => {}
                Err(error) => return Err(format!("read: {}", error.kind())),
            }
            if let Some(head) = Head::parse(&self.buffer)?
                && let Some(end) = head.end(&self.buffer)?
            {
                break (head, end);
            }
        };
        if end != self.buffer.len() {
            return Err("more than one answer".into());
        }
        if !head.close {
            self.stream = Some(stream);
        }
        if head.status != self.status {
            return Err(format!("status {}", head.status));
        }
        self.answers.take(&head.body(&self.buffer))
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The part of an answer before its body.
#[derive(Debug, PartialEq)]
pub(crate) struct Head {
    /// The status code.
    pub(crate) status: u16,
    /// Does the server close the connection after it?
    close: bool,
    /// Where the body begins.
    body: usize,
    /// Its length; none where it is chunked.
    length: Option<usize>,
}

impl Head {
    /// Reads a head once it is complete.
    ///
    /// # Errors
    /// It is not an answer, or does not say where its body ends.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Head>, String> {
        let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
        let text = std::str::from_utf8(&bytes[..end]).map_err(|_| "head is not text")?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
        let mut head = Head { status: status.ok_or("no status line")?, close: false, body: end + 4, length: None };
        let mut chunked = false;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.length = Some(value.parse().map_err(|_| "bad content-length")?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.eq_ignore_ascii_case("chunked");
            } else if name.eq_ignore_ascii_case("connection") {
                head.close = value.eq_ignore_ascii_case("close");
            }
        }
        match (chunked, head.length) {
            (false, None) if matches!(head.status, 204 | 304) => head.length = Some(0),
            (false, None) => return Err("neither content-length nor chunked".into()),
            (true, _) => head.length = None,
            _ => {}
        }
        Ok(Some(head))
    }

    /// Where the answer ends, once it does.
    fn end(&self, bytes: &[u8]) -> Result<Option<usize>, String> {
        match self.length {
            Some(length) => Ok((bytes.len() >= self.body + length).then_some(self.body + length)),
            None => {
                let mut chunks = Chunks { bytes, at: self.body };
                while let Some(chunk) = chunks.next()? {
                    if chunk.is_empty() {
                        return Ok(Some(chunks.at));
                    }
                }
                Ok(None)
            }
        }
    }

    /// The body of a complete answer.
    fn body<'a>(&self, answer: &'a [u8]) -> Cow<'a, [u8]> {
        if self.length.is_some() {
            return Cow::Borrowed(&answer[self.body..]);
        }
        let mut chunks = Chunks { bytes: answer, at: self.body };
        let mut body = Vec::new();
        while let Ok(Some(chunk @ [_, ..])) = chunks.next() {
            body.extend_from_slice(chunk);
        }
        Cow::Owned(body)
    }
}

/// The chunks of a body; the last one is empty. Trailers are not read: a body with some is refused.
struct Chunks<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Chunks<'a> {
    /// The next chunk, once it is complete.
    fn next(&mut self) -> Result<Option<&'a [u8]>, String> {
        let rest = &self.bytes[self.at..];
        let Some(line) = find(rest, b"\r\n") else { return Ok(None) };
        let digits = std::str::from_utf8(&rest[..line]).unwrap_or_default();
        let digits = digits.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| "bad chunk")?;
        let end = line + 2 + size;
        match rest.get(end..end + 2) {
            None => Ok(None),
            Some(b"\r\n") => {
                self.at += end + 2;
                Ok(Some(&rest[line + 2..end]))
            }
            Some(_) => Err("bad chunk".into()),
        }
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::{Head, Target, request};

    /// The body of an answer that must be incomplete at every byte but the last.
    fn body(answer: &[u8]) -> Vec<u8> {
        let head = Head::parse(answer).unwrap().unwrap();
        assert_eq!(head.end(answer), Ok(Some(answer.len())));
        for cut in 0..answer.len() {
            let part = Head::parse(&answer[..cut]).unwrap();
            assert!(part.is_none_or(|head| head.end(&answer[..cut]) == Ok(None)), "complete at {cut}");
        }
        head.body(answer).into_owned()
    }

    #[test]
    fn answers_end_where_their_heads_say() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), b"abc");
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n";
        assert_eq!(body(chunked), b"abc");
        assert_eq!(body(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"), b"");
    }

    #[test]
    fn answers_without_an_end_are_refused() {
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(Head::parse(b"SSH-2.0\r\n\r\n").is_err());
    }

    #[test]
    fn requests_are_complete() {
        let target = Target::parse("http://127.0.0.1:80/v2?x=1").unwrap();
        assert_eq!(request(&target, &[], b""), b"GET /v2?x=1 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n");
        let post = String::from_utf8(request(&target, &["content-type: a/b".into()], b"{}")).unwrap();
        assert_eq!(
            post,
            "POST /v2?x=1 HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Length: 2\r\ncontent-type: a/b\r\n\r\n{}"
        );
        assert!(Target::parse("https://127.0.0.1/").is_err());
    }
}
