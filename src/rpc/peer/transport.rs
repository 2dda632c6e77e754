//! The transport: frames of the Raft groups on their way to other nodes.
//!
//! For each node, each host and each lane there is one stream, on a connection of its own, so that
//! a bulk transfer never stands in the way of a heartbeat. What cannot be sent at once waits in a
//! bounded queue; what finds it full is lost, which Raft expects. Streams that break are made anew.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

use super::super::channels::endpoint;
use super::super::limits::PEER_MESSAGE_BYTES_MAX;
use crate::proto::stream::{self, Outbound, Rope, RopeMut};
use crate::raft::{Frame, Lane, SendFrame};
use crate::types::{ClusterId, NodeId};

/// Frames that wait for one stream.
const QUEUE_FRAMES_MAX: usize = 64;
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// The path of the call that carries frames. It is a gRPC stream of which each message is a frame,
/// not one of protobuf: so it is not among those that `peer.proto` lists.
pub(super) const EXCHANGE: &str = "/quipu.internal.v1.PeerService/Exchange";

/// Header of a stream: which cluster, as a UUID.
pub(super) const CLUSTER_HEADER: &str = "quipu-cluster";
/// Header of a stream: which node sends.
pub(super) const NODE_HEADER: &str = "quipu-node";
/// Header of a stream: where the node that sends is reached by others.
pub(super) const ADDRESS_HEADER: &str = "quipu-address";
/// Header of a stream: whose frames.
pub(super) const HOST_HEADER: &str = "quipu-host";

/// Whose frames a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostKind {
    /// The metadata's.
    Metadata,
    /// The partitions'.
    Partitions,
}

impl HostKind {
    fn name(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Partitions => "partitions",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Metadata, Self::Partitions].into_iter().find(|kind| kind.name() == name)
    }
}

/// Finds where other nodes reach a node.
pub type FindAddress = Arc<dyn Fn(NodeId) -> Option<String> + Send + Sync>;

/// The ways out of one node.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: ClusterId,
    node: NodeId,
    /// Where other nodes reach this one.
    own_address: String,
    find_address: FindAddress,
    runtime: runtime::Handle,
    ways: RwLock<HashMap<(NodeId, HostKind, Lane), mpsc::Sender<Frame>>>,
}

impl Transport {
    /// The transport of `node`, which others reach at `own_address`. Its tasks run on `runtime`.
    pub fn new(
        cluster: ClusterId,
        node: NodeId,
        own_address: String,
        find_address: FindAddress,
        runtime: runtime::Handle,
    ) -> Self {
        let ways = RwLock::default();
        let inner = Inner { cluster, node, own_address, find_address, runtime, ways };
        Self { inner: Arc::new(inner) }
    }

    /// The way out for the frames of one host.
    pub fn sender(&self, host: HostKind) -> SendFrame {
        let transport = self.clone();
        Arc::new(move |to, lane, frame| transport.send(to, host, lane, frame))
    }

    fn send(&self, to: NodeId, host: HostKind, lane: Lane, frame: Frame) -> bool {
        let key = (to, host, lane);
        let known = self.inner.ways.read().expect("nobody panics with the lock").get(&key).cloned();
        let way = known.unwrap_or_else(|| {
            let mut ways = self.inner.ways.write().expect("nobody panics with the lock");
            ways.entry(key).or_insert_with(|| self.open(to, host)).clone()
        });
        way.try_send(frame).is_ok()
    }

    fn open(&self, to: NodeId, host: HostKind) -> mpsc::Sender<Frame> {
        let (way, frames) = mpsc::channel(QUEUE_FRAMES_MAX);
        let inner = Arc::downgrade(&self.inner);
        self.inner.runtime.spawn(async move {
            let frames = Arc::new(Mutex::new(frames));
            let mut pause = RETRY_MIN;
            while !lock(&frames).is_closed() {
                let Some(inner) = inner.upgrade() else { return };
                let life = Arc::new(Life::default());
                let stream = OutStream { frames: frames.clone(), life: life.clone() };
                let status = inner.exchange(to, host, stream).await;
                drop(inner);
                life.end(&frames);
                tracing::debug!(%to, ?host, %status, "a stream ended");
                let had_begun = life.has_sent.load(Ordering::Relaxed);
                pause = if had_begun { RETRY_MIN } else { (pause * 2).min(RETRY_MAX) };
                tokio::time::sleep(pause).await;
            }
        });
        way
    }
}

