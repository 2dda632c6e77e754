//! Groups of the fake cluster: streams whose server side is played by the test.

use std::time::Duration;

use prost::Message as _;
use quipu::client::{Client, GroupConsumer, GroupConsumerConfig};
use quipu::proto::client as api;
use quipu::proto::client::ErrorReason;
use quipu::proto::client::consume_request::Message as Asked;
use quipu::proto::client::consume_response::Message as Told;
use quipu::proto::client::group_service_server::GroupService;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::fake::{Answer, Fake, Node, TOPIC, TOPIC_ID, error, status};

pub(crate) const GROUP: &str = "billing";
/// How long anything may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(10);

type Answers = std::pin::Pin<
    Box<dyn tokio_stream::Stream<Item = Result<api::ConsumeResponse, Status>> + Send>,
>;

/// What was asked of groups.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(crate) created: Vec<api::CreateGroupRequest>,
    pub(crate) resets: Vec<api::ResetOffsetsRequest>,
    pub(crate) deleted: Vec<api::DeleteGroupRequest>,
    /// Where the streams go that members open.
    sessions: Option<mpsc::Sender<Session>>,
}

/// A member's stream, as the server has it.
#[derive(Debug)]
pub(crate) struct Session {
    /// The node that it was opened through.
    pub(crate) node: u64,
    pub(crate) join: api::ConsumeJoin,
    asked: Streaming<api::ConsumeRequest>,
    told: mpsc::Sender<Result<api::ConsumeResponse, Status>>,
    /// Credit that was given beyond the first.
    pub(crate) credit_bytes: u32,
    pub(crate) heartbeats: u32,
}

/// Times that no test runs into.
pub(crate) fn joined() -> api::ConsumeJoined {
    api::ConsumeJoined {
        group_id: "g".into(),
        member_id: "m1".into(),
        session_timeout_ms: 60_000,
        heartbeat_interval_ms: 20_000,
    }
}

/// A partition of the topic, assigned at an offset.
pub(crate) fn assignment(assignment: u64, partition: u32, next_offset: u64) -> api::Assignment {
    api::Assignment {
        assignment,
        topic: TOPIC.into(),
        topic_id: TOPIC_ID.into(),
        partition,
        generation: assignment,
        next_offset,
        high_watermark: 1000,
        ..Default::default()
    }
}

impl Session {
    pub(crate) async fn tell(&self, message: Told) {
        let response = api::ConsumeResponse { message: Some(message) };
        self.told.send(Ok(response)).await.expect("the member listens");
    }

    pub(crate) async fn join(&self, assignments: Vec<api::Assignment>) {
        self.tell(Told::Joined(joined())).await;
        self.assign(assignments).await;
    }

    pub(crate) async fn assign(&self, assignments: Vec<api::Assignment>) {
        self.tell(Told::Assigned(api::ConsumeAssigned { assignments })).await;
    }

    /// Sends records of 100 bytes in one batch.
    pub(crate) async fn send(&self, assignment: u64, offsets: std::ops::Range<u64>) -> u32 {
        let value = |n: u64| Some(format!("{n:0100}").into());
        let record = |n| api::Record { value: value(n), ..Default::default() };
        let batch = api::RecordBatch {
            records: offsets.clone().map(record).collect(),
            ..Default::default()
        };
        let stored = api::StoredBatch {
            base_offset: offsets.start,
            record_count: batch.records.len() as u32,
            append_time_ms: 1_700_000_000_000,
            leader_epoch: 3,
            crc: crc32fast::hash(&batch.encode_to_vec()),
            batch: Some(batch),
        };
        let cost_bytes = stored.encoded_len() as u32;
        let (next_offset, high_watermark, batches) = (offsets.end, 1000, vec![stored]);
        let data =
            api::ConsumeData { assignment, batches, next_offset, high_watermark, cost_bytes };
        self.tell(Told::Data(data)).await;
        cost_bytes
    }

    pub(crate) async fn revoke(&self, assignment: u64, deadline_ms: u32) {
        let assignments = vec![assignment];
        self.tell(Told::Revoke(api::ConsumeRevoke { assignments, deadline_ms })).await;
    }

    /// The next request that is neither credit nor a heartbeat; none if the member has ended.
    pub(crate) async fn hear(&mut self) -> Option<Asked> {
        timeout(PATIENCE, self.hear_any()).await.expect("the member says something")
    }

