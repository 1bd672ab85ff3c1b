//! What the server tells a child besides calls: 16 bytes each, `u32 kind, u32 connection, u64 call`, little-endian. With
//! "open" goes a socket, the child's end of that connection.

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Bytes of a message.
const BYTES: usize = 16;
const OPEN: u32 = 1;
const CANCEL: u32 = 2;
/// Nobody waits for a child that does not listen.
const FLAGS: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// A message that came.
#[derive(Debug)]
pub(super) enum Told {
    /// This connection is there.
    Open(u32, UnixStream),
    /// Nobody waits for this call of this connection.
    Cancel(u32, u64),
}

fn packed(kind: u32, connection: u32, call: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&connection.to_le_bytes());
    bytes[8..].copy_from_slice(&call.to_le_bytes());
    bytes
}

/// Opens a connection of this number: passes on the other end of it.
///
/// # Errors
/// The child is not there any more, or the system has no more sockets.
pub(super) fn open(control: &UnixStream, connection: u32) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let passed = [theirs.as_fd()];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&passed)) {
        return Err(ErrorKind::OutOfMemory.into());
    }
    let bytes = packed(OPEN, connection, 0);
    sent(sendmsg(control, &[IoSlice::new(&bytes)], &mut ancillary, FLAGS)?)?;
    Ok(ours)
}

/// Says that nobody waits for a call.
///
/// # Errors
/// The child is not there any more.
pub(super) fn cancel(control: &UnixStream, connection: u32, call: u64) -> Result<()> {
    let bytes = packed(CANCEL, connection, call);
    sent(sendmsg(control, &[IoSlice::new(&bytes)], &mut SendAncillaryBuffer::default(), FLAGS)?)
}

/// So short a message goes whole, or not at all.
fn sent(bytes: usize) -> Result<()> {
    if bytes == BYTES { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// The next message; waits for it.
///
/// # Errors
/// The server is not there any more.
pub(super) fn receive(control: &UnixStream) -> Result<Told> {
    let mut bytes = [0; BYTES];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(control, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    if message.bytes != BYTES {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let mut passed: Option<OwnedFd> = None;
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = part {
            passed = sockets.last();
        }
    }
    let [a, b, c, d, e, f, g, h, call @ ..] = bytes;
    let (kind, connection) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    match (kind, passed) {
        (OPEN, Some(socket)) => Ok(Told::Open(connection, socket.into())),
        (CANCEL, None) => Ok(Told::Cancel(connection, u64::from_le_bytes(call))),
        _ => Err(Error::new(ErrorKind::InvalidData, format!("a message of kind {kind}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_connection_reaches_whoever_is_told_of_it() {
        let (server, child) = UnixStream::pair().unwrap();
        let mut ours = open(&server, 7).unwrap();
        cancel(&server, 7, u64::MAX).unwrap();
        let Told::Open(7, mut theirs) = receive(&child).unwrap() else { panic!("it is opened first") };
        assert!(matches!(receive(&child), Ok(Told::Cancel(7, u64::MAX))));
        ours.write_all(b"there").unwrap();
        drop(ours);
        let mut came = Vec::new();
        theirs.read_to_end(&mut came).unwrap();
        assert_eq!(came, b"there");
        drop(server);
        assert!(receive(&child).is_err());
    }
}
