//! Ending a server: in order at first, at once when asked again.
//!
//! [`Shutdown`] is one number that only grows: running, draining, stopping. Every part of a server
//! holds a clone and watches it; whoever begins the end moves it. A drain hands over what the node
//! leads and lets calls finish, for as long as the configuration allows; a stop waits for nothing
//! but what must be in order on disk.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How far the end of a server has come. It never goes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not begun.
    #[default]
    Running,
    /// Nothing new is taken on; leadership is handed over; calls may finish.
    Draining,
    /// Whoever is still at work stops.
    Stopping,
}

/// The end of a server: a cheap clone that can be asked, awaited and moved on.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<watch::Sender<Stage>>);

impl Shutdown {
    /// The end of a server that runs.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Stage::Running)))
    }

    /// Returns how far it has come.
    pub fn stage(&self) -> Stage {
        *self.0.borrow()
    }

    /// Begins to drain, unless more was asked already.
    pub fn drain(&self) {
        self.advance(Stage::Draining);
    }

    /// Stops at once.
    pub fn stop(&self) {
        self.advance(Stage::Stopping);
    }

    /// Waits until draining has begun, or more. Cancel safe: it holds nothing.
    pub async fn draining(&self) {
        self.reached(Stage::Draining).await;
    }

    /// Waits until everything is to stop. Cancel safe: it holds nothing.
    pub async fn stopping(&self) {
        self.reached(Stage::Stopping).await;
    }

    /// Listens for SIGTERM and SIGINT in a task: the first drains, the second stops. From now on
    /// the signals do not end the process by themselves.
    ///
    /// # Errors
    /// What the system said when it was asked for the signals; they then work as before.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn on_signals(&self) -> io::Result<()> {
        let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(obey(signals, self.clone()));
        Ok(())
    }

    fn advance(&self, to: Stage) {
        self.0.send_if_modified(|stage| {
            let is_later = to > *stage;
            *stage = to.max(*stage);
            is_later
        });
    }

    async fn reached(&self, wanted: Stage) {
        let mut stages = self.0.subscribe();
        let reached = stages.wait_for(|stage| *stage >= wanted).await;
        assert!(reached.is_ok(), "the sender is in this handle");
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

async fn obey((mut terminate, mut interrupt): (Signal, Signal), shutdown: Shutdown) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let name = next().await;
    tracing::info!(signal = name, "draining; a second signal stops at once");
    shutdown.drain();
    let name = next().await;
    tracing::warn!(signal = name, "stopping at once");
    shutdown.stop();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_only_advance() {
        let shutdown = Shutdown::new();
        assert_eq!(shutdown.stage(), Stage::Running);
        shutdown.stop();
        shutdown.drain();
        assert_eq!(shutdown.stage(), Stage::Stopping);
    }

    #[tokio::test]
    async fn clones_wait_for_the_same_end() {
        let shutdown = Shutdown::new();
        let (one, other) = (shutdown.clone(), shutdown.clone());
        let waiting = tokio::spawn(async move { one.draining().await });
        let stopping = tokio::spawn(async move { other.stopping().await });
        shutdown.drain();
        waiting.await.unwrap();
        assert!(!stopping.is_finished());
        shutdown.stop();
        stopping.await.unwrap();
        shutdown.draining().await;
    }

    #[tokio::test]
    async fn the_first_signal_drains_and_the_second_stops() {
        let shutdown = Shutdown::new();
        shutdown.on_signals().unwrap();
        let signal = |name: &str| {
            let id = std::process::id().to_string();
            let done = std::process::Command::new("kill").args(["-s", name, &id]).status();
            assert!(done.unwrap().success());
        };
        assert_eq!(shutdown.stage(), Stage::Running);
        signal("TERM");
        shutdown.draining().await;
        assert_eq!(shutdown.stage(), Stage::Draining);
        signal("INT");
        shutdown.stopping().await;
    }
}