    async fn hear_any(&mut self) -> Option<Asked> {
        loop {
            match self.asked.message().await {
                Ok(Some(api::ConsumeRequest { message: Some(Asked::Credit(credit)) })) => {
                    self.credit_bytes += credit.bytes;
                }
                Ok(Some(api::ConsumeRequest { message: Some(Asked::Heartbeat(_)) })) => {
                    self.heartbeats += 1;
                }
                Ok(Some(request)) => return request.message,
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Panics if the member says anything but credit and heartbeats for a while.
    pub(crate) async fn hear_nothing(&mut self) {
        if let Ok(heard) = timeout(Duration::from_millis(300), self.hear_any()).await {
            panic!("the member said {heard:?}");
        }
    }

    pub(crate) async fn hear_commit(&mut self) -> api::ConsumeCommit {
        match self.hear().await {
            Some(Asked::Commit(commit)) => commit,
            other => panic!("the member said {other:?} instead of committing"),
        }
    }

    /// Answers a commit: with success where no reason for a failure is given.
    pub(crate) async fn answer(&self, commit: &api::ConsumeCommit, failed: &[(u64, ErrorReason)]) {
        use api::assignment_commit_outcome::Outcome;
        let outcome = |offset: &api::AssignmentCommit| {
            let reason = failed.iter().find(|(of, _)| *of == offset.assignment);
            let outcome = match reason {
                Some((_, reason)) => Outcome::Error(error(*reason)),
                None => Outcome::NextOffset(offset.next_offset),
            };
            let assignment = offset.assignment;
            api::AssignmentCommitOutcome { assignment, outcome: Some(outcome) }
        };
        let outcomes = commit.offsets.iter().map(outcome).collect();
        let request_id = commit.request_id;
        self.tell(Told::Committed(api::ConsumeCommitted { request_id, outcomes })).await;
    }

    /// Hears a commit of one offset and answers it. Returns the assignment and the offset.
    pub(crate) async fn take_commit(&mut self) -> (u64, u64) {
        let commit = self.hear_commit().await;
        self.answer(&commit, &[]).await;
        let [offset] = commit.offsets.as_slice() else { panic!("{commit:?} is not of one") };
        (offset.assignment, offset.next_offset)
    }

    /// Breaks the stream.
    pub(crate) async fn fail(self, reason: ErrorReason) {
        let _ = self.told.send(Err(status(reason))).await;
    }
}

/// A group whose streams the test serves.
pub(crate) struct Stage {
    pub(crate) fake: Fake,
    sessions: mpsc::Receiver<Session>,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        let fake = Fake::start(2).await;
        let (sender, sessions) = mpsc::channel(8);
        fake.state().groups.sessions = Some(sender);
        Self { fake, sessions }
    }

    pub(crate) fn client(&self) -> Client {
        self.fake.client()
    }

    pub(crate) fn consumer(&self, config: GroupConsumerConfig) -> GroupConsumer {
        self.client().group_consumer(config)
    }

    /// The next stream that a member opens.
    pub(crate) async fn session(&mut self) -> Session {
        let opened = timeout(PATIENCE, self.sessions.recv()).await;
        opened.expect("a member joins").expect("the cluster runs")
    }

    /// Panics if a member joins.
    pub(crate) async fn no_session(&mut self) {
        if let Ok(session) = timeout(Duration::from_millis(500), self.sessions.recv()).await {
            panic!("a member joined: {session:?}");
        }
    }
}

fn group() -> api::Group {
    let partition = |partition| api::GroupPartition {
        topic: TOPIC.into(),
        partition,
        member_id: "m1".into(),
        generation: 4,
        ..Default::default()
    };
    let member = api::GroupMember {
        member_id: "m1".into(),
        client_id: "quipu-consume".into(),
        node: 1,
        partitions: 2,
        ..Default::default()
    };
    api::Group {
        name: GROUP.into(),
        id: "0b7e8a52-0000-4000-8000-000000000007".into(),
        mode: api::GroupMode::Stream.into(),
        topics: vec![TOPIC.into()],
        session_timeout_ms: 30_000,
        generation: 4,
        members: vec![member],
        partitions: (0..2).map(partition).collect(),
        ..Default::default()
    }
}

fn known(name: &str) -> Result<(), Status> {
    if name == GROUP { Ok(()) } else { Err(status(ErrorReason::UnknownGroup)) }
}

/// One partition where something was committed, and one where nothing was.
fn offsets() -> Vec<api::GroupOffset> {
    let offset = |partition, next_offset, is_committed| api::GroupOffset {
        topic: TOPIC.into(),
        partition,
        next_offset,
        is_committed,
        member_id: "m1".into(),
        high_watermark: 100,
        lag: 100 - next_offset,
        lag_ms: 61_500,
        ..Default::default()
    };
    vec![offset(0, 40, true), offset(1, 0, false)]
}

#[tonic::async_trait]
impl GroupService for Node {
    type ConsumeStream = Answers;

    async fn create_group(
        &self,
        request: Request<api::CreateGroupRequest>,
    ) -> Answer<api::CreateGroupResponse> {
        self.admit()?;
        let request = request.into_inner();
        let group = api::Group { name: request.name.clone(), ..group() };
        self.state().groups.created.push(request);
        Ok(api::CreateGroupResponse { group: Some(group) }.into())
    }

    async fn describe_group(
        &self,
        request: Request<api::DescribeGroupRequest>,
    ) -> Answer<api::DescribeGroupResponse> {
        known(&request.into_inner().group)?;
        Ok(api::DescribeGroupResponse { group: Some(group()) }.into())
    }

    async fn list_groups(
        &self,
        request: Request<api::ListGroupsRequest>,
    ) -> Answer<api::ListGroupsResponse> {
        // One group a page, to have pages.
        let names = [GROUP, "shipping"];
        let page: usize = request.into_inner().page_token.parse().unwrap_or(0);
        let name = names[page].to_owned();
        let next_page_token = if page == 0 { "1" } else { "" }.to_owned();
        let groups = vec![api::GroupSummary { name, members: 1, ..Default::default() }];
        Ok(api::ListGroupsResponse { groups, next_page_token }.into())
    }

    async fn delete_group(
        &self,
        request: Request<api::DeleteGroupRequest>,
    ) -> Answer<api::DeleteGroupResponse> {
        let request = request.into_inner();
        known(&request.group)?;
        if !request.force {
            return Err(status(ErrorReason::GroupNotEmpty));
        }
        self.state().groups.deleted.push(request);
        Ok(api::DeleteGroupResponse { group_id: group().id }.into())
    }

    async fn consume(
        &self,
        request: Request<Streaming<api::ConsumeRequest>>,
    ) -> Answer<Self::ConsumeStream> {
        let sessions = self.state().groups.sessions.clone().unwrap();
        let mut asked = request.into_inner();
        let (told, receiver) = mpsc::channel(16);
        let node = self.id;
        tokio::spawn(async move {
            let first = asked.message().await.unwrap().and_then(|request| request.message);
            let Some(Asked::Join(join)) = first else { panic!("it begins with {first:?}") };
            let (credit_bytes, heartbeats) = (0, 0);
            let session = Session { node, join, asked, told, credit_bytes, heartbeats };
            let _ = sessions.send(session).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn commit_offsets(
        &self,
        request: Request<api::CommitOffsetsRequest>,
    ) -> Answer<api::CommitOffsetsResponse> {
        use api::offset_commit_outcome::Outcome;
        let request = request.into_inner();
        known(&request.group)?;
        let outcome = |commit: api::OffsetCommit| api::OffsetCommitOutcome {
            topic: commit.topic,
            partition: commit.partition,
            outcome: Some(match commit.partition {
                0 => Outcome::NextOffset(commit.next_offset),
                _ => Outcome::Error(error(ErrorReason::NotOwner)),
            }),
        };
        let outcomes = request.offsets.into_iter().map(outcome).collect();
        Ok(api::CommitOffsetsResponse { outcomes }.into())
    }

    async fn fetch_offsets(
        &self,
        request: Request<api::FetchOffsetsRequest>,
    ) -> Answer<api::FetchOffsetsResponse> {
        known(&request.into_inner().group)?;
        Ok(api::FetchOffsetsResponse { offsets: offsets() }.into())
    }

    async fn reset_offsets(
        &self,
        request: Request<api::ResetOffsetsRequest>,
    ) -> Answer<api::ResetOffsetsResponse> {
        let request = request.into_inner();
        known(&request.group)?;
        self.state().groups.resets.push(request);
        let reset = |partition, failed: Option<api::Error>| api::OffsetReset {
            topic: TOPIC.into(),
            partition,
            before: 40,
            after: 0,
            error: failed,
        };
        let resets = vec![reset(0, None), reset(1, Some(error(ErrorReason::NoLeader)))];
        Ok(api::ResetOffsetsResponse { resets }.into())
    }
}
