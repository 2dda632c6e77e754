//! The topic service: topics made, described, changed and deleted.

mod config;
mod describe;

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use self::describe::describe;
use super::call::Call;
use super::context::Context;
use super::convert;
use super::error::Error;
use crate::cluster::command::{
    self, AddPartitions, AlterTopic, CreateTopic, DeleteTopic, Id, Verb, log_of,
};
use crate::cluster::{PARTITIONS_MAX, REPLICAS_MAX, State, TOPIC_PARTITIONS_MAX, placement};
use crate::proto::server as api;
use crate::proto::server::topic_service_server::{TopicService, TopicServiceServer};

/// Replicas of a partition if nobody says how many.
const REPLICAS_DEFAULT: u32 = 3;
const PAGE_DEFAULT: u32 = 1_000;
const PAGE_MAX: u32 = 10_000;
/// How long a call that has made partitions waits for their leaders.
const LEADERS_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The topic service.
#[derive(Debug, Clone)]
pub struct TopicApi {
    context: Context,
}

impl TopicApi {
    /// The topic service of the node that `context` is of.
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// The service, to be added to a server.
    pub fn into_service(self) -> TopicServiceServer<Self> {
        TopicServiceServer::new(self)
    }

    async fn create(
        &self,
        request: api::CreateTopicRequest,
        call: Call,
    ) -> Result<api::CreateTopicResponse, Error> {
        convert::check_name(&request.name)?;
        let config = config::parse(&request.config, command::TopicConfig::default())?;
        self.context.refresh().await;
        let state = self.context.registered()?;
        let partitions = partitions_of(request.partitions)?;
        let replicas = replicas_of(request.replicas, &state)?;
        if state.topic_named(&request.name).is_some() {
            return Err(crate::cluster::Refusal::TopicExists(request.name).into());
        }
        let placed = placement::place(&state, partitions, replicas)?;
        let id = new_topic_id();
        let create = CreateTopic { id, name: request.name.clone(), config, partitions: placed };
        if request.validate_only {
            let topic = api::Topic {
                name: request.name,
                config: config::show(&config),
                ..api::Topic::default()
            };
            return Ok(api::CreateTopicResponse { topic: Some(topic) });
        }
        match self.context.propose(Verb::CreateTopic(create)).await {
            // Asked a second time by the way there, or never heard of: the id tells.
            Err(error) if self.is_made(id, &error).await => {}
            done => drop(done?),
        }
        self.wait_for_leaders(id, 0, call.deadline).await;
        Ok(api::CreateTopicResponse { topic: Some(describe(&self.context, id).await?) })
    }

    /// True if the topic is there although the command did not say so.
    async fn is_made(&self, id: Id, error: &Error) -> bool {
        let is_open = matches!(error, Error::OutcomeUnknown)
            || matches!(error, Error::Metadata(crate::cluster::Refusal::TopicExists(_)));
        if is_open {
            self.context.refresh().await;
        }
        is_open && self.context.node().state().topic(id).is_some()
    }

    /// Waits until the partitions from `first` on have leaders, or for a while.
    async fn wait_for_leaders(&self, id: Id, first: u32, deadline: Instant) {
        let node = self.context.node();
        let end = deadline.min(Instant::now() + LEADERS_PATIENCE);
        let count = node.state().topic(id).map_or(0, |topic| topic.partitions.len() as u32);
        for partition in first..count {
            while node.leader_of(log_of(id, partition)).is_none() && Instant::now() < end {
                sleep(LOOK_EVERY).await;
            }
        }
    }

    async fn list(
        &self,
        request: api::ListTopicsRequest,
    ) -> Result<api::ListTopicsResponse, Error> {
        self.context.refresh().await;
        let state = self.context.caught_up().await?;
        let size = match request.page_size {
            0 => PAGE_DEFAULT,
            size => size.min(PAGE_MAX),
        } as usize;
        let from = if request.page_token > request.prefix {
            request.page_token.as_str()
        } else {
            request.prefix.as_str()
        };
        let mut found =
            state.topics_from(from).take_while(|topic| topic.name.starts_with(&request.prefix));
        let topics = found.by_ref().take(size).map(|topic| api::TopicSummary {
            name: topic.name.clone(),
            id: topic.id.uuid().to_string(),
            partitions: topic.partitions.len() as u32,
            replicas: topic.partitions.iter().map(|p| p.replicas.len() as u32).max().unwrap_or(0),
        });
        let topics = topics.collect();
        let next_page_token = found.next().map(|topic| topic.name.clone()).unwrap_or_default();
        Ok(api::ListTopicsResponse { topics, next_page_token })
    }

    async fn alter(
        &self,
        request: api::AlterTopicRequest,
    ) -> Result<api::AlterTopicResponse, Error> {
        let found = self.context.lookup(&request.name, "").await?;
        let (id, known) = (found.topic().id, found.topic().config);
        let config = config::parse(&request.set, config::reset(known, &request.reset)?)?;
        if config.is_memory != known.is_memory {
            let expected = "left as it is: durability is fixed when a topic is made".to_owned();
            return Err(Error::InvalidConfig { key: "durability".to_owned(), expected });
        }
        self.context.propose(Verb::AlterTopic(AlterTopic { id, config })).await?;
        Ok(api::AlterTopicResponse { topic: Some(describe(&self.context, id).await?) })
    }

