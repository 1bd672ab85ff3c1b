//! How many things a message of gRPC is made of, found without making them: an empty input is two bytes on the wire, and
//! some two hundred once it was read. Who reads messages asks first.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The most inputs, outputs, parameters, dimensions and raw contents in all that a message may be made of: far more than
/// any model has, and some ten megabytes.
pub const MOST_PARTS: usize = 1 << 16;

/// A message that a client sends.
pub trait Request: Message + Default {
    /// Is it made of no more than [`MOST_PARTS`]? What is no message is; reading it will tell.
    fn is_moderate(encoded: &[u8]) -> bool {
        encoded.len() <= SHORT
    }
}

/// Bytes of a message that names things, and brings none.
pub const SHORT: usize = 1 << 20;

macro_rules! short {
    ($($message:ident),*) => { $(impl Request for crate::grpc::$message {})* };
}
short!(
    ServerLiveRequest,
    ServerReadyRequest,
    ServerMetadataRequest,
    ModelReadyRequest,
    ModelMetadataRequest,
    ModelConfigRequest,
    ModelStatisticsRequest,
    RepositoryIndexRequest,
    SystemSharedMemoryStatusRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryUnregisterRequest,
    CudaSharedMemoryStatusRequest,
    CudaSharedMemoryRegisterRequest,
    CudaSharedMemoryUnregisterRequest,
    TraceSettingRequest,
    LogSettingsRequest
);

/// Those that may bring a file.
macro_rules! files {
    ($($message:ident),*) => {
        $(impl Request for crate::grpc::$message {
            fn is_moderate(encoded: &[u8]) -> bool {
                count(encoded, &mut { MOST_PARTS }, |_, _, _| Some(())).is_some()
            }
        })*
    };
}
files!(RepositoryModelLoadRequest, RepositoryModelUnloadRequest);

/// Fields of a request for inference, by the numbers of the `.proto` file.
mod tags {
    pub(super) const INPUTS: u32 = 5;
    pub(super) const OUTPUTS: u32 = 6;
    pub(super) const SHAPE: u32 = 3;
}

impl Request for crate::grpc::ModelInferRequest {
    fn is_moderate(encoded: &[u8]) -> bool {
        let mut left = MOST_PARTS;
        count(encoded, &mut left, |tag, value, left| match tag {
            tags::INPUTS => count(value, left, |tag, value, left| match tag {
                // One may be packed with the others.
                tags::SHAPE => spend(left, value.len()),
                _ => Some(()),
            }),
            tags::OUTPUTS => count(value, left, |_, _, _| Some(())),
            _ => Some(()),
        })
        .is_some()
    }
}

fn spend(left: &mut usize, parts: usize) -> Option<()> {
    *left = left.checked_sub(parts)?;
    Some(())
}

/// Counts the fields of a message, and lets `within` count what lies in each that has a length. None where they are too many.
fn count(
    mut encoded: &[u8],
    left: &mut usize,
    mut within: impl FnMut(u32, &[u8], &mut usize) -> Option<()>,
) -> Option<()> {
    while !encoded.is_empty() {
        spend(left, 1)?;
        // What cannot be read ends it: the reader will say why.
        let Ok((tag, wire)) = decode_key(&mut encoded) else { return Some(()) };
        if wire == WireType::LengthDelimited {
            let length = decode_varint(&mut encoded).ok().and_then(|length| usize::try_from(length).ok());
            let Some((value, rest)) = length.and_then(|length| encoded.split_at_checked(length)) else {
                return Some(());
            };
            within(tag, value, left)?;
            encoded = rest;
        } else if skip_field(wire, tag, &mut encoded, DecodeContext::default()).is_err() {
            return Some(());
        }
    }
    Some(())
}
