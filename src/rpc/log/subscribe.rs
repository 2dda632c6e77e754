//! Subscribe: record batches of one topic's partitions, as they come.
//!
//! One task for each subscription reads in turn from the partitions that have something, as much as
//! the client has given credit for, from the replica at hand or through another node. Between it
//! and the connection stand at most two messages.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::super::call::{Call, Origin};
use super::super::context::{Context, Target};
use super::super::convert::{self, Place, encoded_bytes};
use super::super::counters::add;
use super::super::error::{Effect, Error};
use super::super::limits::NAMED_PARTITIONS_MAX;
use super::fetch;
use super::offsets::look_up_for_reading;
use crate::proto::server::subscribe_request::Message as Told;
use crate::proto::server::subscribe_response::Message as Tell;
use crate::proto::server::{
    FetchRequest, FetchResponse, PartitionPosition, SubscribeData, SubscribeGap,
    SubscribePositions, SubscribeRequest, SubscribeResponse, SubscribeStart, SubscribeStarted,
};

/// Messages that wait for the connection.
pub(super) const MESSAGES_MAX: usize = 2;
/// Bytes of a data message, roughly.
const MESSAGE_BYTES: u32 = 1 << 20;
const CREDIT_BYTES_MIN: u32 = 64 << 10;
const CREDIT_BYTES_MAX: u32 = 64 << 20;
/// How long the first message may take.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which the server says where it is.
const SPEAK_EVERY: Duration = Duration::from_secs(5);
/// How long another node is asked to wait for records at a time.
const REMOTE_WAIT: Duration = Duration::from_secs(5);
/// How long a partition rests that cannot be read at the moment.
const REST: Duration = Duration::from_millis(100);
/// How long a partition may be unreadable before the subscription ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// A partition of a subscription.
#[derive(Debug)]
struct Part {
    target: Target,
    position: PartitionPosition,
    is_idle: bool,
    /// Since when it cannot be read.
    failing_since: Option<Instant>,
}

/// A partition, by its place, has something to read, maybe.
type Waiting = Pin<Box<dyn Future<Output = usize> + Send>>;

/// A subscription that runs.
struct Subscription {
    context: Context,
    topic: String,
    origin: Origin,
    requests: Streaming<SubscribeRequest>,
    answers: mpsc::Sender<Result<SubscribeResponse, Status>>,
    parts: Vec<Part>,
    /// Bytes that may be sent. Below zero after a batch that was larger than what was left.
    credit: i64,
    heard: Instant,
    spoke: Instant,
    waiting: FuturesUnordered<Waiting>,
    next: usize,
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
        Ok(Some((topic, credit, parts, started))) => {
            let now = Instant::now();
            let mut subscription = Subscription {
                context: context.clone(),
                topic,
                origin,
                requests,
                answers: answers.clone(),
                parts,
                credit,
                heard: now,
                spoke: now,
                waiting: FuturesUnordered::new(),
                next: 0,
            };
            match subscription.tell(Tell::Started(started)).await {
                Ok(Some(())) => subscription.run().await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            }
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        let is_slow = matches!(error, Error::SlowConsumer);
        let told = answers.send(Err(error.into()));
        // Who has gone needs no reason. Who does not read keeps the stream in any case, and is told
        // if it reads on.
        let _ = match is_slow {
            true => told.await.is_ok(),
            false => timeout(START_TIMEOUT, told).await.is_ok(),
        };
    }
}

type Begun = (String, i64, Vec<Part>, SubscribeStarted);

