//! What goes out: messages as the body of a request or an answer.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes};
use http_body::{Body, Frame};
use prost::Message;
use tokio_stream::Stream;
use tonic::Status;
use tonic::codegen::http::HeaderMap;

use super::rope::{Rope, RopeMut};

/// Messages that are ready go out together up to so many bytes.
const TOGETHER_BYTES: usize = 32 << 10;
/// What comes before each message: that it is not compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A message that can be sent in pieces.
pub trait Outbound {
    /// Length of its encoding.
    fn bytes(&self) -> usize;

    /// Adds its encoding: exactly so many bytes.
    fn put(self, out: &mut RopeMut);
}

/// A message with nothing large in it.
pub trait InOnePiece: Message {}

impl<M: InOnePiece> Outbound for M {
    fn bytes(&self) -> usize {
        self.encoded_len()
    }

    fn put(self, out: &mut RopeMut) {
        self.encode_raw(out.gather());
    }
}

/// A stream of messages as a body, in pieces.
#[derive(Debug)]
pub struct Outgoing<S> {
    /// Until it has ended.
    messages: Option<S>,
    /// What it ended with, to be said by the trailers of an answer.
    status: Option<Status>,
    /// What it broke off with; a request has no trailers to say so.
    broken: Option<Status>,
    pending: Rope,
    out: RopeMut,
}

impl<S> Outgoing<S> {
    /// The body of a request. It ends without a word.
    pub fn request(messages: S) -> Self {
        Self {
            messages: Some(messages),
            status: None,
            broken: None,
            pending: Rope::default(),
            out: RopeMut::default(),
        }
    }

    /// The body of an answer, which ends with a status.
    pub fn answer(messages: S) -> Self {
        Self { status: Some(Status::ok("")), ..Self::request(messages) }
    }
}

impl<S, M> Outgoing<S>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
    M: Outbound,
{
    /// Encodes what is ready. True if the end is reached.
    fn encode_ready(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some(messages) = &mut self.messages {
            if self.out.bytes() >= TOGETHER_BYTES {
                return false;
            }
            match Pin::new(messages).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => encode(message, &mut self.out),
                Poll::Ready(Some(Err(status))) => {
                    self.messages = None;
                    match &mut self.status {
                        Some(ending) => *ending = status,
                        None => self.broken = Some(status),
                    }
                }
                Poll::Ready(None) => self.messages = None,
                Poll::Pending => return false,
            }
        }
        true
    }
}

fn encode<M: Outbound>(message: M, out: &mut RopeMut) {
    let (bytes, before) = (message.bytes(), out.bytes());
    let length = u32::try_from(bytes).expect("a message is below four gigabytes");
    out.gather().put_u8(0);
    out.gather().put_u32(length);
    message.put(out);
    let put = out.bytes() - before - PREFIX_BYTES;
    assert_eq!(put, bytes, "a message has the length that it was said to have");
}

impl<S, M> Body for Outgoing<S>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
    M: Outbound,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(piece) = this.pending.pop() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let is_over = this.encode_ready(cx);
        this.pending = this.out.finish();
        if let Some(piece) = this.pending.pop() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if !is_over {
            return Poll::Pending;
        }
        if let Some(status) = this.broken.take() {
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(this.status.take().map(|status| trailers(&status)))
    }

    fn is_end_stream(&self) -> bool {
        let has_said_all = self.status.is_none() && self.broken.is_none();
        self.messages.is_none() && has_said_all && !self.pending.has_remaining()
    }
}

fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::with_capacity(4);
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}
