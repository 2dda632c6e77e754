//! A cluster in memory: two nodes over one state, with faults where a test wants them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message as _;
use quipu::client::{Client, ClientConfig};
use quipu::proto::client as api;
use quipu::proto::client::ErrorReason;
use quipu::proto::client::cluster_service_server::ClusterServiceServer;
use quipu::proto::client::group_service_server::GroupServiceServer;
use quipu::proto::client::log_service_server::{LogService, LogServiceServer};
use quipu::proto::client::topic_service_server::TopicServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::groups::Groups;
use crate::subscribe;

pub(crate) const TOPIC: &str = "orders";
pub(crate) const TOPIC_ID: &str = "6f3c2a1e-0000-4000-8000-000000000001";

/// What happens to a batch that arrives.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Nothing special.
    None,
    /// It is not stored, and the stream breaks.
    CutBefore,
    /// It is stored, and the stream breaks before the answer.
    CutAfter,
    /// It is not stored, and the answer says why.
    Refuse(ErrorReason),
    /// It is stored, and the answer says that this is not known.
    StoreAndSay(ErrorReason),
    /// The partition forgets all producers first.
    Forget,
}

/// A batch that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) node: u64,
    pub(crate) stamp: Option<api::ProducerStamp>,
    pub(crate) values: Vec<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Partition {
    pub(crate) leader: u64,
    pub(crate) batches: Vec<api::StoredBatch>,
    pub(crate) next_offset: u64,
    pub(crate) log_start_offset: u64,
    producers: HashMap<u64, Producer>,
}

impl Partition {
    /// How many producers have made themselves known.
    pub(crate) fn producers(&self) -> usize {
        self.producers.len()
    }
}

#[derive(Debug, Default)]
struct Producer {
    producer_epoch: u32,
    next_sequence: u32,
    /// Base offsets by base sequence.
    stored: HashMap<u32, u64>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) partitions: Vec<Partition>,
    /// One for each batch that arrives, in order.
    pub(crate) faults: VecDeque<Fault>,
    /// What happens to all others.
    pub(crate) always: Option<Fault>,
    pub(crate) seen: Vec<Seen>,
    /// Produce streams that were opened.
    pub(crate) streams: usize,
    /// Who leads, as nodes say that do not know better.
    pub(crate) rumor: Option<u64>,
    /// One for each administrative call, in order: how it fails.
    pub(crate) refusals: VecDeque<ErrorReason>,
    /// Nodes that were asked administrative questions.
    pub(crate) asked: Vec<u64>,
    pub(crate) created: Vec<api::CreateTopicRequest>,
    pub(crate) subscribed: Vec<api::SubscribeStart>,
    /// One for each subscription: how many messages of data it gets before it breaks.
    pub(crate) cuts: VecDeque<usize>,
    /// The most bytes that were sent and not yet given back.
    pub(crate) owed_max: u64,
    pub(crate) groups: Groups,
    next_producer_id: u64,
}

/// A cluster of two nodes, 1 and 2.
pub(crate) struct Fake {
    pub(crate) state: Arc<Mutex<State>>,
    /// Answers to batches wait while this is false.
    pub(crate) answers: watch::Sender<bool>,
    pub(crate) addresses: [SocketAddr; 2],
}

impl Fake {
    /// Starts the nodes; node 1 leads the topic's partitions.
    pub(crate) async fn start(partitions: usize) -> Self {
        let partition = || Partition { leader: 1, ..Default::default() };
        let partitions = (0..partitions).map(|_| partition()).collect();
        let state = Arc::new(Mutex::new(State { partitions, ..Default::default() }));
        let answers = watch::Sender::new(true);
        let listeners = [listener().await, listener().await];
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        for (id, listener) in (1..).zip(listeners) {
            let (state, answers) = (state.clone(), answers.subscribe());
            tokio::spawn(serve(Node { id, addresses, state, answers }, listener));
        }
        Self { state, answers, addresses }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(Duration::from_secs(10))
    }

