//! Subscribe: record batches of one topic's partitions, as they come.
//!
//! One task for each subscription passes on what its feed reads. Between it and the connection
//! stand at most two messages.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::super::call::{Call, Origin};
use super::super::context::{Context, Target};
use super::super::convert::{self, Place};
use super::super::error::Error;
use super::super::limits::NAMED_PARTITIONS_MAX;
use super::feed::{Feed, Position, Turn};
use super::offsets::look_up_for_reading;
use crate::proto::server::subscribe_request::Message as Told;
use crate::proto::server::subscribe_response::Message as Tell;
use crate::proto::server::{
    PartitionOffset, PartitionPosition, SubscribeData, SubscribeGap, SubscribePositions,
    SubscribeRequest, SubscribeResponse, SubscribeStart, SubscribeStarted,
};

/// Messages that wait for the connection.
pub(super) const MESSAGES_MAX: usize = 2;
/// Bytes that a client may let the server send: at first, at least, and in all, at most.
pub(in crate::rpc) const CREDIT_BYTES_MIN: u32 = 64 << 10;
pub(in crate::rpc) const CREDIT_BYTES_MAX: u32 = 64 << 20;
/// How long the first message may take.
pub(in crate::rpc) const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which the server says where it is.
const SPEAK_EVERY: Duration = Duration::from_secs(5);

/// A subscription that runs. Its feed has each partition under its number.
struct Subscription {
    context: Context,
    requests: Streaming<SubscribeRequest>,
    answers: mpsc::Sender<Result<SubscribeResponse, Status>>,
    feed: Feed,
    heard: Instant,
    spoke: Instant,
}

