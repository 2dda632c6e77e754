//! A member of a group that says exactly what a test tells it to.

use std::collections::BTreeMap;
use std::time::Duration;

use quipu::proto::client::consume_request::Message as Told;
use quipu::proto::client::consume_response::Message as Tell;
use quipu::proto::client::group_place::Place;
use quipu::proto::client::group_service_client::GroupServiceClient;
use quipu::proto::client::{
    Assignment, AssignmentCommit, AssignmentCommitOutcome, ConsumeCommit, ConsumeHeartbeat,
    ConsumeJoin, ConsumeJoined, ConsumeReleased, ConsumeRequest, ConsumeResponse,
    CreateGroupRequest, ErrorReason, GroupPlace, ResumePosition,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;

pub type Groups = GroupServiceClient<Channel>;

/// The group and the topic that the tests are about, unless they say otherwise.
pub const GROUP: &str = "g";
pub const TOPIC: &str = "t";
const BEAT_EVERY: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

pub fn earliest() -> Option<GroupPlace> {
    Some(GroupPlace { place: Some(Place::Earliest(true)) })
}

/// A group of the topic that starts at its beginning.
pub fn group() -> CreateGroupRequest {
    CreateGroupRequest {
        name: GROUP.to_owned(),
        topics: vec![TOPIC.to_owned()],
        start: earliest(),
        session_timeout_ms: 3_000,
        ..CreateGroupRequest::default()
    }
}

/// The reason that a failed call gives.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// A member. It shows that it lives until it is told to be silent, or dropped.
pub struct Member {
    requests: mpsc::Sender<ConsumeRequest>,
    beats: tokio::task::JoinHandle<()>,
    answers: Streaming<ConsumeResponse>,
    pub joined: ConsumeJoined,
    /// What it has, by number.
    pub assigned: BTreeMap<u64, Assignment>,
    /// The next offset of each assignment.
    pub next: BTreeMap<u64, u64>,
    last_request: u64,
}

impl Member {
    /// Joins through any node.
    pub async fn join_through(mut client: Groups, join: ConsumeJoin) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(64);
        let join = ConsumeJoin { group: GROUP.to_owned(), credit_bytes: 1 << 20, ..join };
        requests.send(ConsumeRequest { message: Some(Told::Join(join)) }).await.unwrap();
        let mut answers = client.consume(ReceiverStream::new(queue)).await?.into_inner();
        let first = timeout(PATIENCE, answers.message()).await.expect("no answer to a join")?;
        let joined = match first.and_then(|first| first.message) {
            Some(Tell::Joined(joined)) => joined,
            // Any node may be about to stop.
            Some(Tell::GoAway(_)) | None => return Err(Status::unavailable("join elsewhere")),
            Some(_) => panic!("a member is told something else first"),
        };
        let (assigned, next, last_request) = Default::default();
        let beats = tokio::spawn(beat(requests.clone()));
        Ok(Self { requests, beats, answers, joined, assigned, next, last_request })
    }

    /// Says nothing any more by itself.
    pub fn be_silent(&self) {
        self.beats.abort();
    }

    pub async fn say(&self, message: Told) {
        // A stream that has ended takes nothing.
        let _ = self.requests.send(ConsumeRequest { message: Some(message) }).await;
    }

    /// Waits for what it is told next. Cancel safe.
    pub async fn hear(&mut self) -> Result<Option<Tell>, Status> {
        Ok(self.answers.message().await?.map(|told| told.message.unwrap()))
    }

    /// Waits for what it is told next, and takes note of it.
    pub async fn told(&mut self) -> Result<Option<Tell>, Status> {
        let message = timeout(PATIENCE, self.hear()).await.expect("nothing is said")?;
        match &message {
            Some(Tell::Assigned(assigned)) => {
                for assignment in &assigned.assignments {
                    self.next.insert(assignment.assignment, assignment.next_offset);
                    self.assigned.insert(assignment.assignment, assignment.clone());
                }
            }
            Some(Tell::Data(data)) => {
                let next = self.next.get_mut(&data.assignment).expect("data of what it has");
                assert!(data.batches[0].base_offset <= *next, "records are left out");
                *next = data.next_offset;
            }
            Some(Tell::Lost(lost)) => {
                lost.assignments.iter().for_each(|lost| drop(self.assigned.remove(lost)));
            }
            _ => {}
        }
        Ok(message)
    }

    /// Listens until `look` finds something in what it is told or has.
    pub async fn until<T>(&mut self, mut look: impl FnMut(&Self, &Tell) -> Option<T>) -> T {
        loop {
            let told = self.told().await.unwrap().expect("the stream has ended");
            if let Some(found) = look(self, &told) {
                return found;
            }
        }
    }

    /// Listens until it has so many partitions.
    pub async fn until_assigned(&mut self, count: usize) {
        if self.assigned.len() != count {
            self.until(|member, _| (member.assigned.len() == count).then_some(())).await;
        }
    }

    /// Listens until it has read so far in each partition that it has.
    pub async fn until_read(&mut self, offset: u64) {
        let is_there =
            |member: &Self| member.assigned.keys().all(|number| member.next[number] >= offset);
        if !is_there(self) {
            self.until(|member, _| is_there(member).then_some(())).await;
        }
    }

    /// Listens until it is asked to let go of something.
    pub async fn until_revoked(&mut self) -> Vec<u64> {
        self.until(|_, told| match told {
            Tell::Revoke(revoke) => Some(revoke.assignments.clone()),
            _ => None,
        })
        .await
    }

    /// Commits offsets, each of an assignment, and waits for what became of them.
    pub async fn commit(&mut self, offsets: &[(u64, u64)]) -> Vec<AssignmentCommitOutcome> {
        self.last_request += 1;
        let request_id = self.last_request;
        let offset = |(assignment, next_offset): &(u64, u64)| AssignmentCommit {
            assignment: *assignment,
            next_offset: *next_offset,
            ..AssignmentCommit::default()
        };
        let offsets = offsets.iter().map(offset).collect();
        self.say(Told::Commit(ConsumeCommit { request_id, offsets })).await;
        self.until(|_, told| match told {
            Tell::Committed(committed) if committed.request_id == request_id => {
                Some(committed.outcomes.clone())
            }
            _ => None,
        })
        .await
    }

    /// Lets go of assignments.
    pub async fn release(&mut self, assignments: Vec<u64>) {
        assignments.iter().for_each(|released| drop(self.assigned.remove(released)));
        self.say(Told::Released(ConsumeReleased { assignments })).await;
    }

    /// Where it is in all that it has, to come back with.
    pub fn positions(&self) -> Vec<ResumePosition> {
        let position = |assignment: &Assignment| ResumePosition {
            topic_id: assignment.topic_id.clone(),
            partition: assignment.partition,
            generation: assignment.generation,
            next_offset: self.next[&assignment.assignment],
        };
        self.assigned.values().map(position).collect()
    }

    /// What it says to come back as the same one.
    pub fn again(&self) -> ConsumeJoin {
        ConsumeJoin {
            member_id: self.joined.member_id.clone(),
            positions: self.positions(),
            ..ConsumeJoin::default()
        }
    }

    /// The assignment of a partition.
    pub fn number_of(&self, partition: u32) -> u64 {
        let found = self.assigned.values().find(|assigned| assigned.partition == partition);
        found.expect("it has the partition").assignment
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

async fn beat(requests: mpsc::Sender<ConsumeRequest>) {
    let beat = || ConsumeRequest { message: Some(Told::Heartbeat(ConsumeHeartbeat {})) };
    while requests.send(beat()).await.is_ok() {
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

/// What an outcome says: an offset, or a reason.
pub fn outcome(outcome: &AssignmentCommitOutcome) -> Result<u64, ErrorReason> {
    use quipu::proto::client::assignment_commit_outcome::Outcome;
    match outcome.outcome.as_ref().unwrap() {
        Outcome::NextOffset(offset) => Ok(*offset),
        Outcome::Error(error) => Err(error.reason()),
    }
}

/// Waits a little, so that what must not happen has time to.
pub async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
