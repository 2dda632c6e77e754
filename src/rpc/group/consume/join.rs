//! Joining: how a stream becomes that of a group's member.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::Streaming;
use uuid::Uuid;

use super::super::super::call::Pauses;
use super::super::super::context::Context;
use super::super::super::error::{Effect, Error};
use super::super::super::log::subscribe::{CREDIT_BYTES_MAX, CREDIT_BYTES_MIN, START_TIMEOUT};
use super::super::admin::find;
use super::super::offsets::member_of;
use crate::cluster::command::{Id, Verb};
use crate::cluster::group::{Group, JoinGroup, Member};
use crate::group::{Session, session_timeout};
use crate::proto::server::consume_request::Message as Told;
use crate::proto::server::{ConsumeJoin, ConsumeRequest};

/// How long joining is tried.
const PATIENCE: Duration = Duration::from_secs(10);
const NAME_BYTES_MAX: usize = 249;
/// How often both sides say something, at least.
const HEARTBEAT_MAX: Duration = Duration::from_secs(20);
const POSITIONS_MAX: usize = 10_000;

/// A member that has joined.
pub(super) struct Joined {
    pub(super) join: ConsumeJoin,
    pub(super) group: Arc<Group>,
    pub(super) member: Id,
    pub(super) number: u64,
    pub(super) session: Session,
    pub(super) news: watch::Receiver<Option<Arc<Group>>>,
}

/// How often both sides of a group's streams say something, at least.
pub(super) fn heartbeat_interval(group: &Group) -> Duration {
    (session_timeout(group) / 3).min(HEARTBEAT_MAX)
}

/// Waits for the first message, and has its sender join. `None` if the client has gone.
pub(super) async fn join(
    context: &Context,
    requests: &mut Streaming<ConsumeRequest>,
) -> Result<Option<Joined>, Error> {
    let expected = || Error::field("message", "a join, within 5 s of the stream's beginning");
    let first = timeout(START_TIMEOUT, requests.message()).await.map_err(|_| expected())?;
    let join = match first {
        Ok(Some(ConsumeRequest { message: Some(Told::Join(join)) })) => join,
        Ok(Some(_)) => return Err(expected()),
        Ok(None) => return Ok(None),
        Err(status) => return Err(status.into()),
    };
    check(&join)?;
    let known = member_of(&join.member_id)?;
    let (_, group) = find(context, &join.group).await?;
    let id = known.unwrap_or_else(|| Uuid::new_v4().into());
    let number = propose(context, &group, &join, id, known.is_some()).await?;
    let session = context.sessions().begin(group.id, id, number);
    let mut news = context.sessions().watch(group.id, &context.node().state());
    let is_in = |group: &Option<Arc<Group>>| group.as_ref().is_none_or(|g| g.generation >= number);
    let heard = timeout(PATIENCE, news.wait_for(is_in)).await.map_err(|_| Error::Starting)?;
    let group = heard.ok().and_then(|group| group.clone());
    let unknown = || crate::cluster::Refusal::UnknownGroup(join.group.clone());
    let group = group.ok_or_else(unknown)?;
    Ok(Some(Joined { join, group, member: id, number, session, news }))
}

fn check(join: &ConsumeJoin) -> Result<(), Error> {
    let credit = join.credit_bytes;
    if credit != 0 && !(CREDIT_BYTES_MIN..=CREDIT_BYTES_MAX).contains(&credit) {
        let expected = format!("0, or {CREDIT_BYTES_MIN} to {CREDIT_BYTES_MAX}");
        return Err(Error::field("credit_bytes", expected));
    }
    let texts =
        [("instance", &join.instance), ("client_id", &join.client_id), ("rack", &join.rack)];
    for (field, text) in texts {
        if text.len() > NAME_BYTES_MAX {
            return Err(Error::field(field, format!("at most {NAME_BYTES_MAX} bytes")));
        }
    }
    if join.positions.len() > POSITIONS_MAX {
        return Err(Error::field("positions", format!("at most {POSITIONS_MAX}")));
    }
    Ok(())
}

/// Has the metadata take the member in. However often that is asked, it is done once: an earlier
/// attempt may be followed after a later one.
async fn propose(
    context: &Context,
    group: &Group,
    join: &ConsumeJoin,
    id: Id,
    is_returning: bool,
) -> Result<u64, Error> {
    let member = Member {
        id,
        instance: join.instance.clone(),
        client_id: join.client_id.clone(),
        rack: join.rack.clone(),
        node: context.node().id().0,
        session: 0,
        joining: Uuid::new_v4().into(),
    };
    let (deadline, mut pauses) = (Instant::now() + PATIENCE, Pauses::new());
    loop {
        let (group, member) = (group.id, member.clone());
        let verb = Verb::JoinGroup(JoinGroup { group, member, is_returning });
        match context.propose(verb).await {
            Ok(number) => return Ok(number),
            Err(error) if error.effect() == Effect::Final || !pauses.pause(deadline).await => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
}