/// Serves a subscription until one side ends it.
pub(super) async fn subscribe(
    context: Context,
    mut requests: Streaming<SubscribeRequest>,
    origin: Origin,
    answers: mpsc::Sender<Result<SubscribeResponse, Status>>,
) {
    let begun = begin(&context, &mut requests, origin).await;
    let outcome = match begun {
        Ok(Some((feed, started))) => {
            let now = Instant::now();
            let (context, answers) = (context.clone(), answers.clone());
            let mut subscription =
                Subscription { context, requests, answers, feed, heard: now, spoke: now };
            match subscription.tell(Tell::Started(started)).await {
                Ok(true) => subscription.run().await,
                Ok(false) => Ok(()),
                Err(error) => Err(error),
            }
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        // Who has gone needs no reason.
        let _ = timeout(START_TIMEOUT, answers.send(Err(error.into()))).await;
    }
}

/// Waits for the first message and looks up where to begin. `None` if the client has gone.
async fn begin(
    context: &Context,
    requests: &mut Streaming<SubscribeRequest>,
    origin: Origin,
) -> Result<Option<(Feed, SubscribeStarted)>, Error> {
    let expected = || Error::field("message", "a start, within 5 s of the stream's beginning");
    let first = timeout(START_TIMEOUT, requests.message()).await.map_err(|_| expected())?;
    let start = match first {
        Ok(Some(SubscribeRequest { message: Some(Told::Start(start)) })) => start,
        Ok(Some(_)) => return Err(expected()),
        Ok(None) => return Ok(None),
        Err(status) => return Err(status.into()),
    };
    if !(CREDIT_BYTES_MIN..=CREDIT_BYTES_MAX).contains(&start.credit_bytes) {
        let expected = format!("{CREDIT_BYTES_MIN} to {CREDIT_BYTES_MAX}");
        return Err(Error::field("credit_bytes", expected));
    }
    let wanted = wanted(context, &start).await?;
    let call = Call::within_stream(origin);
    let targets: Vec<_> = wanted.iter().map(|(_, target)| *target).collect();
    let found = look_up_for_reading(context, &start.topic, wanted, call).await?;
    let mut feed = Feed::new(context.clone(), origin, start.credit_bytes.into());
    for (target, found) in targets.iter().zip(&found) {
        feed.add(target.partition.into(), start.topic.clone(), *target, position(found));
    }
    let topic_id = targets.first().map(|target| target.topic_id.to_string()).unwrap_or_default();
    let positions = found.iter().map(|found| told(found.partition, position(found))).collect();
    Ok(Some((feed, SubscribeStarted { topic_id, positions })))
}

fn position(found: &PartitionOffset) -> Position {
    Position {
        next_offset: found.offset,
        high_watermark: found.high_watermark,
        log_start_offset: found.log_start_offset,
    }
}

fn told(partition: u32, position: Position) -> PartitionPosition {
    let Position { next_offset, high_watermark, log_start_offset } = position;
    PartitionPosition { partition, next_offset, high_watermark, log_start_offset }
}

/// The partitions that a subscription is of, each with the place to begin at.
async fn wanted(context: &Context, start: &SubscribeStart) -> Result<Vec<(Place, Target)>, Error> {
    let (topic, id) = (start.topic.as_str(), start.topic_id.as_str());
    let mut wanted = Vec::new();
    if start.partitions.is_empty() {
        let place = convert::place(start.start)?;
        let count = context.lookup(topic, id).await?.topic().partitions.len() as u32;
        for partition in 0..count {
            wanted.push((place, context.target(topic, id, partition).await?));
        }
    }
    if start.partitions.len() > NAMED_PARTITIONS_MAX || wanted.len() > NAMED_PARTITIONS_MAX {
        let expected = format!("at most {NAMED_PARTITIONS_MAX} partitions");
        return Err(Error::field("partitions", expected));
    }
    for named in &start.partitions {
        let place = convert::place(named.start)?;
        let target = context.target(topic, id, named.partition).await?;
        if wanted.iter().any(|(_, known)| known.partition == target.partition) {
            return Err(Error::field("partitions", "named once each"));
        }
        wanted.push((place, target));
    }
    Ok(wanted)
}

impl Subscription {
    async fn run(&mut self) -> Result<(), Error> {
        loop {
            let silence_max = self.context.limits().reader_silence_max;
            let (silent, speak) = (self.heard + silence_max, self.spoke + SPEAK_EVERY);
            let is_on = tokio::select! {
                // What the client says comes first: it may be that it leaves.
                biased;
                message = self.requests.message() => self.hear(message)?,
                (key, turn) = self.feed.next() => self.pass_on(key as u32, turn).await?,
                () = sleep_until(silent) => return Err(Error::SlowConsumer),
                () = sleep_until(speak) => self.speak().await?,
                () = self.context.draining() => return Err(Error::Draining),
            };
            if !is_on {
                return Ok(());
            }
        }
    }

    /// Takes what the client has said. False if it has gone.
    fn hear(&mut self, message: Result<Option<SubscribeRequest>, Status>) -> Result<bool, Error> {
        let Some(request) = message? else { return Ok(false) };
        self.heard = Instant::now();
        match request.message {
            Some(Told::Credit(credit)) => {
                if self.feed.credit().saturating_add(credit.bytes.into()) > CREDIT_BYTES_MAX.into()
                {
                    let expected = format!("at most {CREDIT_BYTES_MAX} that are not used");
                    return Err(Error::field("credit", expected));
                }
                self.feed.give(credit.bytes);
            }
            Some(Told::Heartbeat(_)) | None => {}
            Some(Told::Start(_)) => return Err(Error::field("start", "said once, at first")),
        }
        Ok(true)
    }

    /// Says where the subscription is. False if the client has gone.
    async fn speak(&mut self) -> Result<bool, Error> {
        let positions = self.feed.positions();
        let positions = positions.map(|(key, position)| told(key as u32, position)).collect();
        self.tell(Tell::Positions(SubscribePositions { positions })).await
    }

    /// Passes on what a partition's turn came to. False if the client has gone.
    async fn pass_on(&mut self, partition: u32, turn: Turn) -> Result<bool, Error> {
        let message = match turn {
            Turn::Data { batches, position, cost_bytes } => Tell::Data(SubscribeData {
                partition,
                batches,
                next_offset: position.next_offset,
                high_watermark: position.high_watermark,
                cost_bytes,
            }),
            Turn::Gap { from_offset, to_offset } => {
                Tell::Gap(SubscribeGap { partition, from_offset, to_offset })
            }
            Turn::Failed(error) => return Err(error),
        };
        self.tell(message).await
    }

    /// Says something to the client. False if it has gone.
    ///
    /// # Errors
    /// [`Error::SlowConsumer`] if it does not read what it asked for.
    async fn tell(&mut self, message: Tell) -> Result<bool, Error> {
        let answer = Ok(SubscribeResponse { message: Some(message) });
        let patience = self.context.limits().reader_silence_max;
        let sent = timeout(patience, self.answers.send(answer)).await;
        self.spoke = Instant::now();
        Ok(sent.map_err(|_| Error::SlowConsumer)?.is_ok())
    }
}