/// Waits for the first message and looks up where to begin. `None` if the client has gone.
async fn begin(
    context: &Context,
    requests: &mut Streaming<SubscribeRequest>,
    origin: Origin,
) -> Result<Option<Begun>, Error> {
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
    let positions: Vec<_> = found
        .into_iter()
        .map(|found| PartitionPosition {
            partition: found.partition,
            next_offset: found.offset,
            high_watermark: found.high_watermark,
            log_start_offset: found.log_start_offset,
        })
        .collect();
    let topic_id = targets.first().map(|target| target.topic_id.to_string()).unwrap_or_default();
    let part = |(target, position): (Target, &PartitionPosition)| Part {
        target,
        position: *position,
        is_idle: false,
        failing_since: None,
    };
    let parts = targets.into_iter().zip(&positions).map(part).collect();
    let started = SubscribeStarted { topic_id, positions };
    Ok(Some((start.topic, i64::from(start.credit_bytes), parts, started)))
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
            let Some(place) = self.next_ready() else {
                if self.parts.iter().any(|part| !part.is_idle) {
                    add(&self.context.counters().credit_stalls, 1);
                }
                if !self.wait().await? {
                    return Ok(());
                }
                continue;
            };
            if self.read(place).await?.is_none() {
                return Ok(());
            }
            if !self.listen()? {
                return Ok(());
            }
        }
    }

    /// The next partition in turn that may be read, if there is credit.
    fn next_ready(&mut self) -> Option<usize> {
        let count = self.parts.len();
        if self.credit <= 0 {
            return None;
        }
        let turn = (self.next..self.next + count).map(|n| n % count);
        let found = turn.into_iter().find(|n| !self.parts[*n].is_idle)?;
        self.next = (found + 1) % count;
        Some(found)
    }

    /// Takes what the client has said meanwhile, without waiting. False if it has gone.
    fn listen(&mut self) -> Result<bool, Error> {
        while let Some(message) = futures_util::FutureExt::now_or_never(self.requests.message()) {
            if !self.hear(message)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn hear(&mut self, message: Result<Option<SubscribeRequest>, Status>) -> Result<bool, Error> {
        let Some(request) = message? else { return Ok(false) };
        self.heard = Instant::now();
        match request.message {
            Some(Told::Credit(credit)) => {
                let more = self.credit.saturating_add(i64::from(credit.bytes));
                if more > i64::from(CREDIT_BYTES_MAX) {
                    let expected = format!("at most {CREDIT_BYTES_MAX} that are not used");
                    return Err(Error::field("credit", expected));
                }
                self.credit = more;
            }
            Some(Told::Heartbeat(_)) | None => {}
            Some(Told::Start(_)) => return Err(Error::field("start", "said once, at first")),
        }
        Ok(true)
    }

    /// Waits until there may be something to do. False if the client has gone.
    async fn wait(&mut self) -> Result<bool, Error> {
        let silence_max = self.context.limits().reader_silence_max;
        let (silent, speak) = (self.heard + silence_max, self.spoke + SPEAK_EVERY);
        tokio::select! {
            message = self.requests.message() => return self.hear(message),
            Some(place) = self.waiting.next() => self.parts[place].is_idle = false,
            () = sleep_until(silent) => return Err(Error::SlowConsumer),
            () = sleep_until(speak) => {
                let positions = self.parts.iter().map(|part| part.position).collect();
                let said = self.tell(Tell::Positions(SubscribePositions { positions })).await?;
                return Ok(said.is_some());
            }
            () = self.context.draining() => return Err(Error::Draining),
        }
        Ok(true)
    }

    /// Reads from a partition and sends what there is. `None` if the client has gone.
    async fn read(&mut self, place: usize) -> Result<Option<()>, Error> {
        let bytes = u32::try_from(self.credit).unwrap_or(u32::MAX).min(MESSAGE_BYTES);
        let part = &self.parts[place];
        let call = Call::within_stream(self.origin);
        let request = self.request(part, bytes, Duration::ZERO);
        match fetch::fetch(&self.context, request, call).await {
            Ok(response) => self.deliver(place, response).await,
            Err(error) => self.stumble(place, error).await,
        }
    }

    fn request(&self, part: &Part, max_bytes: u32, wait: Duration) -> FetchRequest {
        FetchRequest {
            topic: self.topic.clone(),
            topic_id: part.target.topic_id.to_string(),
            partition: part.target.partition,
            offset: part.position.next_offset,
            max_bytes,
            max_wait_ms: wait.as_millis() as u32,
            from_leader: false,
        }
    }

    async fn deliver(&mut self, place: usize, found: FetchResponse) -> Result<Option<()>, Error> {
        let part = &mut self.parts[place];
        part.failing_since = None;
        let position = &mut part.position;
        position.high_watermark = position.high_watermark.max(found.high_watermark);
        position.log_start_offset = found.log_start_offset;
        if found.batches.is_empty() {
            part.is_idle = true;
            self.wait_for_more(place);
            return Ok(Some(()));
        }
        position.next_offset = found.next_offset;
        let bytes: usize = found.batches.iter().map(encoded_bytes).sum();
        let cost_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let data = SubscribeData {
            partition: position.partition,
            batches: found.batches,
            next_offset: found.next_offset,
            high_watermark: position.high_watermark,
            cost_bytes,
        };
        self.credit -= i64::from(cost_bytes);
        self.tell(Tell::Data(data)).await
    }

    /// Follows a partition that retention has moved on, and bears with one that cannot be read.
    async fn stumble(&mut self, place: usize, error: Error) -> Result<Option<()>, Error> {
        let part = &mut self.parts[place];
        let from_offset = part.position.next_offset;
        if let Some(to_offset) = error.log_start().filter(|start| *start > from_offset) {
            part.position.next_offset = to_offset;
            part.position.log_start_offset = to_offset;
            let partition = part.position.partition;
            let gap = SubscribeGap { partition, from_offset, to_offset };
            return self.tell(Tell::Gap(gap)).await;
        }
        let is_passing = error.effect() != Effect::Final;
        let since = *part.failing_since.get_or_insert_with(Instant::now);
        if !is_passing || since.elapsed() > PATIENCE {
            return Err(error);
        }
        part.is_idle = true;
        self.waiting.push(Box::pin(async move {
            sleep(REST).await;
            place
        }));
        Ok(Some(()))
    }

    /// Has the partition looked at again when there is more in it.
    fn wait_for_more(&mut self, place: usize) {
        let part = &self.parts[place];
        let offset = part.position.next_offset;
        if let Some(handle) = self.context.node().replica(part.target.log) {
            self.waiting.push(Box::pin(async move {
                if handle.wait_beyond(offset).await <= offset {
                    // The replica has stopped.
                    sleep(REST).await;
                }
                place
            }));
            return;
        }
        let (context, origin) = (self.context.clone(), self.origin);
        let request = self.request(part, 1, REMOTE_WAIT);
        self.waiting.push(Box::pin(async move {
            let call = Call::within_stream(origin);
            // What it says is asked again, with the bytes that there is credit for.
            if fetch::fetch(&context, request, call).await.is_err() {
                sleep(REST).await;
            }
            place
        }));
    }

    /// Says something to the client. `None` if it has gone.
    ///
    /// # Errors
    /// [`Error::SlowConsumer`] if it does not read what it asked for.
    async fn tell(&mut self, message: Tell) -> Result<Option<()>, Error> {
        let answer = Ok(SubscribeResponse { message: Some(message) });
        let patience = self.context.limits().reader_silence_max;
        let sent = timeout(patience, self.answers.send(answer)).await;
        self.spoke = Instant::now();
        Ok(sent.map_err(|_| Error::SlowConsumer)?.ok())
    }
}
