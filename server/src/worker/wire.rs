//! Messages between the server and a child: a head of JSON, and the bytes of tensors behind it as they lie in memory.
//!
//! ```text
//! u32 bytes of the head | u64 bytes of tensors | head | tensors, each from a multiple of 8 bytes on
//! ```
//! All numbers are little-endian. Of text the ends of its elements come first, as u32, then the text.

use backends::{DataType, InferError, Platform, Port, Profile, Signature, Tensor};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::time::Duration;

/// Bytes of a head, at most.
const HEAD_MAX: usize = 64 << 20;
/// Bytes of the tensors of a message, at most: more than any protocol carries.
const BYTES_MAX: u64 = 1 << 36;
/// Bytes of tensors that are sent along with the head.
const TOGETHER: usize = 64 << 10;
/// Bytes that memory is taken for before they have come.
const AHEAD: u64 = 1 << 20;
/// Where tensors begin.
const ALIGNMENT: usize = 8;

/// What is said of a tensor before its bytes.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Shape {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    /// Bytes, those of the ends of text among them.
    bytes: usize,
}

/// The head of a call.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Asked {
    /// The how-manieth of its connection.
    pub(super) number: u64,
    /// Microseconds that are left for it.
    pub(super) left: Option<u64>,
    /// Outputs that are wanted.
    pub(super) outputs: Vec<String>,
    /// Its inputs.
    pub(super) inputs: Vec<Shape>,
}

/// The head of an answer.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Answered {
    Outputs(Vec<Shape>),
    Failed(Failure),
}

/// [`InferError`] on the way.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Failure {
    Invalid(String),
    Unsupported(String),
    Deadline,
    Memory(String),
    Cancelled,
    Unavailable(String),
    Internal(String),
    Panicked(String),
}

macro_rules! both_ways {
    ($($text:ident),*; $($plain:ident),*) => {
        impl From<InferError> for Failure {
            fn from(error: InferError) -> Self {
                match error {
                    $(InferError::$text(what) => Failure::$text(what),)*
                    $(InferError::$plain => Failure::$plain,)*
                }
            }
        }
        impl From<Failure> for InferError {
            fn from(failure: Failure) -> Self {
                match failure {
                    $(Failure::$text(what) => InferError::$text(what),)*
                    $(Failure::$plain => InferError::$plain,)*
                }
            }
        }
    };
}
both_ways!(Invalid, Unsupported, Memory, Unavailable, Internal, Panicked; Deadline, Cancelled);

/// What became of loading a model.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Outcome {
    Loaded(Box<Described>),
    Refused { reason: String, detail: String },
}

/// A loaded model.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Described {
    inputs: Vec<Ported>,
    outputs: Vec<Ported>,
    strict: bool,
    feature_names: Vec<String>,
    platform: Platform,
    batchable: bool,
    instances: usize,
    single_call: Duration,
    preferred_batch: usize,
    device: String,
    bytes: usize,
    notes: Vec<String>,
    pub(super) spreads: bool,
}

/// A [`Port`] on the way.
#[derive(Debug, Deserialize, Serialize)]
struct Ported {
    name: String,
    datatype: String,
    also: Vec<String>,
    shape: Vec<i64>,
    any_shape: bool,
    optional: bool,
    labels: Vec<String>,
}

impl From<&Port> for Ported {
    fn from(port: &Port) -> Self {
        Ported {
            name: port.name.clone(),
            datatype: port.datatype.name().into(),
            also: port.also.iter().map(|datatype| datatype.name().into()).collect(),
            shape: port.shape.clone(),
            any_shape: port.any_shape,
            optional: port.optional,
            labels: port.labels.clone(),
        }
    }
}

impl Ported {
    fn port(self) -> Result<Port> {
        Ok(Port {
            name: self.name,
            datatype: datatype(&self.datatype)?,
            also: self.also.iter().map(|name| datatype(name)).collect::<Result<_>>()?,
            shape: self.shape,
            any_shape: self.any_shape,
            optional: self.optional,
            labels: self.labels,
        })
    }
}

fn datatype(name: &str) -> Result<DataType> {
    DataType::parse(name).ok_or_else(|| broken(format!("datatype '{name}'")))
}

impl Described {
    /// Of a model with these.
    pub(super) fn of(signature: &Signature, profile: Profile, spreads: bool) -> Self {
        Described {
            inputs: signature.inputs.iter().map(Ported::from).collect(),
            outputs: signature.outputs.iter().map(Ported::from).collect(),
            strict: signature.strict,
            feature_names: signature.feature_names.clone(),
            platform: signature.platform,
            batchable: profile.batchable,
            instances: profile.instances,
            single_call: profile.single_call,
            preferred_batch: profile.preferred_batch,
            device: profile.device,
            bytes: profile.bytes,
            notes: profile.notes,
            spreads,
        }
    }

