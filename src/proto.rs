//! The public API's messages, generated from `proto/` by `build.rs`.
//!
//! [`client`] has the messages as the files say. [`server`] has the same messages with every field
//! of type `RecordBatch` as plain [`bytes::Bytes`]: the wire form is identical, so the server holds
//! a batch as a slice of the buffer it was received in. What such a slice may contain is
//! [`crate::batch`]'s to say.

pub mod codec;
pub mod stream;

/// The messages as clients use them.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod client {
    include!(concat!(env!("OUT_DIR"), "/client/quipu.v1.rs"));
}

/// The messages as the server uses them: record batches are opaque bytes.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod server {
    include!(concat!(env!("OUT_DIR"), "/server/quipu.v1.rs"));
}

/// What nodes say to each other.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod internal {
    include!(concat!(env!("OUT_DIR"), "/server/quipu.internal.v1.rs"));
}

/// Paths of the calls that do not go through the generated code.
pub mod path {
    /// `LogService.Produce`.
    pub const PRODUCE: &str = "/quipu.v1.LogService/Produce";
    /// `LogService.ProduceStream`.
    pub const PRODUCE_STREAM: &str = "/quipu.v1.LogService/ProduceStream";
    /// `LogService.Subscribe`.
    pub const SUBSCRIBE: &str = "/quipu.v1.LogService/Subscribe";
    /// `GroupService.Consume`.
    pub const CONSUME: &str = "/quipu.v1.GroupService/Consume";
}

/// The encoded `FileDescriptorSet` of `proto/`, for server reflection.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::{FILE_DESCRIPTORS, client, path, server};

    fn files() -> Vec<prost_types::FileDescriptorProto> {
        prost_types::FileDescriptorSet::decode(FILE_DESCRIPTORS).unwrap().file
    }

    fn stored_batch() -> client::StoredBatch {
        let record = client::Record {
            key: Some(Bytes::from_static(b"k")),
            value: Some(Bytes::from_static(b"a value")),
            headers: vec![client::Header { name: "h".into(), value: Bytes::from_static(b"1") }],
            event_time_ms: Some(-1),
        };
        client::StoredBatch {
            base_offset: 42,
            record_count: 2,
            append_time_ms: 1_700_000_000_000,
            leader_epoch: 7,
            crc: 0xDEAD_BEEF,
            batch: Some(client::RecordBatch {
                records: vec![record.clone(), record],
                ..Default::default()
            }),
        }
    }

    #[test]
    fn the_server_takes_a_batch_as_a_slice_of_the_receive_buffer() {
        let sent = stored_batch();
        let received = Bytes::from(sent.encode_to_vec());
        let stored = server::StoredBatch::decode(received.clone()).unwrap();

        assert_eq!(stored.batch, sent.batch.unwrap().encode_to_vec());
        let buffer = received.as_ptr_range();
        let batch = stored.batch.as_ptr_range();
        assert!(buffer.start <= batch.start && batch.end <= buffer.end, "the batch was copied");
    }

    #[test]
    fn the_server_encodes_what_the_client_encoded() {
        let sent = stored_batch();
        let received = sent.encode_to_vec();
        let stored = server::StoredBatch::decode(received.as_slice()).unwrap();
        assert_eq!(stored.encode_to_vec(), received);
        assert_eq!(client::StoredBatch::decode(received.as_slice()).unwrap(), sent);
    }

    #[test]
    fn reflection_sees_the_message_and_not_its_bytes() {
        let files = files();
        let batch = files
            .iter()
            .flat_map(|file| &file.message_type)
            .filter(|message| message.name() == "StoredBatch")
            .flat_map(|message| &message.field)
            .find(|field| field.name() == "batch")
            .unwrap();
        assert_eq!(batch.type_name(), ".quipu.v1.RecordBatch");
    }

    /// With a wrong path a call would still be answered, by the code that copies its payloads.
    #[test]
    fn paths_are_those_of_calls() {
        let mut calls = Vec::new();
        for file in files() {
            for service in &file.service {
                let service_name = format!("{}.{}", file.package(), service.name());
                let method = |method: &prost_types::MethodDescriptorProto| {
                    let is_stream = method.client_streaming() && method.server_streaming();
                    (format!("/{service_name}/{}", method.name()), is_stream)
                };
                calls.extend(service.method.iter().map(method));
            }
        }
        for (path, is_stream) in [
            (path::PRODUCE, false),
            (path::PRODUCE_STREAM, true),
            (path::SUBSCRIBE, true),
            (path::CONSUME, true),
        ] {
            assert!(calls.contains(&(path.to_owned(), is_stream)), "{path} is no such call");
        }
    }
}
