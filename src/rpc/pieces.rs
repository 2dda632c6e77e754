//! How messages with batches in them go out: the batches last, and the large ones uncopied.

use std::mem;

use prost::Message as _;

use crate::proto::server::consume_response::Message as ToMember;
use crate::proto::server::subscribe_response::Message as ToSubscriber;
use crate::proto::server::{
    ConsumeResponse, ProduceStreamRequest, ProduceStreamResponse, StoredBatch, SubscribeResponse,
};
use crate::proto::stream::{InOnePiece, Outbound, RopeMut};

impl InOnePiece for ProduceStreamResponse {}

impl Outbound for ProduceStreamRequest {
    fn bytes(&self) -> usize {
        self.encoded_len()
    }

    fn put(self, out: &mut RopeMut) {
        let Self { request_id, produce } = self;
        Self { request_id, produce: None }.encode_raw(out.gather());
        if let Some(mut produce) = produce {
            let batch = mem::take(&mut produce.batch);
            out.put_message(2, &produce, (4, batch));
        }
    }
}

impl Outbound for SubscribeResponse {
    fn bytes(&self) -> usize {
        self.encoded_len()
    }

    fn put(self, out: &mut RopeMut) {
        match self.message {
            Some(ToSubscriber::Data(mut data)) => {
                out.begin_field(2, data.encoded_len());
                let batches = mem::take(&mut data.batches);
                data.encode_raw(out.gather());
                put_batches(batches, out);
            }
            message => Self { message }.encode_raw(out.gather()),
        }
    }
}

impl Outbound for ConsumeResponse {
    fn bytes(&self) -> usize {
        self.encoded_len()
    }

    fn put(self, out: &mut RopeMut) {
        match self.message {
            Some(ToMember::Data(mut data)) => {
                out.begin_field(5, data.encoded_len());
                let batches = mem::take(&mut data.batches);
                data.encode_raw(out.gather());
                put_batches(batches, out);
            }
            message => Self { message }.encode_raw(out.gather()),
        }
    }
}

/// Adds the batches of a `SubscribeData` or a `ConsumeData`.
fn put_batches(batches: Vec<StoredBatch>, out: &mut RopeMut) {
    for mut stored in batches {
        let batch = mem::take(&mut stored.batch);
        out.put_message(2, &stored, (6, batch));
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use bytes::{Buf as _, Bytes};
    use prost::Message;

    use super::*;
    use crate::proto::server::{ConsumeData, ProduceRequest, SubscribeData};

    fn batches() -> Vec<StoredBatch> {
        let stored = |bytes: usize| StoredBatch {
            base_offset: 7,
            batch: Bytes::from(vec![1; bytes]),
            ..StoredBatch::default()
        };
        [100_000, 10, 0, 40_000].map(stored).into()
    }

    fn comes_in_as_it_went_out<M>(sent: &M)
    where
        M: Outbound + Message + Default + PartialEq + Clone + Debug,
    {
        let mut out = RopeMut::default();
        sent.clone().put(&mut out);
        assert_eq!(out.bytes(), sent.bytes());
        let rope = out.finish();
        assert_eq!(rope.remaining(), sent.bytes());
        assert_eq!(M::decode(rope).unwrap(), *sent);
    }

    #[test]
    fn messages_come_in_as_they_went_out() {
        let data = SubscribeData {
            partition: 3,
            batches: batches(),
            next_offset: 9,
            high_watermark: 10,
            cost_bytes: 11,
        };
        comes_in_as_it_went_out(&SubscribeResponse { message: Some(ToSubscriber::Data(data)) });
        let data = ConsumeData { assignment: 4, batches: batches(), ..ConsumeData::default() };
        comes_in_as_it_went_out(&ConsumeResponse { message: Some(ToMember::Data(data)) });
        let gone = ToMember::GoAway(crate::proto::server::ConsumeGoAway::default());
        comes_in_as_it_went_out(&ConsumeResponse { message: Some(gone) });
        comes_in_as_it_went_out(&SubscribeResponse::default());
        for bytes in [0, 5, 100_000] {
            let batch = Bytes::from(vec![1; bytes]);
            let produce = ProduceRequest {
                topic: "cords".into(),
                batch,
                crc: Some(0),
                acks: 1,
                ..ProduceRequest::default()
            };
            let (request_id, produce) = (1 << 40, Some(produce));
            comes_in_as_it_went_out(&ProduceStreamRequest { request_id, produce });
        }
        comes_in_as_it_went_out(&ProduceStreamRequest::default());
    }
}