    /// What whoever asks it sees. Whoever waits for another process neither computes nor answers at once.
    pub(super) fn taken(self) -> Result<(Signature, Profile)> {
        let ports = |ports: Vec<Ported>| ports.into_iter().map(Ported::port).collect::<Result<_>>();
        let signature = Signature {
            inputs: ports(self.inputs)?,
            outputs: ports(self.outputs)?,
            strict: self.strict,
            feature_names: self.feature_names,
            platform: self.platform,
        };
        let profile = Profile {
            batchable: self.batchable,
            instances: self.instances,
            single_call: self.single_call,
            steady: false,
            computes: false,
            preferred_batch: self.preferred_batch,
            device: self.device,
            bytes: self.bytes,
            notes: self.notes,
        };
        Ok((signature, profile))
    }
}

/// What is not as it was written.
pub(super) fn broken(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, what.into())
}

/// What goes before the bytes of these tensors.
pub(super) fn shapes(tensors: &[Tensor]) -> Vec<Shape> {
    let shape = |tensor: &Tensor| Shape {
        name: tensor.name().into(),
        datatype: tensor.datatype().name().into(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.byte_size(),
    };
    tensors.iter().map(shape).collect()
}

/// Sends a head, and tensors of which it holds the [`shapes`].
pub(super) fn write(to: &mut impl Write, head: &impl Serialize, tensors: &[Tensor]) -> Result<()> {
    let mut first = vec![0; 12];
    serde_json::to_writer(&mut first, head)?;
    let head_bytes = first.len() - 12;
    let whole: usize = shapes_bytes(tensors);
    first[..4].copy_from_slice(&u32::try_from(head_bytes).map_err(|_| broken("a head too long"))?.to_le_bytes());
    first[4..12].copy_from_slice(&(whole as u64).to_le_bytes());
    let together = whole <= TOGETHER;
    for tensor in tensors {
        let ends = ends(tensor);
        let bytes = ends.len() + tensor.bytes().len();
        first.extend_from_slice(&ends);
        if together {
            first.extend_from_slice(tensor.bytes());
        } else {
            to.write_all(&std::mem::take(&mut first))?;
            to.write_all(tensor.bytes())?;
        }
        first.resize(first.len() + padding(bytes), 0);
    }
    to.write_all(&first)?;
    to.flush()
}

fn padding(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT) - bytes
}

fn shapes_bytes(tensors: &[Tensor]) -> usize {
    tensors.iter().map(|tensor| tensor.byte_size().next_multiple_of(ALIGNMENT)).sum()
}

/// Where elements of text end; nothing for numbers.
fn ends(tensor: &Tensor) -> Vec<u8> {
    let mut end = 0u32;
    let texts = tensor.strings().into_iter().flatten();
    texts
        .flat_map(|text| {
            // A tensor counts its text in u32.
            end += text.len() as u32;
            end.to_le_bytes()
        })
        .collect()
}

/// The next head, and the bytes of tensors behind it; `None` where the other end is closed between messages.
///
/// # Errors
/// What comes is no message, or breaks off.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<(T, Bytes)>> {
    let mut lengths = [0; 12];
    let first = from.read(&mut lengths)?;
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut lengths[first..])?;
    let [a, b, c, d, rest @ ..] = lengths;
    let head = u32::from_le_bytes([a, b, c, d]) as usize;
    if head > HEAD_MAX {
        return Err(broken(format!("a head of {head} bytes")));
    }
    let bytes = u64::from_le_bytes(rest);
    if bytes > BYTES_MAX {
        return Err(broken(format!("{bytes} bytes of tensors")));
    }
    let head = take(from, head as u64)?;
    let head = serde_json::from_slice(&head).map_err(|error| broken(error.to_string()))?;
    Ok(Some((head, take(from, bytes)?.into())))
}

/// The next answer; `None` where the other end is closed before it.
///
/// # Errors
/// What comes is no answer, or breaks off.
pub fn answer(from: &mut impl Read) -> Result<Option<std::result::Result<Vec<Tensor>, InferError>>> {
    Ok(match read::<Answered>(from)? {
        None => None,
        Some((Answered::Failed(failure), _)) => Some(Err(failure.into())),
        Some((Answered::Outputs(shapes), bytes)) => Some(Ok(tensors(shapes, bytes)?)),
    })
}

