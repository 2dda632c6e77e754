//! InitProducer: making a producer known to one partition.
//!
//! It can be repeated without harm: a new id that nobody uses is only lost, and a producer epoch
//! that is raised twice fences nobody but those it should.

use tokio::time::timeout_at;

use super::super::call::{Call, Pauses};
use super::super::channels::log_client;
use super::super::context::{Context, Route, Target};
use super::super::counters::Method;
use super::super::error::{Effect, Error};
use crate::partition::{AskError, Command, Handle, InitProducer, Refusal, Reply};
use crate::proto::server::{InitProducerRequest, InitProducerResponse};
use crate::types::NodeId;

/// Answers one request.
pub(super) async fn init_producer(
    context: &Context,
    request: InitProducerRequest,
    call: Call,
) -> Result<InitProducerResponse, Error> {
    let _permit = context.enter()?;
    let target = context.target(&request.topic, &request.topic_id, request.partition).await?;
    let request = InitProducerRequest { topic_id: target.topic_id.to_string(), ..request };
    let mut pauses = Pauses::new();
    let mut hint = None;
    loop {
        let attempt = attempt(context, target, &request, call, hint);
        let outcome =
            timeout_at(call.deadline, attempt).await.unwrap_or(Err(Error::OutcomeUnknown));
        let error = match outcome {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let is_worth_another = call.may_forward && error.effect() != Effect::Final;
        hint = error.leader().filter(|leader| hint != Some(*leader));
        if !is_worth_another || !pauses.pause(call.deadline).await {
            return Err(error);
        }
    }
}

async fn attempt(
    context: &Context,
    target: Target,
    request: &InitProducerRequest,
    call: Call,
    hint: Option<NodeId>,
) -> Result<InitProducerResponse, Error> {
    match context.route(target.log, hint) {
        Route::Here(handle) => init_here(context, &handle, target, request.producer_id).await,
        Route::There(node) if call.may_forward => {
            context.counters().forward(Method::InitProducer);
            let mut client = log_client(context.channel(node)?);
            let response = client.init_producer(call.forwarded(request.clone())).await?;
            Ok(response.into_inner())
        }
        Route::There(_) | Route::Unknown => Err(context.not_leader(target.log)),
    }
}

/// Has the partition's replica here make a producer known: a new one, or `known` once more.
async fn init_here(
    context: &Context,
    handle: &Handle,
    target: Target,
    known: u64,
) -> Result<InitProducerResponse, Error> {
    loop {
        let producer_id = match known {
            0 => context.producer_id().await?,
            known => known,
        };
        let command = InitProducer { producer_id, take_over: known != 0 };
        match handle.command(Command::InitProducer(command)).await {
            Ok(Reply::ProducerInitialized { producer_id, producer_epoch, ended_sequence }) => {
                return Ok(InitProducerResponse {
                    topic_id: target.topic_id.to_string(),
                    producer_id,
                    producer_epoch: producer_epoch.into(),
                    next_sequence: 0,
                    ended_sequence,
                });
            }
            Ok(_) => return Err(Error::Unexpected("a producer is answered like a group")),
            // The id came from another life of the cluster's metadata; there are more.
            Err(AskError::Refused(Refusal::ProducerIdTaken)) if known == 0 => {}
            Err(AskError::NotLeader { .. }) => return Err(context.not_leader(target.log)),
            Err(error) => return Err(error.into()),
        }
    }
}
