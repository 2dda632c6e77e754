//! Streams of messages whose payloads are not copied.
//!
//! A codec of `tonic` writes a message into one buffer, and gathers what comes into another: each
//! payload is copied once more at either end, into memory that is new each time. Between three
//! nodes and their clients that was an eighth of all time. Here what is large in a message goes to
//! the socket from where it is ([`Outgoing`]), and comes as a slice of what the connection has read
//! ([`Rope`]). What goes over the wire is the same.
//!
//! Calls that are no streams, and the servers' and clients' types, are those of `tonic`.

mod call;
mod incoming;
mod outgoing;
mod rope;

pub use self::call::{Answered, Streams, WithStreams, ask, serve};
pub use self::incoming::Inbound;
pub use self::outgoing::{InOnePiece, Outbound, Outgoing};
pub use self::rope::{Rope, RopeMut};

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::{Buf as _, Bytes};
    use futures_util::FutureExt as _;
    use http_body::{Body as HttpBody, Frame};
    use prost::Message as _;
    use tonic::body::Body;
    use tonic::codegen::http::{HeaderMap, Response};
    use tonic::{Code, Status, Streaming};

    use super::incoming::{of_answer, of_request};
    use super::*;
    use crate::proto::server::{ProduceRequest, ProduceStreamRequest};

    const MESSAGE_BYTES_MAX: usize = 200_000;

    /// A body of these pieces, and its end.
    struct Pieces(Vec<Result<Frame<Bytes>, Status>>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready((!self.0.is_empty()).then(|| self.0.remove(0)))
        }
    }

    fn body(pieces: &[&[u8]]) -> Body {
        let data = |piece: &&[u8]| Ok(Frame::data(Bytes::copy_from_slice(piece)));
        Body::new(Pieces(pieces.iter().map(data).collect()))
    }

    fn request(request_id: u64, bytes: usize) -> ProduceStreamRequest {
        let batch = Bytes::from(vec![request_id as u8; bytes]);
        let produce = ProduceRequest { topic: "cords".into(), batch, ..ProduceRequest::default() };
        ProduceStreamRequest { request_id, produce: Some(produce) }
    }

    fn sent(requests: &[ProduceStreamRequest], status: Option<Status>) -> (Vec<Bytes>, HeaderMap) {
        let ends = status.into_iter().map(Err);
        let all: Vec<_> = requests.iter().cloned().map(Ok).chain(ends).collect();
        let mut body = Body::new(Outgoing::answer(tokio_stream::iter(all)));
        let (mut pieces, mut trailers) = (Vec::new(), HeaderMap::new());
        let mut next =
            || std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).now_or_never();
        while let Some(frame) = next().expect("all of it is there") {
            match frame.unwrap().into_data() {
                Ok(piece) => pieces.push(piece),
                Err(frame) => trailers = frame.into_trailers().unwrap(),
            }
        }
        (pieces, trailers)
    }

    fn received(
        mut messages: Streaming<ProduceStreamRequest>,
    ) -> (Vec<ProduceStreamRequest>, Code) {
        let mut received = Vec::new();
        loop {
            match messages.message().now_or_never().expect("all of it is there") {
                Ok(Some(message)) => received.push(message),
                Ok(None) => return (received, Code::Ok),
                Err(status) => return (received, status.code()),
            }
        }
    }

    #[test]
    fn messages_come_as_they_went_however_they_are_cut() {
        let requests =
            [request(1, 0), request(2, 300), request(3, 0), ProduceStreamRequest::default()];
        let (pieces, _) = sent(&requests, None);
        let bytes = pieces.concat();
        let mut expected = Vec::new();
        for request in &requests {
            expected.extend([&[0][..], &(request.encoded_len() as u32).to_be_bytes()].concat());
            expected.extend(request.encode_to_vec());
        }
        assert_eq!(bytes.len(), expected.len());
        for first in 0..=bytes.len() {
            for second in [first, (first + 3).min(bytes.len()), bytes.len()] {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let found = received(of_request(body(&pieces), MESSAGE_BYTES_MAX));
                assert_eq!(found, (requests.to_vec(), Code::Ok), "cut at {first} and {second}");
            }
        }
        let each: Vec<&[u8]> = bytes.chunks(1).collect();
        let found = received(of_request(body(&each), MESSAGE_BYTES_MAX));
        assert_eq!(found, (requests.to_vec(), Code::Ok));
    }

    #[test]
    fn a_large_payload_is_copied_nowhere() {
        let request = request(7, 100_000);
        let payload = request.produce.as_ref().unwrap().batch.as_ptr();
        let (pieces, _) = sent(&[request], None);
        let large = pieces.iter().find(|piece| piece.len() == 100_000).unwrap();
        assert_eq!(large.as_ptr(), payload);
        let pieces = pieces.into_iter().map(|piece| Ok(Frame::data(piece))).collect();
        let messages = of_request(Body::new(Pieces(pieces)), MESSAGE_BYTES_MAX);
        let (received, _) = received(messages);
        assert_eq!(received[0].produce.as_ref().unwrap().batch.as_ptr(), payload);
    }

    #[test]
    fn small_messages_go_out_together() {
        let requests: Vec<_> = (0..20).map(|id| request(id, 10)).collect();
        let (pieces, trailers) = sent(&requests, None);
        assert_eq!(pieces.len(), 1);
        assert_eq!(trailers["grpc-status"], "0");
    }

    #[test]
    fn a_stream_ends_as_it_was_ended() {
        let (pieces, trailers) = sent(&[request(1, 5)], Some(Status::aborted("enough")));
        let mut frames: Vec<_> = pieces.into_iter().map(|piece| Ok(Frame::data(piece))).collect();
        frames.push(Ok(Frame::trailers(trailers)));
        let answer = Response::new(Body::new(Pieces(frames)));
        let messages = of_answer(answer, MESSAGE_BYTES_MAX).unwrap();
        assert_eq!(received(messages), (vec![request(1, 5)], Code::Aborted));
        let refused: Response<Body> = Status::not_found("nowhere").into_http();
        let refused = of_answer::<Rope>(refused, MESSAGE_BYTES_MAX).unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::NotFound, "nowhere"));
        let broken = Pieces(vec![Err(Status::unavailable("the line is cut"))]);
        let messages = of_request(Body::new(broken), MESSAGE_BYTES_MAX);
        assert_eq!(received(messages), (vec![], Code::Unavailable));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (pieces, _) = sent(&[request(1, 50)], None);
        let whole = pieces.concat();
        let good = &whole[..];
        for (piece, code, why) in [
            (&[1, 0, 0, 0, 1, 0][..], Code::Internal, "compressed"),
            (&[9, 0, 0, 0, 1, 0], Code::Internal, "not a flag"),
            (&[0, 0, 4, 0, 0], Code::OutOfRange, "too long"),
            (&[0, 255, 255, 255, 255], Code::OutOfRange, "far too long"),
            (&[0, 0, 0, 0, 2, 255, 255], Code::Internal, "not a message"),
            (&[0, 0], Code::Internal, "a prefix cut short"),
            (&good[..30], Code::Internal, "a message cut short"),
            (&good[..5], Code::Internal, "nothing but a prefix"),
        ] {
            let (before, found) = received(of_request(body(&[good, piece]), MESSAGE_BYTES_MAX));
            assert_eq!((before.len(), found), (1, code), "{why}");
        }
    }

    #[test]
    fn a_message_in_many_small_pieces_takes_no_more_than_its_length() {
        let (pieces, _) = sent(&[request(3, 60_000)], None);
        let whole = pieces.concat();
        let each: Vec<&[u8]> = whole.chunks(100).collect();
        let mut messages = of_request::<Rope>(body(&each), MESSAGE_BYTES_MAX);
        let mut rope = messages.message().now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(rope.remaining(), whole.len() - 5);
        let pieces: Vec<_> = std::iter::from_fn(|| rope.pop()).collect();
        assert!(pieces.len() <= 2, "what came with the prefix, and all the rest");
        assert!(pieces.concat() == whole[5..]);
    }

    #[test]
    fn a_request_that_breaks_off_does_not_seem_whole() {
        let broken = [Ok(request(1, 5)), Err(Status::aborted("enough"))];
        let body = Body::new(Outgoing::request(tokio_stream::iter(broken)));
        let found = received(of_request(body, MESSAGE_BYTES_MAX));
        assert_eq!(found, (vec![request(1, 5)], Code::Aborted));
    }

    #[tokio::test]
    async fn messages_that_come_one_by_one_are_waited_for() {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let body = Body::new(Outgoing::answer(requests));
        let sending = tokio::spawn(async move {
            for id in 0..50 {
                let sent = sender.send(Ok(request(id, 700 * id as usize))).await;
                sent.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut messages = of_answer(Response::new(body), MESSAGE_BYTES_MAX).unwrap();
        for id in 0..50 {
            let next = tokio::time::timeout(std::time::Duration::from_secs(20), messages.message());
            let message: ProduceStreamRequest = next.await.unwrap().unwrap().unwrap();
            assert_eq!(message, request(id, 700 * id as usize));
        }
        sending.await.unwrap();
        assert!(messages.message().await.unwrap().is_none());
    }

    #[test]
    fn a_rope_is_a_message_of_its_own() {
        let mut messages = of_request::<Rope>(body(&[&[0, 0, 0, 0, 3], b"a", b"bc"]), 3);
        let mut rope = messages.message().now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(rope.copy_to_bytes(3), b"abc"[..]);
    }
}
