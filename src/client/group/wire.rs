//! What a member is told, with each batch as bytes. See [`crate::client::wire`] for why.
//!
//! The numbers are those of `proto/quipu/v1/group.proto`; a test holds them against the generated
//! types.

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::client::connection::Route;
use crate::client::wire::{Stored, open};
use crate::proto::client::{
    ConsumeAssigned, ConsumeCommitted, ConsumeGap, ConsumeGoAway, ConsumeJoined, ConsumeLost,
    ConsumePositions, ConsumeRequest, ConsumeRevoke,
};
use crate::proto::path::CONSUME;
use crate::proto::stream::InOnePiece;

/// `ConsumeData`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Data {
    #[prost(uint64, tag = "1")]
    pub(super) assignment: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) batches: Vec<Stored>,
    #[prost(uint64, tag = "3")]
    pub(super) next_offset: u64,
    #[prost(uint64, tag = "4")]
    pub(super) high_watermark: u64,
    #[prost(uint32, tag = "5")]
    pub(super) cost_bytes: u32,
}

/// `ConsumeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Consumed {
    #[prost(oneof = "Told", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub(super) message: Option<Told>,
}

/// What a member is told.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Told {
    #[prost(message, tag = "1")]
    Joined(ConsumeJoined),
    #[prost(message, tag = "2")]
    Assigned(ConsumeAssigned),
    #[prost(message, tag = "3")]
    Revoke(ConsumeRevoke),
    #[prost(message, tag = "4")]
    Lost(ConsumeLost),
    #[prost(message, tag = "5")]
    Data(Data),
    #[prost(message, tag = "6")]
    Gap(ConsumeGap),
    #[prost(message, tag = "7")]
    Committed(ConsumeCommitted),
    #[prost(message, tag = "8")]
    Positions(ConsumePositions),
    #[prost(message, tag = "9")]
    GoAway(ConsumeGoAway),
}

/// Opens a member's stream. `requests` holds its join already.
pub(super) async fn consume(
    route: &Route,
    requests: mpsc::Receiver<ConsumeRequest>,
) -> Result<Streaming<Consumed>, Status> {
    open(route, requests, CONSUME).await
}

impl InOnePiece for ConsumeRequest {}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::client as api;

    fn data() -> api::ConsumeData {
        let value = Some(bytes::Bytes::from_static(b"v"));
        let records = vec![api::Record { value, ..Default::default() }];
        let batch = Some(api::RecordBatch { records, ..Default::default() });
        let (base_offset, record_count, append_time_ms) = (1, 1, 3);
        let (leader_epoch, crc) = (4, 5);
        let stored = api::StoredBatch {
            base_offset,
            record_count,
            append_time_ms,
            leader_epoch,
            crc,
            batch,
        };
        let (next_offset, high_watermark, cost_bytes) = (2, 3, 4);
        let batches = vec![stored];
        api::ConsumeData { assignment: 1, batches, next_offset, high_watermark, cost_bytes }
    }

    #[test]
    fn what_a_member_is_told_is_what_the_api_says() {
        use api::consume_response::Message as M;
        for message in [
            M::Joined(ConsumeJoined { member_id: "m".into(), ..Default::default() }),
            M::Assigned(ConsumeAssigned { assignments: vec![api::Assignment::default()] }),
            M::Revoke(ConsumeRevoke { assignments: vec![1], deadline_ms: 2 }),
            M::Lost(ConsumeLost { assignments: vec![1], reason: 2 }),
            M::Data(data()),
            M::Gap(ConsumeGap { assignment: 1, from_offset: 2, to_offset: 3 }),
            M::Committed(ConsumeCommitted { request_id: 1, outcomes: Vec::new() }),
            M::Positions(ConsumePositions { positions: vec![Default::default()] }),
            M::GoAway(ConsumeGoAway { error: Some(api::Error::default()) }),
        ] {
            let generated = api::ConsumeResponse { message: Some(message) };
            let bytes = generated.encode_to_vec();
            let own = Consumed::decode(bytes.as_slice()).unwrap();
            assert!(own.message.is_some());
            assert_eq!(own.encode_to_vec(), bytes);
        }
    }
}
