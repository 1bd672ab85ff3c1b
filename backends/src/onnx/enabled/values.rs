//! Tensors to values of ONNX Runtime and back. Numbers are lent, both ways, where they lie as its own do; text is copied, both
//! ways.

use super::flatten::{self, Failure};
use super::run;
use super::signature::Given;
use super::words::words;
use crate::tensor::Misfit;
use crate::{Call, DataType, Element, InferError, Tensor};
use bytes::Bytes;
use half::{bf16, f16};
use ort::memory::Allocator;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef};
use std::marker::PhantomData;
use std::sync::Arc;

/// Element types that are both ONNX Runtime's and the protocol's.
const TYPES: [(TensorElementType, DataType); 14] = [
    (TensorElementType::Bool, DataType::Bool),
    (TensorElementType::Uint8, DataType::Uint8),
    (TensorElementType::Uint16, DataType::Uint16),
    (TensorElementType::Uint32, DataType::Uint32),
    (TensorElementType::Uint64, DataType::Uint64),
    (TensorElementType::Int8, DataType::Int8),
    (TensorElementType::Int16, DataType::Int16),
    (TensorElementType::Int32, DataType::Int32),
    (TensorElementType::Int64, DataType::Int64),
    (TensorElementType::Float16, DataType::Fp16),
    (TensorElementType::Bfloat16, DataType::Bf16),
    (TensorElementType::Float32, DataType::Fp32),
    (TensorElementType::Float64, DataType::Fp64),
    (TensorElementType::String, DataType::Bytes),
];

/// What addresses of ONNX Runtime's own tensors are multiples of. Some of its sums begin with single numbers up to such an
/// address: of a tensor that lies elsewhere they give other last bits, by where the body of its request happens to lie.
const ALIGNMENT: usize = 64;
/// Bytes that are copied for that, in well under a tenth of a millisecond. A copy of an image or a batch of them would take
/// as long as some graphs do.
const COPIED: usize = 256 << 10;

/// The protocol's name of an element type; `None` where it has none.
pub(super) fn datatype(element: TensorElementType) -> Option<DataType> {
    TYPES.iter().find(|(known, _)| *known == element).map(|(_, datatype)| *datatype)
}

/// A tensor as an input of this shape, which borrows its numbers, or has a copy of them where they are not aligned.
///
/// # Errors
/// Text that is no UTF-8 or holds a zero byte; truth values that are neither 0 nor 1.
pub(super) fn lend(tensor: &Tensor, shape: Vec<usize>) -> Result<SessionInputValue<'_>, InferError> {
    macro_rules! numbers {
        ($($datatype:ident $type:ty),*) => {
            match tensor.datatype() {
                $(DataType::$datatype => view::<$type>(tensor, shape, tensor.values::<$type>().unwrap_or_default()),)*
                DataType::Bool => {
                    let values = bytemuck::checked::try_cast_slice::<u8, bool>(tensor.bytes());
                    let values = values.map_err(|_| {
                        InferError::invalid(format!("input '{}' has BOOL values other than 0 and 1", tensor.name()))
                    })?;
                    view::<bool>(tensor, shape, values)
                }
                DataType::Bytes => text(tensor, shape),
            }
        };
    }
    numbers!(
        Uint8 u8, Uint16 u16, Uint32 u32, Uint64 u64, Int8 i8, Int16 i16, Int32 i32, Int64 i64,
        Fp16 f16, Bf16 bf16, Fp32 f32, Fp64 f64
    )
}

fn view<'a, T>(tensor: &Tensor, shape: Vec<usize>, values: &'a [T]) -> Result<SessionInputValue<'a>, InferError>
where
    T: PrimitiveTensorElementType + std::fmt::Debug + Copy + 'static,
{
    if values.is_empty() || values.as_ptr().addr().is_multiple_of(ALIGNMENT) || size_of_val(values) > COPIED {
        return TensorRef::from_array_view((shape, values)).map(Into::into).map_err(|e| refused(tensor, &e));
    }
    let copy = ort::value::Tensor::<T>::new(&Allocator::default(), shape);
    // Of a shape that is the tensor's, there is nothing else to fail.
    let mut copy = copy.map_err(|e| InferError::Memory(format!("input '{}': {}", tensor.name(), words(&e))))?;
    copy.extract_tensor_mut().1.copy_from_slice(values);
    Ok(copy.into())
}

fn text(tensor: &Tensor, shape: Vec<usize>) -> Result<SessionInputValue<'static>, InferError> {
    let mut texts = Vec::with_capacity(tensor.len());
    for (index, text) in tensor.strings().into_iter().flatten().enumerate() {
        let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('\0'));
        texts.push(text.map(str::to_owned).ok_or_else(|| {
            InferError::invalid(format!(
                "element {index} of input '{}' is not UTF-8 text without zero bytes, which this model takes",
                tensor.name()
            ))
        })?);
    }
    let value = ort::value::Tensor::from_string_array((shape, &texts[..]));
    value.map(Into::into).map_err(|e| refused(tensor, &e))
}