    pub(crate) fn client_with(&self, timeout: Duration) -> Client {
        let servers = self.addresses.map(|address| address.to_string());
        Client::new(ClientConfig { timeout, ..ClientConfig::new(servers) }).unwrap()
    }

    /// The values that a partition holds, in order.
    pub(crate) fn stored(&self, partition: usize) -> Vec<String> {
        self.state().partitions[partition].batches.iter().flat_map(values_of).collect()
    }

    /// Stores records of 100 bytes in batches of 10.
    pub(crate) fn fill(&self, partition: usize, records: u64) {
        let mut state = self.state();
        let partition = &mut state.partitions[partition];
        for first in (0..records).step_by(10) {
            let value = |n: u64| Some(format!("{n:0100}").into());
            let record = |n| api::Record { value: value(n), ..Default::default() };
            let records = (first..first + 10).map(record).collect();
            partition.store(api::RecordBatch { records, ..Default::default() });
        }
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn serve(node: Node, listener: TcpListener) {
    tonic::transport::Server::builder()
        .add_service(LogServiceServer::new(node.clone()).max_decoding_message_size(8 << 20))
        .add_service(TopicServiceServer::new(node.clone()))
        .add_service(GroupServiceServer::new(node.clone()))
        .add_service(ClusterServiceServer::new(node))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .unwrap();
}

pub(crate) fn values_of(batch: &api::StoredBatch) -> Vec<String> {
    batch.batch.iter().flat_map(record_values).collect()
}

fn record_values(batch: &api::RecordBatch) -> Vec<String> {
    let value = |record: &api::Record| {
        String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned()
    };
    batch.records.iter().map(value).collect()
}

impl Partition {
    fn store(&mut self, batch: api::RecordBatch) -> u64 {
        let base_offset = self.next_offset;
        let record_count = batch.records.len() as u32;
        self.next_offset += u64::from(record_count);
        self.batches.push(api::StoredBatch {
            base_offset,
            record_count,
            append_time_ms: 1_700_000_000_000,
            leader_epoch: 1,
            crc: crc32fast::hash(&batch.encode_to_vec()),
            batch: Some(batch),
        });
        base_offset
    }

    /// Stores a batch of a producer once, and tells why it cannot.
    fn produce(&mut self, request: &api::ProduceRequest) -> Result<u64, api::Error> {
        let batch = request.batch.clone().unwrap();
        let Some(stamp) = request.producer else {
            return Ok(self.store(batch));
        };
        let Some(producer) = self.producers.get_mut(&stamp.producer_id) else {
            return Err(error(ErrorReason::UnknownProducer));
        };
        if stamp.producer_epoch != producer.producer_epoch {
            return Err(error(ErrorReason::ProducerFenced));
        }
        if let Some(base_offset) = producer.stored.get(&stamp.base_sequence) {
            return Ok(*base_offset);
        }
        if stamp.base_sequence != producer.next_sequence {
            let (expected, found) = (producer.next_sequence, stamp.base_sequence);
            return Err(out_of_order(expected, found));
        }
        producer.next_sequence += batch.records.len() as u32;
        let base_offset = self.next_offset;
        producer.stored.insert(stamp.base_sequence, base_offset);
        Ok(self.store(batch))
    }

    pub(crate) fn position(&self, partition: u32, next_offset: u64) -> api::PartitionPosition {
        let (high_watermark, log_start_offset) = (self.next_offset, self.log_start_offset);
        api::PartitionPosition { partition, next_offset, high_watermark, log_start_offset }
    }
}

fn out_of_order(expected: u32, found: u32) -> api::Error {
    let values = [("expected", expected), ("found", found)];
    let metadata = values.map(|(name, value)| (name.to_owned(), value.to_string())).into();
    api::Error { metadata, ..error(ErrorReason::OutOfOrderSequence) }
}

pub(crate) fn error(reason: ErrorReason) -> api::Error {
    let code = code_of(reason) as i32;
    let message = format!("scripted {}", name_of(reason));
    api::Error { code, reason: reason.into(), message, ..Default::default() }
}

fn name_of(reason: ErrorReason) -> &'static str {
    reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

fn code_of(reason: ErrorReason) -> Code {
    match reason {
        ErrorReason::UnknownTopic | ErrorReason::UnknownTopicId => Code::NotFound,
        ErrorReason::TopicExists => Code::AlreadyExists,
        ErrorReason::RecordTooLarge | ErrorReason::InvalidField => Code::InvalidArgument,
        ErrorReason::Overloaded | ErrorReason::DiskFull => Code::ResourceExhausted,
        ErrorReason::UnknownProducer | ErrorReason::OutOfOrderSequence => Code::FailedPrecondition,
        ErrorReason::ProducerFenced | ErrorReason::Precondition => Code::FailedPrecondition,
        ErrorReason::UnknownGroup => Code::NotFound,
        ErrorReason::GroupNotEmpty | ErrorReason::UnknownMember => Code::FailedPrecondition,
        ErrorReason::NotOwner | ErrorReason::IllegalGeneration => Code::FailedPrecondition,
        ErrorReason::FencedInstance => Code::Aborted,
        _ => Code::Unavailable,
    }
}

pub(crate) fn status(reason: ErrorReason) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(name_of(reason), "quipu.v1", HashMap::new());
    let message = format!("scripted {}", name_of(reason));
    Status::with_error_details(code_of(reason), message, details)
}

/// One node.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) addresses: [SocketAddr; 2],
    pub(crate) state: Arc<Mutex<State>>,
    answers: watch::Receiver<bool>,
}

