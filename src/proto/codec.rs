//! The codec of all calls: each message is encoded into a buffer that has room for it.
//!
//! The codec of `tonic_prost` lets the buffer grow while a message is written, twice as large each
//! time. For a message of 64 KiB or more that is as many bytes copied again, into memory that is
//! new each time.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder};

/// Encodes `T` and decodes `U`.
#[derive(Debug)]
pub struct ExactCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ExactCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for ExactCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ExactEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> ExactEncoder<T> {
        ExactEncoder::default()
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::default())
    }
}

/// Encodes `T`.
#[derive(Debug)]
pub struct ExactEncoder<T>(PhantomData<T>);

impl<T> Default for ExactEncoder<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message> Encoder for ExactEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.encoded_len());
        item.encode_raw(buffer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use http_body::Body as _;
    use tonic::codec::EncodeBody;

    use super::*;
    use crate::proto::server::ProduceRequest;

    #[test]
    fn messages_are_encoded_as_prost_does() {
        let batch = Bytes::from(vec![7; 100_000]);
        let request = ProduceRequest { topic: "cords".into(), batch, ..ProduceRequest::default() };
        let messages = tokio_stream::iter([Ok(request.clone()), Ok(request.clone())]);
        let encoder = ExactEncoder::default();
        let mut body = Box::pin(EncodeBody::new_client(encoder, messages, None, None));
        for _ in 0..2 {
            let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).now_or_never();
            let data = frame.flatten().unwrap().unwrap().into_data().unwrap();
            assert_eq!(data[5..], request.encode_to_vec());
        }
    }
}
