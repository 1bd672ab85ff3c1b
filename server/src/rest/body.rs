//! Request bodies in, replies out, with their compression: limits count what a body is after it was unpacked.

use super::{BodyLimits, Rest};
use crate::budget::{Budget, PAGE, Room};
use crate::error::Error;
use crate::threads::heavy;
use bytes::{Bytes, BytesMut};
use flate2::bufread::GzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Decompress, FlushDecompress, Status};
use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http_body_util::BodyExt;
use hyper::body::Body;
use std::fmt::Display;
use std::io::{Read, Write};
use std::time::Instant;

/// A body and its share of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    room: Room,
}

impl Held {
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

fn too_large(limits: &BodyLimits) -> Error {
    Error::TooLarge(format!("the request is larger than the limit of {} bytes (--max-body-size)", limits.bytes))
}

/// Reads a whole body and unpacks it.
///
/// # Errors
/// Too large, too slow, cut off, or packed in a way that is not known.
pub(super) async fn read<B: Body<Data = Bytes, Error: Display> + Unpin>(
    rest: &Rest,
    headers: &HeaderMap,
    body: B,
    deadline: Instant,
) -> Result<Held, Error> {
    let limits = &rest.limits;
    let stated = headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if stated.is_some_and(|length| length > limits.bytes) {
        return Err(too_large(limits));
    }
    let mut room = Room::default();
    let arriving = Arriving { stated: stated.unwrap_or(limits.bytes), deadline };
    let bytes = collect(body, rest, arriving, &mut room).await?;
    let Some(encoding) = encoding(headers)? else { return Ok(Held { bytes, room }) };
    let mut unpacked = Room::default();
    // Few packed bytes may be many unpacked ones.
    let bytes = heavy(usize::MAX, || unpack(&bytes, encoding, limits, &rest.budget, &mut unpacked))?;
    Ok(Held { bytes, room: unpacked })
}

/// How large a body may become, and until when.
#[derive(Clone, Copy)]
struct Arriving {
    stated: usize,
    deadline: Instant,
}

async fn collect<B: Body<Data = Bytes, Error: Display> + Unpin>(
    mut body: B,
    rest: &Rest,
    arriving: Arriving,
    room: &mut Room,
) -> Result<Bytes, Error> {
    let (limits, budget) = (&rest.limits, &rest.budget);
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while !body.is_end_stream() {
        let (idle, deadline) = (Instant::now() + limits.idle, arriving.deadline);
        let frame = tokio::time::timeout_at(idle.min(deadline).into(), body.frame()).await;
        let late = |_| if idle < deadline { stopped() } else { Error::Deadline };
        let frame = frame.map_err(late)?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| Error::Invalid(format!("the request body broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if data.is_empty() {
            continue;
        }
        if first.len() + whole.len() + data.len() > limits.bytes {
            return Err(too_large(limits));
        }
        let have = first.len() + whole.len() + data.len();
        room.grow(budget, have.max(whole.capacity()))?;
        // One piece, as small bodies come, is not copied.
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        if have > whole.capacity() {
            // Doubled as it grows, but never beyond what it may become.
            let capacity = (2 * have).min(arriving.stated).max(have);
            room.grow(budget, capacity)?;
            whole.reserve(capacity - whole.len());
        }
        if whole.is_empty() {
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
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

fn unpack(
    packed: &[u8],
    encoding: Encoding,
    limits: &BodyLimits,
    budget: &Budget,
    room: &mut Room,
) -> Result<Bytes, Error> {
    let mut unpacked = Unpacked { bytes: Vec::new(), limits, budget, room };
    let mut rest = packed;
    match encoding {
        Encoding::Gzip => {
            // A file of gzip may be several, one behind the other.
            for _ in 0..MEMBERS {
                let mut reader = GzDecoder::new(rest);
                unpacked.drain(&mut reader)?;
                rest = reader.into_inner();
                if rest.is_empty() {
                    return Ok(unpacked.bytes.into());
                }
            }
            Err(Error::Invalid(format!("the body consists of more than {MEMBERS} gzip members")))
        }
        Encoding::Deflate => {
            unpacked.drain(&mut Zlib { stream: Decompress::new(true), packed, over: false })?;
            Ok(unpacked.bytes.into())
        }
    }
}

/// Parts of a gzip body. Each costs time, even an empty one.
const MEMBERS: usize = 64;

/// What comes out of a packed body.
struct Unpacked<'a> {
    bytes: Vec<u8>,
    limits: &'a BodyLimits,
    budget: &'a Budget,
    room: &'a mut Room,
}

impl Unpacked<'_> {
    /// Everything that `reader` has.
    fn drain(&mut self, reader: &mut impl Read) -> Result<(), Error> {
        let mut piece = [0u8; 16 * PAGE];
        loop {
            let count = reader.read(&mut piece);
            let count = count.map_err(|e| Error::Invalid(format!("the body cannot be unpacked: {e}")))?;
            if count == 0 {
                return Ok(());
            }
            if self.bytes.len() + count > self.limits.bytes {
                return Err(too_large(self.limits));
            }
            self.room.grow(self.budget, self.bytes.len() + count)?;
            self.bytes.extend_from_slice(&piece[..count]);
        }
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

    fn unpacked(packed: &[u8], encoding: Encoding) -> Result<Bytes, Error> {
        let limits = BodyLimits { bytes: 1 << 20, idle: std::time::Duration::from_secs(1) };
        unpack(packed, encoding, &limits, &Budget::new(1 << 22), &mut Room::default())
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
