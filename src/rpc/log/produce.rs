//! Produce: one batch, on its way to the leader of its partition.
//!
//! A batch without producer is tried again only while it was surely not proposed. One with a
//! producer can be tried until its deadline: it is stored once.

use tokio::time::timeout_at;

use super::super::call::{Call, Pauses};
use super::super::channels::log_client;
use super::super::context::{Context, Route};
use super::super::convert;
use super::super::counters::{Counters, Method, add};
use super::super::error::{Effect, Error};
use super::check::{Checked, Unchecked};
use crate::partition::{Appended, AskError, Handle};
use crate::proto::server::{ProduceRequest, ProduceResponse};
use crate::types::NodeId;

/// Answers one request.
pub(super) async fn produce(
    context: &Context,
    request: ProduceRequest,
    call: Call,
) -> Result<ProduceResponse, Error> {
    let _permit = context.enter()?;
    let checked = check(context, request).await?;
    store(context, &checked, call, false, &mut None).await
}

/// Checks a request, and may wait for what this node has to hear of before.
pub(super) async fn check(context: &Context, request: ProduceRequest) -> Result<Checked, Error> {
    let target = context.target(&request.topic, &request.topic_id, request.partition).await?;
    let unchecked = Unchecked::new(request, target)?;
    match unchecked.is_heavy() {
        true => unchecked.check_elsewhere(context).await,
        false => unchecked.check(),
    }
}

/// Has a batch stored by whoever leads its partition. `may_be_stored` if an earlier attempt at it
/// ended without an answer: then no refusal says anything of that one. `hint` is what was said of
/// who leads, if that is not what this node knows, before and after.
pub(super) async fn store(
    context: &Context,
    checked: &Checked,
    call: Call,
    mut may_be_stored: bool,
    hint: &mut Option<NodeId>,
) -> Result<ProduceResponse, Error> {
    let known = |error, may_be_stored| if may_be_stored { Error::OutcomeUnknown } else { error };
    if call.time_left().is_zero() {
        // It waited too long for others to be tried at all.
        return Err(known(Error::Overloaded, may_be_stored));
    }
    let mut pauses = Pauses::new();
    loop {
        let error = match attempt(context, checked, call, *hint).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let is_worth_another = match error.effect() {
            Effect::NotDone => call.may_forward || is_of_this_node(&error),
            Effect::Unknown => checked.is_stamped(),
            Effect::Final => false,
        };
        may_be_stored |= error.effect() == Effect::Unknown;
        if !is_worth_another {
            return Err(known(error, may_be_stored));
        }
        *hint = error.leader().filter(|leader| *hint != Some(*leader));
        if !pauses.pause(call.deadline).await {
            return Err(known(error, may_be_stored));
        }
    }
}

/// True if waiting here may help, whoever leads.
fn is_of_this_node(error: &Error) -> bool {
    use crate::raft::Refused;
    matches!(error, Error::Overloaded | Error::Ask(AskError::NotTaken(Refused::Overloaded)))
}

async fn attempt(
    context: &Context,
    checked: &Checked,
    call: Call,
    hint: Option<NodeId>,
) -> Result<ProduceResponse, Error> {
    match context.route(checked.target.log, hint) {
        Route::Here(handle) => append(context, &handle, checked, call).await,
        Route::There(node) if call.may_forward => forward(context, node, checked, call).await,
        Route::There(_) | Route::Unknown => Err(context.not_leader(checked.target.log)),
    }
}

async fn append(
    context: &Context,
    handle: &Handle,
    checked: &Checked,
    call: Call,
) -> Result<ProduceResponse, Error> {
    let submitted = handle.submit(checked.batch.clone(), checked.acks);
    let Ok(submitted) = timeout_at(call.deadline, submitted).await else {
        return Err(Error::Overloaded);
    };
    match timeout_at(call.deadline, submitted?).await {
        Ok(Ok(appended)) => {
            count_stored(context.counters(), checked, appended.is_duplicate);
            Ok(stored(checked, appended))
        }
        Ok(Err(AskError::NotLeader { .. })) => Err(context.not_leader(checked.target.log)),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Error::OutcomeUnknown),
    }
}

/// The answer to a batch that is stored here.
pub(super) fn stored(checked: &Checked, appended: Appended) -> ProduceResponse {
    ProduceResponse {
        topic_id: checked.target.topic_id.to_string(),
        base_offset: appended.base_offset,
        record_count: checked.batch.record_count,
        durability: convert::durability(appended.durability).into(),
    }
}

/// Counts a batch that was stored here.
pub(super) fn count_stored(counters: &Counters, checked: &Checked, is_duplicate: bool) {
    let (bytes, records) = (checked.batch.payload.len() as u64, checked.batch.record_count.into());
    add(&counters.batches_in, 1);
    add(&counters.duplicates, is_duplicate.into());
    add(&counters.bytes_in, bytes);
    add(&counters.records_in, records);
    let topic = counters.topic(checked.target.topic_id);
    add(&topic.bytes_in, bytes);
    add(&topic.records_in, records);
}

async fn forward(
    context: &Context,
    node: NodeId,
    checked: &Checked,
    call: Call,
) -> Result<ProduceResponse, Error> {
    context.counters().forward(Method::Produce);
    let mut client = log_client(context.channel(node)?);
    let request = call.forwarded(for_another_node(checked));
    match timeout_at(call.deadline, client.produce(request)).await {
        Ok(answered) => Ok(answered?.into_inner()),
        Err(_) => Err(Error::OutcomeUnknown),
    }
}

/// The request as another node gets it: for this topic, and not for one made anew.
pub(super) fn for_another_node(checked: &Checked) -> ProduceRequest {
    let topic_id = checked.target.topic_id.to_string();
    ProduceRequest { topic_id, crc: Some(checked.batch.payload_crc), ..checked.request.clone() }
}
