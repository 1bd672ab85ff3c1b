//! Request bodies in, replies out, with their compression: limits count what a body is after it was unpacked.

use super::{BodyLimits, Rest};
use crate::budget::{Budget, PAGE, Room};
use crate::error::Error;
use crate::threads::{heavy, turn};
use bytes::Bytes;
use flate2::bufread::GzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Decompress, FlushDecompress, Status};
use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http_body_util::BodyExt;
use hyper::body::Body;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

/// A body and its share of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    room: Room,
}

impl Held {
    /// What `work` reads in it, which no more keeps the body: of large ones as many at a time as there are processors.
    /// `work` takes as long as if it were several times as large: text becomes tokens.
    pub(super) async fn read<T>(self, work: impl FnOnce(&[u8]) -> T) -> T {
        let size = self.bytes.len();
        let _turn = turn(size).await;
        heavy(size.saturating_mul(8), || work(&self.bytes))
    }

    /// The share of what it was decoded to, which takes so many bytes.
    ///
    /// # Errors
    /// [`Error::Overloaded`].
    pub(super) fn decoded(self, budget: &Budget, bytes: usize) -> Result<Room, Error> {
        let Held { bytes: body, mut room } = self;
        drop(body);
        room.hold(budget, bytes)?;
        Ok(room)
    }
}

fn stopped() -> Error {
    Error::Invalid("the request body stopped arriving".into())
}

fn too_large(most: usize) -> Error {
    Error::TooLarge(format!("the request is larger than the limit of {most} bytes (--max-body-size)"))
}

/// Reads a whole body and unpacks it.
///
/// # Errors
/// Too large, too slow, cut off, or packed in a way that is not known.
pub(super) async fn read<B: Body<Data = Bytes, Error: std::error::Error + 'static> + Unpin>(
    rest: &Rest,
    headers: &HeaderMap,
    body: B,
    deadline: Instant,
) -> Result<Held, Error> {
    read_within(rest, headers, body, deadline, &rest.limits).await
}

/// The same within other limits.
///
/// # Errors
/// As for [`read`].
pub(super) async fn read_within<B: Body<Data = Bytes, Error: std::error::Error + 'static> + Unpin>(
    rest: &Rest,
    headers: &HeaderMap,
    body: B,
    deadline: Instant,
    limits: &BodyLimits,
) -> Result<Held, Error> {
    let stated = headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if stated.is_some_and(|length| length > limits.bytes) {
        return Err(too_large(limits.bytes));
    }
    let mut room = Room::default();
    let arriving = Arriving { stated: stated.unwrap_or(limits.bytes), idle: limits.idle, deadline };
    let bytes = collect(body, arriving, Whole::new(limits.bytes, &rest.budget, &mut room)).await?;
    let Some(encoding) = encoding(headers)? else { return Ok(Held { bytes, room }) };
    // Few packed bytes may be many unpacked ones.
    let whole = Whole { beside: bytes.len(), ..Whole::new(limits.bytes, &rest.budget, &mut room) };
    let unpacked = heavy(usize::MAX, || unpack(&bytes, encoding, whole))?;
    drop(bytes);
    room.hold(&rest.budget, unpacked.len())?;
    Ok(Held { bytes: unpacked, room })
}

/// How large a body says that it will be, and how long it may take.
#[derive(Clone, Copy)]
struct Arriving {
    stated: usize,
    idle: Duration,
    deadline: Instant,
}

async fn collect<B: Body<Data = Bytes, Error: std::error::Error + 'static> + Unpin>(
    mut body: B,
    arriving: Arriving,
    mut whole: Whole<'_>,
) -> Result<Bytes, Error> {
    let mut first = Bytes::new();
    while !body.is_end_stream() {
        let (idle, deadline) = (Instant::now() + arriving.idle, arriving.deadline);
        let frame = tokio::time::timeout_at(idle.min(deadline).into(), body.frame()).await;
        let late = |_| if idle < deadline { stopped() } else { Error::Deadline };
        let frame = frame.map_err(late)?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| broken(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        // One piece, as small bodies come, is not copied.
        if first.is_empty() && whole.bytes.is_empty() {
            whole.make_room(data.len(), data.len())?;
            first = data;
            continue;
        }
        whole.append(&std::mem::take(&mut first), arriving.stated)?;
        whole.append(&data, arriving.stated)?;
    }
    Ok(if whole.bytes.is_empty() { first } else { whole.bytes.into() })
}

/// Why a body is not whole: it is not framed as it has to be, or whoever sent it has left.
fn broken(error: &(dyn std::error::Error + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if let Some(ErrorKind::InvalidInput | ErrorKind::InvalidData) = kind {
            return Error::Invalid(format!("the request body cannot be read: {error}"));
        }
        cause = error.source();
    }
    Error::Cancelled
}

/// A body that grows; what it holds is counted.
struct Whole<'a> {
    bytes: Vec<u8>,
    /// Bytes that are held besides.
    beside: usize,
    /// --max-body-size.
    most: usize,
    budget: &'a Budget,
    room: &'a mut Room,
}

