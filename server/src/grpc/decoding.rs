//! How messages of gRPC are read: none that is made of very many small things, of which memory holds far more than the wire.

use super::status;
use crate::error::Error;
use bytes::Buf;
use prost::Message;
use protocol::parts::{MOST_PARTS, Request, SHORT};
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

/// Writes `T`, and reads `U`.
pub(super) struct Codec<T, U>(PhantomData<(T, U)>);

/// Reads `U`.
pub(super) struct Reader<U>(PhantomData<U>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Codec(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Request + Send + 'static> tonic::codec::Codec for Codec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as tonic::codec::Codec>::Encoder;
    type Decoder = Reader<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Reader(PhantomData)
    }
}

impl<U: Request> Decoder for Reader<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let encoded = buf.copy_to_bytes(buf.remaining());
        if !U::is_moderate(&encoded) {
            let what = format!(
                "the message is made of more than {MOST_PARTS} inputs, outputs, parameters and dimensions, or is longer than \
                 {SHORT} bytes and asks for no inference"
            );
            return Err(status(&Error::TooLarge(what)));
        }
        let broken = |error: prost::DecodeError| status(&Error::Invalid(error.to_string()));
        U::decode(encoded).map(Some).map_err(broken)
    }
}