fn refused(tensor: &Tensor, error: &ort::Error) -> InferError {
    InferError::invalid(format!("input '{}': {}", tensor.name(), words(error)))
}

/// An output as a tensor called `name`. Where it is one of the call's tensors itself, it is copied.
///
/// # Errors
/// It is of a kind or type that the signature did not announce; or what is in a sequence or a map makes no tensor, which
/// the graph may mean, and the request, too: whoever asked is told.
pub(super) fn take(name: &str, given: &Given, value: DynValue, owner: &Owner<'_>) -> Result<Tensor, InferError> {
    let taken = match given {
        Given::Tensor => {
            let taken = borrow(name, value, owner);
            return taken.map_err(|reason| InferError::Internal(format!("output '{name}': {reason}")));
        }
        Given::Tensors => flatten::tensors(name, &value, owner),
        Given::Maps(classes) => flatten::maps(name, &value, classes, owner.call),
        Given::Map(classes) => flatten::map(name, &value, classes, owner.call),
    };
    taken.map_err(|failure| match failure {
        Failure::Shapeless(reason) => InferError::Unsupported(format!("output '{name}': {reason}")),
        Failure::Ended(error) => error,
    })
}

/// Whose memory outputs may be.
pub(super) struct Owner<'a> {
    /// The session's, which is kept.
    pub(super) session: &'a Arc<Session>,
    /// The request's, whose tensors go when it was answered.
    pub(super) call: &'a Call<'a>,
}

impl Owner<'_> {
    /// Do these bytes lie in a tensor that was lent?
    fn has_lent(&self, bytes: &[u8]) -> bool {
        let range = bytes.as_ptr_range();
        self.call.inputs.iter().any(|tensor| {
            let lent = tensor.bytes().as_ptr_range();
            range.start < lent.end && lent.start < range.end
        })
    }
}

/// A value that holds the numbers of a tensor.
struct Lent<T> {
    value: DynValue,
    element: PhantomData<T>,
    /// Its memory is the session's.
    _session: Arc<Session>,
}

impl<T: PrimitiveTensorElementType + bytemuck::NoUninit> AsRef<[u8]> for Lent<T> {
    fn as_ref(&self) -> &[u8] {
        self.value.try_extract_tensor::<T>().map_or(&[], |(_, values)| bytemuck::cast_slice(values))
    }
}

/// A tensor over the numbers of a value; text is copied.
pub(super) fn borrow(name: &str, value: DynValue, owner: &Owner<'_>) -> Result<Tensor, String> {
    let element = *value.data_type();
    let shape = value.shape().iter().map(|&length| usize::try_from(length));
    let shape: Vec<usize> = shape.collect::<Result<_, _>>().map_err(|_| "has a negative length".to_owned())?;
    macro_rules! numbers {
        ($($element:ident $type:ty),*) => {
            match element {
                $(TensorElementType::$element => owned::<$type>(name, shape, value, owner),)*
                TensorElementType::Bool => {
                    let values = value.try_extract_tensor::<bool>().map_err(|e| e.message().to_owned())?.1;
                    Tensor::from_bools(name, shape, bytemuck::cast_slice(values).to_vec())
                }
                TensorElementType::String => {
                    let count = shape.iter().product();
                    let (text, ends) = run::texts(&value, count).map_err(|e| e.message().to_owned())?;
                    let ends: Result<Vec<u32>, _> = ends.into_iter().map(u32::try_from).collect();
                    Tensor::from_text(name, shape, ends.map_err(|_| "has more than 4 GiB of text".to_owned())?, text)
                }
                other => return Err(format!("is of type {other}, which the protocol does not have")),
            }
        };
    }
    let tensor: Result<Tensor, Misfit> = numbers!(
        Uint8 u8, Uint16 u16, Uint32 u32, Uint64 u64, Int8 i8, Int16 i16, Int32 i32, Int64 i64,
        Float16 f16, Bfloat16 bf16, Float32 f32, Float64 f64
    );
    tensor.map_err(|misfit| misfit.to_string())
}

fn owned<T>(name: &str, shape: Vec<usize>, value: DynValue, owner: &Owner<'_>) -> Result<Tensor, Misfit>
where
    T: Element + PrimitiveTensorElementType,
{
    let lent = Lent::<T> { value, element: PhantomData, _session: owner.session.clone() };
    // An output that is an input as well is the request's own memory, however it came through the graph.
    if owner.has_lent(lent.as_ref()) {
        return Tensor::from_bytes(name, T::DATATYPE, shape, Bytes::copy_from_slice(lent.as_ref()));
    }
    Tensor::from_bytes(name, T::DATATYPE, shape, Bytes::from_owner(lent))
}