impl<'a> Whole<'a> {
    fn new(most: usize, budget: &'a Budget, room: &'a mut Room) -> Self {
        Whole { bytes: Vec::new(), beside: 0, most, budget, room }
    }

    /// Counts `capacity` bytes, of which so many will be used.
    fn make_room(&mut self, used: usize, capacity: usize) -> Result<(), Error> {
        if used > self.most {
            return Err(too_large(self.most));
        }
        self.room.grow(self.budget, self.beside + capacity)
    }

    /// `piece` behind the others. Memory doubles as it is needed, but not beyond what the body will be, which is `stated`.
    fn append(&mut self, piece: &[u8], stated: usize) -> Result<(), Error> {
        let used = self.bytes.len() + piece.len();
        if used > self.bytes.capacity() {
            let capacity = (2 * used).min(stated).max(used);
            self.make_room(used, capacity)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    Deflate,
}

fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Error> {
    let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
    match value.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(None),
        "gzip" => Ok(Some(Encoding::Gzip)),
        "deflate" => Ok(Some(Encoding::Deflate)),
        _ => Err(Error::UnsupportedEncoding("Unsupported compression type".into())),
    }
}

fn unpack(packed: &[u8], encoding: Encoding, mut unpacked: Whole<'_>) -> Result<Bytes, Error> {
    let mut rest = packed;
    match encoding {
        Encoding::Gzip => {
            // A file of gzip may be several, one behind the other.
            for _ in 0..MEMBERS {
                let mut reader = GzDecoder::new(rest);
                drain(&mut reader, &mut unpacked)?;
                rest = reader.into_inner();
                if rest.is_empty() {
                    return Ok(unpacked.bytes.into());
                }
            }
            Err(Error::Invalid(format!("the body consists of more than {MEMBERS} gzip members")))
        }
        Encoding::Deflate => {
            drain(&mut Zlib { stream: Decompress::new(true), packed, over: false }, &mut unpacked)?;
            Ok(unpacked.bytes.into())
        }
    }
}

/// Parts of a gzip body. Each costs time, even an empty one.
const MEMBERS: usize = 64;

/// Everything that `packed` has.
fn drain(packed: &mut impl Read, unpacked: &mut Whole<'_>) -> Result<(), Error> {
    let mut piece = [0u8; 16 * PAGE];
    loop {
        let count = packed.read(&mut piece);
        let count = count.map_err(|e| Error::Invalid(format!("the body cannot be unpacked: {e}")))?;
        if count == 0 {
            return Ok(());
        }
        unpacked.append(&piece[..count], unpacked.most)?;
    }
}

/// A zlib stream that is the whole of a body. The library's own reader passes over what follows a stream, and takes one
/// that is cut off for one that ends.
struct Zlib<'a> {
    stream: Decompress,
    packed: &'a [u8],
    over: bool,
}

impl Read for Zlib<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.over {
            return Ok(0);
        }
        let (taken, made) = (self.stream.total_in() as usize, self.stream.total_out());
        let status = self.stream.decompress(&self.packed[taken..], out, FlushDecompress::None)?;
        let count = (self.stream.total_out() - made) as usize;
        self.over = status == Status::StreamEnd;
        if self.over && self.stream.total_in() as usize != self.packed.len() {
            return Err(std::io::Error::other("bytes follow the end of its stream"));
        }
        if !self.over && count == 0 {
            return Err(std::io::Error::other("its stream is cut off"));
        }
        Ok(count)
    }
}

