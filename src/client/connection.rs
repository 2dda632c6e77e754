//! Where a call goes: one connection per node, its breaker, and what is known of leaders.
//!
//! * A node is known by its address. The configured addresses are kept for ever; those that the
//!   cluster names are added to them.
//! * Which node leads what is a hint, never the truth: a call that went to the wrong node says so,
//!   and any node forwards.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use super::retry::Breaker;
use super::{ClientConfig, Error, Failure};
use crate::proto::client::cluster_service_client::ClusterServiceClient;
use crate::proto::client::group_service_client::GroupServiceClient;
use crate::proto::client::log_service_client::LogServiceClient;
use crate::proto::client::topic_service_client::TopicServiceClient;
use crate::proto::client::{ErrorReason, GetTopologyResponse};

/// The largest message that is sent or taken.
pub(super) const MESSAGE_BYTES_MAX: usize = 8 << 20;
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Tells a node to refuse what it does not lead, instead of forwarding it.
const FORWARD_HEADER: &str = "quipu-forward";
/// How old a topology may be when someone asks for a new one and still be taken for new: many
/// partitions find out at once that their leader has gone.
const TOPOLOGY_FRESH: Duration = Duration::from_millis(200);

/// One way to have a call answered.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) address: Arc<str>,
    channel: Channel,
    /// The node is believed to lead the partition, and is asked not to forward.
    pub(super) is_direct: bool,
}

impl Route {
    /// Wraps a message into a request that says whether to forward and how long to take.
    pub(super) fn request<M>(&self, message: M, timeout: Duration) -> Request<M> {
        let mut request = self.stream_request(message);
        request.set_timeout(timeout);
        request
    }

