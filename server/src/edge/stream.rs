//! A connection's bytes, in the clear or not. One type for both, because each type that hyper is compiled for costs
//! hundreds of kilobytes, and a branch before a system call costs nothing.

use super::tls::Tls;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Where a connection's requests come from.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Shakes hands where there is TLS, for as long as is set there and no longer than `most`. `None`: the client did not.
    pub(super) async fn open(stream: TcpStream, tls: Option<&Tls>, most: Duration) -> Option<Self> {
        let _ = stream.set_nodelay(true);
        match tls {
            None => Some(Stream::Plain(stream)),
            Some(tls) => tls.accept(stream, most).await.map(|stream| Stream::Secure(Box::new(stream))),
        }
    }
}

/// Bytes that are copied rather than told to the system piece by piece: a token's event comes in three pieces.
const FEW: usize = 1024;

/// All pieces, where they are few bytes.
fn together<'a>(pieces: &[IoSlice<'_>], few: &'a mut [u8; FEW]) -> Option<&'a [u8]> {
    let mut len = 0;
    for piece in pieces {
        few.get_mut(len..len + piece.len())?.copy_from_slice(piece);
        len += piece.len();
    }
    Some(&few[..len])
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Secure(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => {
                let mut few = [0; FEW];
                match together(bufs, &mut few) {
                    Some(bytes) => Pin::new(stream).poll_write(cx, bytes),
                    None => Pin::new(stream).poll_write_vectored(cx, bufs),
                }
            }
            Stream::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bytes_are_put_together() {
        let mut few = [7; FEW];
        let long = [1; FEW];
        assert_eq!(together(&[], &mut few), Some(&[][..]));
        assert_eq!(
            together(&[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"c")], &mut few),
            Some(&b"abc"[..])
        );
        assert_eq!(together(&[IoSlice::new(&long)], &mut few), Some(&long[..]));
        assert_eq!(together(&[IoSlice::new(b"a"), IoSlice::new(&long)], &mut few), None);
        assert_eq!(together(&[IoSlice::new(&long), IoSlice::new(b"a")], &mut few), None);
    }
}