/// The packing of a reply that the client likes best: the first of the highest quality among identity, deflate, gzip.
pub(super) fn wanted(headers: &HeaderMap) -> Option<Encoding> {
    let accept = headers.get(ACCEPT_ENCODING)?.to_str().ok()?;
    let mut best: (Option<Encoding>, f32) = (None, 0.0);
    for part in accept.split(',') {
        let (name, quality) = part.split_once(';').unwrap_or((part, "q=1"));
        let quality: f32 = quality.trim().strip_prefix("q=").and_then(|q| q.parse().ok()).unwrap_or(1.0);
        let encoding = match name.trim() {
            "gzip" => Some(Encoding::Gzip),
            "deflate" => Some(Encoding::Deflate),
            "identity" => None,
            _ => continue,
        };
        if quality > best.1 {
            best = (encoding, quality);
        }
    }
    best.0
}

impl Encoding {
    pub(super) fn name(self) -> &'static str {
        match self {
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
        }
    }

    /// Packs a reply.
    pub(super) fn pack(self, body: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Encoding::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body)?;
                encoder.finish()
            }
            Encoding::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body)?;
                encoder.finish()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    fn unpacked(packed: &[u8], encoding: Encoding) -> Result<Bytes, Error> {
        unpack(packed, encoding, Whole::new(1 << 20, &Budget::new(1 << 22), &mut Room::default()))
    }

    /// However its pieces come, a body that is alone and within its limit is let in.
    #[tokio::test]
    async fn a_body_as_large_as_the_budget_is_let_in() {
        const BYTES: usize = (1 << 20) + 1;
        let body: Vec<u8> = (0..BYTES as u32).map(|i| i as u8).collect();
        for (stated, length) in [(BYTES, BYTES), (BYTES, 700_000), (700_000, 700_000)] {
            for piece in (1..8).map(|eighths| length * eighths / 8).chain([PAGE, length / 2 + 1]) {
                let (budget, mut room) = (Budget::new(BYTES as u64), Room::default());
                let pieces: Vec<_> = body[..length].chunks(piece).map(Bytes::copy_from_slice).collect();
                let frames = pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Frame::data(piece)));
                let deadline = Instant::now() + Duration::from_secs(60);
                let arriving = Arriving { stated, idle: Duration::from_secs(60), deadline };
                let whole = Whole::new(BYTES, &budget, &mut room);
                let read = collect(StreamBody::new(tokio_stream::iter(frames)), arriving, whole).await;
                assert_eq!(read.expect("let in"), body[..length], "{stated} {length} {piece}");
            }
        }
    }

    /// hyper says of a chunk that is none that its data are invalid, and of a connection that ended what it says itself.
    #[tokio::test]
    async fn who_leaves_is_not_to_blame_for_the_body() {
        let ended = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::Other];
        let framed = [ErrorKind::InvalidInput, ErrorKind::InvalidData];
        for kind in ended.into_iter().chain(framed) {
            let error = axum::Error::new(std::io::Error::from(kind));
            let frames = [Ok(Frame::data(Bytes::from_static(b"[1,"))), Err(error)];
            let (budget, mut room) = (Budget::new(1 << 20), Room::default());
            let deadline = Instant::now() + Duration::from_secs(60);
            let arriving = Arriving { stated: 100, idle: Duration::from_secs(60), deadline };
            let whole = Whole::new(100, &budget, &mut room);
            let read = collect(StreamBody::new(tokio_stream::iter(frames)), arriving, whole).await;
            match read {
                Err(Error::Cancelled) => assert!(ended.contains(&kind), "{kind}"),
                Err(Error::Invalid(_)) => assert!(framed.contains(&kind), "{kind}"),
                other => panic!("{kind}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_packed_body_is_one_stream_and_nothing_else() {
        let body: Vec<u8> = (0..200_000u32).flat_map(|i| i.wrapping_mul(i).to_le_bytes()).collect();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let packed = encoding.pack(&body).unwrap();
            assert_eq!(unpacked(&packed, encoding).unwrap(), body, "{encoding:?}");
            assert_eq!(unpacked(&encoding.pack(b"").unwrap(), encoding).unwrap(), b"".as_slice(), "{encoding:?}");
            for garbage in [b"\0".as_slice(), b"garbage", &packed[..20]] {
                assert!(unpacked(&[&packed, garbage].concat(), encoding).is_err(), "{encoding:?} {garbage:?}");
            }
            for cut in [0, 1, 2, packed.len() / 2, packed.len() - 4, packed.len() - 1] {
                assert!(unpacked(&packed[..cut], encoding).is_err(), "{encoding:?} {cut}");
            }
        }
    }
}
