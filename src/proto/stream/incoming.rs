//! What comes in: messages out of the body of a request or an answer.
//!
//! [`Streaming`] counts the messages, knows how a stream may end and what its end means. The bytes
//! of a message go past it: it is given an empty message for each, and its decoder takes the true
//! one from where the body has put it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use prost::{DecodeError, Message};
use tonic::body::Body;
use tonic::codec::{DecodeBuf, Decoder};
use tonic::codegen::http::Response;
use tonic::{Status, Streaming};

use super::rope::Rope;

/// What comes before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
const EMPTY_MESSAGE: &[u8] = &[0; PREFIX_BYTES];
/// Pieces below this length are copied. As slices they would hold on to what else the connection
/// read with them, and a message in pieces of one byte would take a hundred times its length.
const SLICE_BYTES_MIN: usize = 8 << 10;

/// A message that can be taken out of the pieces that it came in.
pub trait Inbound: Sized + Send + 'static {
    /// Decodes a whole message.
    ///
    /// # Errors
    /// If it is none.
    fn take(rope: Rope) -> Result<Self, DecodeError>;
}

impl<M: Message + Default + 'static> Inbound for M {
    fn take(rope: Rope) -> Result<Self, DecodeError> {
        Self::decode(rope)
    }
}

impl Inbound for Rope {
    fn take(rope: Rope) -> Result<Self, DecodeError> {
        Ok(rope)
    }
}

/// The messages of a request, none of them longer than `message_bytes_max`.
pub(super) fn of_request<M: Inbound>(body: Body, message_bytes_max: usize) -> Streaming<M> {
    let (past, decoder) = past(body, message_bytes_max);
    Streaming::new_request(decoder, past, None, Some(message_bytes_max))
}

/// The messages of an answer, none of them longer than `message_bytes_max`.
///
/// # Errors
/// The status that came in their place.
pub(super) fn of_answer<M: Inbound>(
    answer: Response<Body>,
    message_bytes_max: usize,
) -> Result<Streaming<M>, Status> {
    let (head, body) = answer.into_parts();
    let (past, decoder) = past(body, message_bytes_max);
    match Status::from_header_map(&head.headers) {
        Some(status) if status.code() != tonic::Code::Ok => Err(status),
        Some(_) => Ok(Streaming::new_empty(decoder, past)),
        None => {
            let max = Some(message_bytes_max);
            Ok(Streaming::new_response(decoder, past, head.status, None, max))
        }
    }
}

/// Messages on their way past [`Streaming`].
type Whole = Arc<Mutex<VecDeque<Rope>>>;

fn lock(whole: &Whole) -> MutexGuard<'_, VecDeque<Rope>> {
    whole.lock().expect("nobody panics with the lock")
}

fn past<M: Inbound>(body: Body, message_bytes_max: usize) -> (Past, PastDecoder<M>) {
    let whole = Whole::default();
    let (read, copied, awaited) = (Rope::default(), BytesMut::new(), None);
    let past = Past { body, message_bytes_max, read, copied, awaited, whole: whole.clone() };
    (past, PastDecoder { whole, decode: M::take })
}

struct PastDecoder<M> {
    whole: Whole,
    decode: fn(Rope) -> Result<M, DecodeError>,
}

impl<M: Inbound> Decoder for PastDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let Some(message) = lock(&self.whole).pop_front() else { return Ok(None) };
        let decoded = (self.decode)(message);
        decoded.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// A body that puts its messages aside.
struct Past {
    body: Body,
    message_bytes_max: usize,
    /// What has come of the next messages.
    read: Rope,
    /// Small pieces that came after that.
    copied: BytesMut,
    /// Length of the next message, once its prefix was read.
    awaited: Option<usize>,
    whole: Whole,
}

impl Past {
    fn keep(&mut self, piece: Bytes) {
        if piece.len() >= SLICE_BYTES_MIN {
            self.read.push(self.copied.split().freeze());
            self.read.push(piece);
            return;
        }
        if self.copied.capacity() - self.copied.len() < piece.len() {
            self.copied.reserve(SLICE_BYTES_MIN);
        }
        self.copied.extend_from_slice(&piece);
    }

    /// Puts the next message aside if it is whole, and returns what stands for it. A prefix that is
    /// not in order is returned as it is, for [`Streaming`] to say what is wrong.
    fn next(&mut self) -> Option<Bytes> {
        let needed = self.awaited.unwrap_or(PREFIX_BYTES);
        if self.read.remaining() + self.copied.len() < needed {
            return None;
        }
        self.read.push(self.copied.split().freeze());
        if self.awaited.is_none() && self.read.remaining() >= PREFIX_BYTES {
            let (is_compressed, length) = (self.read.get_u8(), self.read.get_u32());
            if is_compressed != 0 || length as usize > self.message_bytes_max {
                (self.body, self.read) = (Body::empty(), Rope::default());
                self.copied.clear();
                return Some(prefix(is_compressed, length));
            }
            self.awaited = Some(length as usize);
        }
        let length = self.awaited.filter(|length| *length <= self.read.remaining())?;
        self.awaited = None;
        let message = self.read.split_to(length);
        lock(&self.whole).push_back(message);
        Some(Bytes::from_static(EMPTY_MESSAGE))
    }

    /// What stands for a message that was cut short: [`Streaming`] complains of it.
    fn rest(&mut self) -> Option<Bytes> {
        let has_read = self.read.has_remaining() || !self.copied.is_empty();
        let is_begun = self.awaited.take().is_some() || has_read;
        self.read = Rope::default();
        self.copied.clear();
        is_begun.then(|| Bytes::from_static(&EMPTY_MESSAGE[..1]))
    }
}

fn prefix(is_compressed: u8, length: u32) -> Bytes {
    let [a, b, c, d] = length.to_be_bytes();
    Bytes::copy_from_slice(&[is_compressed, a, b, c, d])
}

impl HttpBody for Past {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(message) = self.next() {
                return Poll::Ready(Some(Ok(Frame::data(message))));
            }
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(piece))) => self.keep(piece),
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(self.rest().map(|rest| Ok(Frame::data(rest)))),
            }
        }
    }
}