type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;
pub(crate) type Answer<T> = Result<Response<T>, Status>;

impl Node {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Counts an administrative call and fails it if it is to fail.
    pub(crate) fn admit(&self) -> Result<(), Status> {
        let mut state = self.state();
        state.asked.push(self.id);
        state.refusals.pop_front().map_or(Ok(()), |reason| Err(status(reason)))
    }

    fn not_leader(&self, leader: u64) -> api::Error {
        let address = self.addresses[leader as usize - 1].to_string();
        let metadata = HashMap::from([
            ("leader_node".to_owned(), leader.to_string()),
            ("leader_address".to_owned(), address),
        ]);
        api::Error { metadata, ..error(ErrorReason::NotLeader) }
    }

    /// Handles one batch. `Err` breaks the stream.
    fn produce_one(
        &self,
        request: &api::ProduceRequest,
        may_forward: bool,
    ) -> Result<Result<u64, api::Error>, Status> {
        let mut state = self.state();
        let batch = request.batch.as_ref().unwrap();
        assert_eq!(request.crc, Some(crc32fast::hash(&batch.encode_to_vec())));
        let (node, stamp, values) = (self.id, request.producer, record_values(batch));
        state.seen.push(Seen { node, stamp, values });
        let always = state.always.clone();
        let fault = state.faults.pop_front().or(always).unwrap_or(Fault::None);
        let partition = &mut state.partitions[request.partition as usize];
        if !may_forward && partition.leader != self.id {
            return Ok(Err(self.not_leader(partition.leader)));
        }
        match fault {
            Fault::None => Ok(partition.produce(request)),
            Fault::CutBefore => Err(Status::unavailable("scripted cut")),
            Fault::CutAfter => {
                let _ = partition.produce(request);
                Err(Status::unavailable("scripted cut"))
            }
            Fault::Refuse(reason) => Ok(Err(error(reason))),
            Fault::StoreAndSay(reason) => {
                let _ = partition.produce(request);
                Ok(Err(error(reason)))
            }
            Fault::Forget => {
                partition.producers.clear();
                Ok(partition.produce(request))
            }
        }
    }

