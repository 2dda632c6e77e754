//! What the verbs that talk to a server share: the connection, and advice on its errors.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap::error::ErrorKind;

use super::Cli;
use crate::client::{Client, ClientConfig, Error, ErrorReason};

/// How to reach a cluster.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Args {
    /// Nodes of the cluster; one is enough, several outlive a node
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT[,…]",
        env = "QUIPU_SERVER",
        default_value = "127.0.0.1:7401",
        value_delimiter = ','
    )]
    server: Vec<String>,
    /// How long to try before giving up
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
}

impl Args {
    /// Returns how a client is to reach the cluster.
    pub(super) fn config(&self) -> ClientConfig {
        ClientConfig { timeout: self.timeout, ..ClientConfig::new(self.server.clone()) }
    }

    /// Runs a verb with a client.
    pub(super) fn run<T>(
        &self,
        verb: impl AsyncFnOnce(Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.context("cannot start threads")?;
        let done = runtime.block_on(async { verb(Client::new(self.config())?).await });
        // Nothing is left to wait for: whoever has to know has waited.
        runtime.shutdown_background();
        done
    }
}

/// An error with a better hint than it has by itself.
#[derive(Debug)]
pub(super) struct Advised {
    pub(super) error: Error,
    pub(super) hint: String,
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Advised {}

/// Waits for a call about a topic. If there is no such topic, the error names the nearest.
pub(super) async fn about_topic<T>(
    client: &Client,
    topic: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> anyhow::Result<T> {
    match call.await {
        Ok(answer) => Ok(answer),
        Err(error) => Err(advise(client, topic, error).await),
    }
}

/// Adds the nearest topic's name to an error that says that there is none.
pub(super) async fn advise(client: &Client, topic: &str, error: Error) -> anyhow::Error {
    if error.reason() != ErrorReason::UnknownTopic {
        return error.into();
    }
    let topics = client.list_topics("").await.unwrap_or_default();
    let names = topics.iter().map(|known| known.name.as_str());
    match nearest(topic, names) {
        Some(name) => Advised { error, hint: format!("did you mean `{name}`?") }.into(),
        None => error.into(),
    }
}

/// Waits for a call about a group. If there is no such group, the error says how to make it, or
/// names the nearest.
pub(super) async fn about_group<T>(
    client: &Client,
    group: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> anyhow::Result<T> {
    let error = match call.await {
        Ok(answer) => return Ok(answer),
        Err(error) if error.reason() != ErrorReason::UnknownGroup => return Err(error.into()),
        Err(error) => error,
    };
    let groups = client.list_groups("").await.unwrap_or_default();
    let hint = match nearest(group, groups.iter().map(|known| known.name.as_str())) {
        Some(name) => format!("did you mean `{name}`? "),
        None => String::new(),
    };
    let hint =
        format!("{hint}make it with `quipu group create {group} --topic TOPIC --start earliest`");
    Err(Advised { error, hint }.into())
}

/// Ends the process because the command line is wrong in a way that its grammar cannot say.
pub(super) fn usage_error(message: &str) -> ! {
    Cli::command().error(ErrorKind::ArgumentConflict, message).exit()
}

/// The name that is the fewest edits away, if it is near at all.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = wanted.chars().count() / 3 + 1;
    let measured = names.map(|name| (edits(wanted, name), name));
    measured.filter(|(edits, _)| *edits <= edits_max).min().map(|(_, name)| name)
}

/// Insertions, deletions and replacements of characters between two words (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (n, c) in from.chars().flat_map(char::to_lowercase).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], n + 1);
        for at in 0..to.len() {
            let replaced = diagonal + usize::from(to[at] != c);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        let names = || ["orders", "payments", "clicks"].into_iter();
        assert_eq!(nearest("order", names()), Some("orders"));
        assert_eq!(nearest("Ordres", names()), Some("orders"));
        assert_eq!(nearest("shipments-eu", names()), None);
        assert_eq!(nearest("x", [].into_iter()), None);
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", "abc"), 0);
    }
}