fn take(from: &mut impl Read, bytes: u64) -> Result<Vec<u8>> {
    let mut taken = Vec::with_capacity(bytes.min(AHEAD) as usize);
    from.take(bytes).read_to_end(&mut taken)?;
    if taken.len() as u64 == bytes { Ok(taken) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// The tensors that these bytes are.
///
/// # Errors
/// They are not those that were announced.
pub(super) fn tensors(shapes: Vec<Shape>, mut bytes: Bytes) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::with_capacity(shapes.len());
    for Shape { name, datatype: kind, shape, bytes: length } in shapes {
        let whole = length.checked_next_multiple_of(ALIGNMENT).filter(|whole| *whole <= bytes.len());
        let mut own = bytes.split_to(whole.ok_or_else(|| broken(format!("'{name}' breaks off")))?);
        own.truncate(length);
        let kind = datatype(&kind)?;
        let tensor = if kind == DataType::Bytes {
            let count = shape.iter().try_fold(1usize, |count, length| count.checked_mul(*length));
            let ends = count.and_then(|count| count.checked_mul(4)).filter(|ends| *ends <= own.len());
            let ends = own.split_to(ends.ok_or_else(|| broken(format!("'{name}' breaks off")))?);
            let ends = ends.as_chunks::<4>().0.iter().map(|end| u32::from_le_bytes(*end)).collect();
            Tensor::from_text(name, shape, ends, own)
        } else {
            Tensor::from_bytes(name, kind, shape, own)
        };
        tensors.push(tensor.map_err(|misfit| broken(misfit.to_string()))?);
    }
    if bytes.is_empty() { Ok(tensors) } else { Err(broken("more bytes than tensors")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(sent: &[Tensor]) -> Vec<Tensor> {
        let mut bytes = Vec::new();
        write(&mut bytes, &Answered::Outputs(shapes(sent)), sent).unwrap();
        let (head, payload) = read::<Answered>(&mut &bytes[..]).unwrap().unwrap();
        // Nothing is left of it, and none of its beginnings is a message.
        for end in [1, 5, 12, bytes.len() - 1] {
            assert!(read::<Answered>(&mut &bytes[..end]).is_err());
        }
        let Answered::Outputs(shapes) = head else { panic!("{head:?}") };
        tensors(shapes, payload).unwrap()
    }

    #[test]
    fn tensors_come_as_they_went() {
        let long = 40_000;
        let sent = [
            Tensor::from_vec("a", vec![3], vec![1u8, 2, 3]).unwrap(),
            Tensor::from_strings("b", vec![2, 2], ["", "x", "yy", "\u{e9}"]).unwrap(),
            Tensor::from_vec("c", vec![0, 7], Vec::<f32>::new()).unwrap(),
            Tensor::from_strings("d", vec![0], Vec::<String>::new()).unwrap(),
            Tensor::from_vec("e", vec![], vec![0.5f64]).unwrap(),
            Tensor::from_vec("f", vec![long], (0..long as i64).collect()).unwrap(),
        ];
        for part in [&sent[..5], &sent[..], &sent[5..], &[]] {
            let came = there_and_back(part);
            assert_eq!(came.len(), part.len());
            for (sent, came) in part.iter().zip(&came) {
                assert_eq!((sent.name(), sent.datatype(), sent.shape()), (came.name(), came.datatype(), came.shape()));
                assert_eq!(sent.bytes(), came.bytes());
                let texts =
                    |tensor: &Tensor| tensor.strings().map(|texts| texts.map(<[u8]>::to_vec).collect::<Vec<_>>());
                assert_eq!(texts(sent), texts(came));
            }
        }
        assert!(read::<Answered>(&mut &[][..]).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let shape = |datatype: &str, shape: &[usize], bytes| Shape {
            name: "x".into(),
            datatype: datatype.into(),
            shape: shape.to_vec(),
            bytes,
        };
        for (stated, bytes) in [
            (shape("FP32", &[2], 8), 4),
            (shape("FP32", &[2], usize::MAX), 8),
            (shape("FP32", &[3], 8), 8),
            (shape("FP33", &[2], 8), 8),
            (shape("BYTES", &[usize::MAX, 2], 8), 8),
            (shape("BYTES", &[3], 8), 8),
            (shape("UINT8", &[8], 8), 16),
        ] {
            let told = format!("{stated:?}");
            assert!(tensors(vec![stated], Bytes::from(vec![9; bytes])).is_err(), "{told}");
        }
        for bytes in [&[0xff; 20][..], b"\x02\0\0\0\0\0\0\0\0\0\0\0{]"] {
            assert!(read::<Answered>(&mut &bytes[..]).is_err());
        }
    }

    #[test]
    fn errors_come_as_they_went() {
        let text = || "why".to_owned();
        for error in [
            InferError::Invalid(text()),
            InferError::Unsupported(text()),
            InferError::Deadline,
            InferError::Memory(text()),
            InferError::Cancelled,
            InferError::Unavailable(text()),
            InferError::Internal(text()),
            InferError::Panicked(text()),
        ] {
            assert_eq!(InferError::from(Failure::from(error.clone())), error);
        }
    }
}