impl Inner {
    /// Carries frames over one stream until it breaks, or until nobody sends any more.
    async fn exchange(&self, to: NodeId, host: HostKind, frames: OutStream) -> Status {
        let Some(address) = (self.find_address)(to) else {
            return Status::unavailable("no address is known");
        };
        let endpoint = match endpoint(&address) {
            Ok(endpoint) => endpoint,
            Err(error) => return Status::internal(error.to_string()),
        };
        let mut channel = match endpoint.connect().await {
            Ok(channel) => channel,
            Err(error) => return Status::unavailable(error.to_string()),
        };
        let mut request = Request::new(frames);
        let headers = request.metadata_mut();
        let ascii = |text: String| MetadataValue::try_from(text).expect("ids are ASCII");
        headers.insert(CLUSTER_HEADER, ascii(self.cluster.0.to_string()));
        headers.insert(NODE_HEADER, ascii(self.node.to_string()));
        if let Ok(address) = MetadataValue::try_from(&self.own_address) {
            headers.insert(ADDRESS_HEADER, address);
        }
        headers.insert(HOST_HEADER, MetadataValue::from_static(host.name()));
        let answers = stream::ask(&mut channel, EXCHANGE, request, PEER_MESSAGE_BYTES_MAX).await;
        let mut answers: Streaming<Rope> = match answers {
            Ok(answers) => answers,
            Err(status) => return status,
        };
        // There are none: it ends with a status.
        let ended = answers.message().await;
        ended.err().unwrap_or_else(|| Status::ok("the stream ended"))
    }
}

type Frames = Arc<Mutex<mpsc::Receiver<Frame>>>;

fn lock(frames: &Frames) -> MutexGuard<'_, mpsc::Receiver<Frame>> {
    frames.lock().expect("nobody panics with the lock")
}

/// How far a stream has come.
#[derive(Default)]
struct Life {
    has_sent: AtomicBool,
    /// It was given up: frames are the next one's to take, even if this one is still asked for
    /// some. Read and written with the frames held.
    is_over: AtomicBool,
}

impl Life {
    /// Gives the stream up. From here on it does not ask for frames, and so does not take the
    /// place of the next one as who is woken for them.
    fn end(&self, frames: &Frames) {
        let _held = lock(frames);
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Frames on their way out, taken from the queue by the stream itself: a task between the two would
/// make each frame wait for one more turn. What a stream that breaks had taken is lost.
struct OutStream {
    frames: Frames,
    life: Arc<Life>,
}

impl Stream for OutStream {
    type Item = Result<Frame, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut frames = lock(&self.frames);
        if self.life.is_over.load(Ordering::Relaxed) {
            return Poll::Ready(None);
        }
        let frame = ready!(frames.poll_recv(cx));
        self.life.has_sent.fetch_or(frame.is_some(), Ordering::Relaxed);
        Poll::Ready(frame.map(Ok))
    }
}

impl Outbound for Frame {
    fn bytes(&self) -> usize {
        Self::bytes(self)
    }

    fn put(self, out: &mut RopeMut) {
        out.put(self.head);
        self.payloads.into_iter().for_each(|payload| out.put(payload));
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf as _, Bytes};

    use super::*;
    use crate::raft::Route;

    #[test]
    fn a_frame_goes_out_as_it_comes_in() {
        let cluster = ClusterId(uuid::Uuid::from_u128(7));
        let route = Route { cluster, from: NodeId(1), to: NodeId(2) };
        let mut frame = Frame::encode(&route, &[]);
        frame.payloads = vec![Bytes::from(vec![1; 300_000]), Bytes::from(vec![2; 5])];
        let mut out = RopeMut::default();
        frame.clone().put(&mut out);
        let mut sent = out.finish();
        assert_eq!(sent.remaining(), frame.bytes());
        assert_eq!(sent.copy_to_bytes(frame.bytes()), frame.to_bytes());
    }
}