    async fn add_partitions(
        &self,
        request: api::AddPartitionsRequest,
        call: Call,
    ) -> Result<api::AddPartitionsResponse, Error> {
        self.context.refresh().await;
        let found = self.context.lookup(&request.name, "").await?;
        let (id, topic) = (found.topic().id, found.topic().clone());
        let from = topic.partitions.len() as u32;
        let wanted = partitions_of(request.partitions)? as u32;
        if wanted <= from {
            return Err(Error::field(
                "partitions",
                format!("more than the {from} that there are: partitions are never taken away"),
            ));
        }
        let state = self.context.registered()?;
        let replicas = topic.partitions.iter().map(|p| p.replicas.len()).max().unwrap_or(1);
        let partitions = placement::place(&state, (wanted - from) as usize, replicas)?;
        let add = AddPartitions { id, from, partitions };
        self.context.propose(Verb::AddPartitions(add)).await?;
        self.wait_for_leaders(id, from, call.deadline).await;
        Ok(api::AddPartitionsResponse { topic: Some(describe(&self.context, id).await?) })
    }

    async fn delete(
        &self,
        request: api::DeleteTopicRequest,
    ) -> Result<api::DeleteTopicResponse, Error> {
        self.context.refresh().await;
        let found = self.context.lookup(&request.name, &request.id).await?;
        let id = found.topic().id;
        self.context.propose(Verb::DeleteTopic(DeleteTopic { id })).await?;
        Ok(api::DeleteTopicResponse { id: id.uuid().to_string() })
    }

    async fn describe(
        &self,
        request: api::DescribeTopicRequest,
    ) -> Result<api::DescribeTopicResponse, Error> {
        let id = match request.name.is_empty() {
            false => self.context.lookup(&request.name, &request.id).await?.topic().id,
            true => {
                let wanted = convert::topic_id(&request.id)?;
                let wanted = wanted.ok_or_else(|| Error::field("name", "given, or the id"))?;
                self.context.refresh().await;
                let id = Id::from(wanted);
                let state = self.context.node().state();
                let known = state.topic(id).map(|topic| topic.id);
                known.ok_or_else(|| Error::UnknownTopicId(request.id.clone()))?
            }
        };
        Ok(api::DescribeTopicResponse { topic: Some(describe(&self.context, id).await?) })
    }
}

fn partitions_of(wanted: u32) -> Result<usize, Error> {
    let max = TOPIC_PARTITIONS_MAX.min(PARTITIONS_MAX);
    match wanted.max(1) as usize {
        count if count <= max => Ok(count),
        _ => Err(Error::field("partitions", format!("1 to {max}"))),
    }
}

fn replicas_of(wanted: u32, state: &State) -> Result<usize, Error> {
    match wanted {
        0 if state.nodes().len() >= REPLICAS_DEFAULT as usize => Ok(REPLICAS_DEFAULT as usize),
        0 => Ok(1),
        count if count as usize <= REPLICAS_MAX => Ok(count as usize),
        _ => Err(Error::field("replicas", format!("1 to {REPLICAS_MAX}"))),
    }
}

/// An id that no topic has had, with room for its partitions' numbers.
fn new_topic_id() -> Id {
    let Id { high, low } = Id::from(Uuid::new_v4());
    Id { high, low: low >> 32 << 32 }
}

/// The configuration of a topic, as clients read it.
type Config = HashMap<String, String>;

fn answer<T>(outcome: Result<T, Error>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl TopicService for TopicApi {
    async fn create_topic(
        &self,
        request: Request<api::CreateTopicRequest>,
    ) -> Result<Response<api::CreateTopicResponse>, Status> {
        let call = Call::of(request.metadata());
        answer(self.create(request.into_inner(), call).await)
    }

    async fn describe_topic(
        &self,
        request: Request<api::DescribeTopicRequest>,
    ) -> Result<Response<api::DescribeTopicResponse>, Status> {
        answer(self.describe(request.into_inner()).await)
    }

    async fn list_topics(
        &self,
        request: Request<api::ListTopicsRequest>,
    ) -> Result<Response<api::ListTopicsResponse>, Status> {
        answer(self.list(request.into_inner()).await)
    }

    async fn alter_topic(
        &self,
        request: Request<api::AlterTopicRequest>,
    ) -> Result<Response<api::AlterTopicResponse>, Status> {
        answer(self.alter(request.into_inner()).await)
    }

    async fn add_partitions(
        &self,
        request: Request<api::AddPartitionsRequest>,
    ) -> Result<Response<api::AddPartitionsResponse>, Status> {
        let call = Call::of(request.metadata());
        answer(self.add_partitions(request.into_inner(), call).await)
    }

    async fn delete_topic(
        &self,
        request: Request<api::DeleteTopicRequest>,
    ) -> Result<Response<api::DeleteTopicResponse>, Status> {
        answer(self.delete(request.into_inner()).await)
    }

    async fn delete_records(
        &self,
        request: Request<api::DeleteRecordsRequest>,
    ) -> Result<Response<api::DeleteRecordsResponse>, Status> {
        let call = Call::of(request.metadata());
        answer(describe::delete_records(&self.context, request.into_inner(), call).await)
    }
}