    /// The same for a stream, which has no end in time.
    pub(super) fn stream_request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        if self.is_direct {
            request.metadata_mut().insert(FORWARD_HEADER, MetadataValue::from_static("off"));
        }
        request
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn log(&self) -> LogServiceClient<Channel> {
        LogServiceClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn topics(&self) -> TopicServiceClient<Channel> {
        TopicServiceClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn groups(&self) -> GroupServiceClient<Channel> {
        GroupServiceClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

/// A topic as it was when it was last looked up.
#[derive(Debug)]
pub(super) struct Topology {
    /// The topic's id.
    pub(super) topic_id: String,
    /// The leaders by partition; 0 where none was known.
    leaders: Vec<u64>,
    fetched: Instant,
}

impl Topology {
    pub(super) fn partitions(&self) -> u32 {
        u32::try_from(self.leaders.len()).expect("a topic has at most 10,000 partitions")
    }

    /// Whether it is as good as one fetched now.
    pub(super) fn is_fresh(&self) -> bool {
        self.fetched.elapsed() < TOPOLOGY_FRESH
    }
}

/// The nodes of a cluster and what is known of them.
#[derive(Debug)]
pub(super) struct Nodes {
    patience: Patience,
    state: Mutex<State>,
    /// Held while a topology is fetched, so that one call serves all that want it.
    pub(super) fetching: tokio::sync::Mutex<()>,
}

/// How long to wait for a connection, and on one.
#[derive(Debug, Clone, Copy)]
struct Patience {
    connect: Duration,
    silence: Duration,
}

#[derive(Debug, Default)]
struct State {
    nodes: HashMap<Arc<str>, Node>,
    /// All addresses, in the order in which they became known.
    addresses: Vec<Arc<str>>,
    /// Where the search for a node goes on.
    next: usize,
    addresses_by_id: HashMap<u64, Arc<str>>,
    topics: HashMap<String, Arc<Topology>>,
}

#[derive(Debug)]
struct Node {
    channel: Channel,
    breaker: Breaker,
}

impl Nodes {
    pub(super) fn new(config: &ClientConfig) -> Result<Self, Error> {
        let mut state = State::default();
        let patience = Patience { connect: config.connect_timeout, silence: config.silence_max };
        for server in &config.servers {
            state.add(server, patience).ok_or_else(|| bad_address(server))?;
        }
        if state.nodes.is_empty() {
            return Err(bad_address(""));
        }
        Ok(Self { patience, state: Mutex::new(state), fetching: Default::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics with the nodes")
    }

    /// Chooses a node for a call that any of them can answer, each in turn.
    pub(super) fn any(&self) -> Route {
        self.any_but("")
    }

    /// The same, and another one than the node with that address if there is one.
    pub(super) fn any_but(&self, address: &str) -> Route {
        self.state().any(address, Instant::now())
    }

    /// Chooses the believed leader of a partition, or any node if it is not known or not reached.
    pub(super) fn leader(&self, topic: &str, partition: u32) -> Route {
        let mut state = self.state();
        let now = Instant::now();
        state.leader(topic, partition, now).unwrap_or_else(|| state.any("", now))
    }

    /// Notes that a node answered, whatever it said.
    pub(super) fn on_answer(&self, address: &str) {
        if let Some(node) = self.state().nodes.get_mut(address) {
            node.breaker.on_success();
        }
    }

    /// Notes that a node could not be reached or fell silent.
    pub(super) fn on_silence(&self, address: &str) {
        if let Some(node) = self.state().nodes.get_mut(address) {
            node.breaker.on_failure(Instant::now());
        }
    }

    pub(super) fn topology(&self, topic: &str) -> Option<Arc<Topology>> {
        self.state().topics.get(topic).cloned()
    }

    /// Takes over what a node said of the cluster. Topics that it does not know are forgotten.
    pub(super) fn learn(&self, asked: &[String], answer: GetTopologyResponse) {
        let mut state = self.state();
        for node in answer.nodes {
            state.learn_address(node.id, &node.address, self.patience);
        }
        for topic in asked {
            state.topics.remove(topic);
        }
        let fetched = Instant::now();
        for topic in answer.topics {
            let leaders = topic.partitions.iter().map(|partition| partition.leader).collect();
            let topology = Topology { topic_id: topic.id, leaders, fetched };
            state.topics.insert(topic.name, Arc::new(topology));
        }
    }

    /// Takes over who leads a partition, as a node said that does not. Returns whether it knew.
    pub(super) fn learn_leader(&self, topic: &str, partition: u32, failure: &Failure) -> bool {
        let hint = |name: &str| failure.metadata.get(name).filter(|value| !value.is_empty());
        let id = hint("leader_node").and_then(|id| id.parse::<u64>().ok()).filter(|id| *id > 0);
        let mut state = self.state();
        let Some(id) = id else {
            state.set_leader(topic, partition, 0);
            return false;
        };
        if let Some(address) = hint("leader_address") {
            state.learn_address(id, address, self.patience);
        }
        state.set_leader(topic, partition, id);
        state.addresses_by_id.contains_key(&id)
    }

    /// Forgets who leads a partition: calls go through any node until it is known again.
    pub(super) fn forget_leader(&self, topic: &str, partition: u32) {
        self.state().set_leader(topic, partition, 0);
    }
}

impl State {
    /// Adds a node by its address. Returns `None` if that is none.
    fn add(&mut self, address: &str, patience: Patience) -> Option<Arc<str>> {
        if let Some((known, _)) = self.nodes.get_key_value(address) {
            return Some(known.clone());
        }
        let channel = endpoint(address, patience)?.connect_lazy();
        let address: Arc<str> = address.into();
        self.nodes.insert(address.clone(), Node { channel, breaker: Breaker::default() });
        self.addresses.push(address.clone());
        Some(address)
    }

    /// An address that cannot be one is as good as none.
    fn learn_address(&mut self, id: u64, address: &str, patience: Patience) {
        match self.add(address, patience) {
            Some(address) => self.addresses_by_id.insert(id, address),
            None => self.addresses_by_id.remove(&id),
        };
    }

    fn set_leader(&mut self, topic: &str, partition: u32, leader: u64) {
        if let Some(topology) = self.topics.get_mut(topic)
            && (partition as usize) < topology.leaders.len()
        {
            let mut leaders = topology.leaders.clone();
            leaders[partition as usize] = leader;
            let (topic_id, fetched) = (topology.topic_id.clone(), topology.fetched);
            *topology = Arc::new(Topology { topic_id, leaders, fetched });
        }
    }

    fn leader(&mut self, topic: &str, partition: u32, now: Instant) -> Option<Route> {
        let leader = *self.topics.get(topic)?.leaders.get(partition as usize)?;
        let address = self.addresses_by_id.get(&leader)?.clone();
        let node = self.nodes.get_mut(&address)?;
        let passes = node.breaker.try_pass(now);
        passes.then(|| Route { address, channel: node.channel.clone(), is_direct: true })
    }

    fn any(&mut self, but: &str, now: Instant) -> Route {
        let count = self.addresses.len();
        let first = self.next % count;
        let mut in_turn: Vec<usize> = (0..count).map(|n| (first + n) % count).collect();
        in_turn.sort_by_key(|n| *self.addresses[*n] == *but);
        let trusted = in_turn.iter().copied().find(|n| {
            let breaker = &mut self.node_at(*n).breaker;
            breaker.is_trusted(now) && breaker.try_pass(now)
        });
        // A node that may be silent is not tried where another one is at hand.
        let mut open = in_turn.iter().copied();
        let open = trusted.or_else(|| open.find(|n| self.node_at(*n).breaker.try_pass(now)));
        // When none is thought to answer, the one that was to be tried soonest is.
        let chosen = open.unwrap_or_else(|| {
            let in_turn = in_turn.into_iter();
            in_turn.min_by_key(|n| self.node_at(*n).breaker.passes_at()).unwrap_or(first)
        });
        self.next = chosen + 1;
        let address = self.addresses[chosen].clone();
        let channel = self.nodes[&address].channel.clone();
        Route { address, channel, is_direct: false }
    }

    fn node_at(&mut self, n: usize) -> &mut Node {
        self.nodes.get_mut(&self.addresses[n]).expect("every address has its node")
    }
}

fn endpoint(address: &str, patience: Patience) -> Option<Endpoint> {
    let (host, port) = address.rsplit_once(':')?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return None;
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let endpoint = endpoint
        .connect_timeout(patience.connect)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(patience.silence / 3)
        .keep_alive_timeout(patience.silence * 2 / 3);
    Some(endpoint)
}

fn bad_address(address: &str) -> Error {
    let message = match address {
        "" => "no server is named".to_owned(),
        address => format!("`{address}` is not an address of the form HOST:PORT"),
    };
    Failure::local(Code::InvalidArgument, ErrorReason::Unspecified, message).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::client::{Node as ApiNode, PartitionLeader, TopicTopology};

    fn nodes(servers: &[&str]) -> Nodes {
        Nodes::new(&ClientConfig::new(servers.iter().copied())).unwrap()
    }

    fn topology(leader: u64) -> GetTopologyResponse {
        let node = |id: u64| ApiNode { id, address: format!("n{id}:1"), ..Default::default() };
        let partition = PartitionLeader { leader, ..Default::default() };
        let topic = TopicTopology { name: "t".into(), id: "x".into(), partitions: vec![partition] };
        GetTopologyResponse { nodes: vec![node(1), node(2)], topics: vec![topic] }
    }

    fn not_leader(node: &str, address: &str) -> Failure {
        let mut failure = Failure::cut("");
        failure.metadata.insert("leader_node".into(), node.into());
        failure.metadata.insert("leader_address".into(), address.into());
        failure
    }

    #[tokio::test]
    async fn calls_go_to_each_node_in_turn() {
        let nodes = nodes(&["a:1", "b:1"]);
        let asked: Vec<_> = (0..4).map(|_| nodes.any().address.to_string()).collect();
        assert_eq!(asked, ["a:1", "b:1", "a:1", "b:1"]);
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_left_alone() {
        let nodes = nodes(&["a:1", "b:1"]);
        nodes.on_silence("a:1");
        assert!((0..4).all(|_| &*nodes.any().address == "b:1"));
        nodes.on_silence("b:1");
        assert_eq!(&*nodes.any().address, "a:1", "when none answers, the one to try soonest");
        nodes.on_answer("b:1");
        assert_eq!(&*nodes.any().address, "b:1");
    }

    #[tokio::test]
    async fn another_node_is_chosen_if_there_is_one() {
        let two = nodes(&["a:1", "b:1"]);
        assert!((0..4).all(|_| &*two.any_but("a:1").address == "b:1"));
        (0..2).for_each(|_| two.on_silence("b:1"));
        assert_eq!(&*two.any_but("a:1").address, "a:1", "the other one does not answer");
        assert_eq!(&*nodes(&["a:1"]).any_but("a:1").address, "a:1");
    }

    #[tokio::test]
    async fn leaders_are_asked_directly_and_others_when_they_are_out_of_reach() {
        let nodes = nodes(&["a:1"]);
        assert!(!nodes.leader("t", 0).is_direct, "no topology yet");
        nodes.learn(&["t".into()], topology(2));
        let route = nodes.leader("t", 0);
        assert!(route.is_direct && &*route.address == "n2:1");
        let request = route.stream_request(());
        assert_eq!(request.metadata().get(FORWARD_HEADER).unwrap(), "off");
        nodes.on_silence("n2:1");
        let route = nodes.leader("t", 0);
        assert!(!route.is_direct && &*route.address != "n2:1");
        assert!(route.stream_request(()).metadata().is_empty());
    }

    #[tokio::test]
    async fn hints_move_a_leader() {
        let nodes = nodes(&["a:1"]);
        nodes.learn(&["t".into()], topology(2));
        assert!(nodes.learn_leader("t", 0, &not_leader("9", "n9:1")));
        assert_eq!(&*nodes.leader("t", 0).address, "n9:1");
        assert!(!nodes.learn_leader("t", 0, &Failure::cut("no hint")));
        assert!(!nodes.leader("t", 0).is_direct);
        nodes.learn(&["t".into()], GetTopologyResponse::default());
        assert!(nodes.topology("t").is_none(), "the topic has gone");
    }

    #[tokio::test]
    async fn addresses_are_checked() {
        for servers in [&[][..], &["host"], &[":1"], &["host:port"], &["a b:1"]] {
            let error = Nodes::new(&ClientConfig::new(servers.iter().copied())).unwrap_err();
            assert!(matches!(error, Error::InvalidRequest(_)), "{servers:?}");
        }
    }
}