    async fn produce_all(
        mut self,
        mut requests: Streaming<api::ProduceStreamRequest>,
        may_forward: bool,
        answers: mpsc::Sender<Result<api::ProduceStreamResponse, Status>>,
    ) {
        use api::produce_stream_response::Outcome;
        while let Ok(Some(request)) = requests.message().await {
            let produce = request.produce.unwrap();
            let outcome = self.produce_one(&produce, may_forward);
            self.answers.wait_for(|may_answer| *may_answer).await.unwrap();
            let answer = outcome.map(|outcome| api::ProduceStreamResponse {
                request_id: request.request_id,
                outcome: Some(match outcome {
                    Ok(base_offset) => {
                        let produced = api::ProduceResponse { base_offset, ..Default::default() };
                        Outcome::Produced(produced)
                    }
                    Err(error) => Outcome::Error(error),
                }),
            });
            let is_cut = answer.is_err();
            if answers.send(answer).await.is_err() || is_cut {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl LogService for Node {
    type ProduceStreamStream = Answers<api::ProduceStreamResponse>;
    type SubscribeStream = Answers<api::SubscribeResponse>;

    async fn produce(&self, request: Request<api::ProduceRequest>) -> Answer<api::ProduceResponse> {
        let may_forward = request.metadata().get("quipu-forward").is_none_or(|on| on != "off");
        match self.produce_one(&request.into_inner(), may_forward)? {
            Ok(base_offset) => {
                Ok(api::ProduceResponse { base_offset, ..Default::default() }.into())
            }
            Err(error) => Err(status(error.reason())),
        }
    }

    async fn produce_stream(
        &self,
        request: Request<Streaming<api::ProduceStreamRequest>>,
    ) -> Answer<Self::ProduceStreamStream> {
        let may_forward = request.metadata().get("quipu-forward").is_none_or(|on| on != "off");
        self.state().streams += 1;
        let (answers, receiver) = mpsc::channel(64);
        tokio::spawn(self.clone().produce_all(request.into_inner(), may_forward, answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn fetch(&self, _: Request<api::FetchRequest>) -> Answer<api::FetchResponse> {
        Err(Status::unimplemented("the client subscribes"))
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<api::SubscribeRequest>>,
    ) -> Answer<Self::SubscribeStream> {
        let (answers, receiver) = mpsc::channel(1);
        tokio::spawn(subscribe::run(self.clone(), request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_offsets(
        &self,
        request: Request<api::ListOffsetsRequest>,
    ) -> Answer<api::ListOffsetsResponse> {
        let request = request.into_inner();
        if request.topic != TOPIC {
            return Err(status(ErrorReason::UnknownTopic));
        }
        let state = self.state();
        let place = request.position.and_then(|position| position.position);
        let offsets = (0..).zip(&state.partitions).map(|(partition, held)| api::PartitionOffset {
            partition,
            offset: subscribe::resolve(held, place),
            log_start_offset: held.log_start_offset,
            high_watermark: held.next_offset,
            leader_epoch: 1,
        });
        let offsets = offsets.collect();
        Ok(Response::new(api::ListOffsetsResponse { topic_id: TOPIC_ID.into(), offsets }))
    }

    async fn init_producer(
        &self,
        request: Request<api::InitProducerRequest>,
    ) -> Answer<api::InitProducerResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.next_producer_id += 1;
        let new_id = state.next_producer_id;
        let producers = &mut state.partitions[request.partition as usize].producers;
        let producer_id = if request.producer_id == 0 { new_id } else { request.producer_id };
        let known = producers.get(&request.producer_id);
        let ended_sequence = known.map(|known| known.next_sequence);
        let producer_epoch = match producers.get(&request.producer_id) {
            Some(known) => known.producer_epoch + 1,
            None if request.producer_id == 0 => 0,
            None => return Err(status(ErrorReason::UnknownProducer)),
        };
        producers.insert(producer_id, Producer { producer_epoch, ..Default::default() });
        Ok(Response::new(api::InitProducerResponse {
            topic_id: TOPIC_ID.into(),
            producer_id,
            producer_epoch,
            next_sequence: 0,
            ended_sequence,
        }))
    }
}
