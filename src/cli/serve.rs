//! `quipu serve`: runs a node until it is told to stop.

use std::time::Duration;

use anyhow::Context as _;

use super::Verdict;
use crate::config::{self, ServerConfig};
use crate::server::{Server, Settings};
use crate::shutdown::Shutdown;
use crate::telemetry;

/// Runs a node of a cluster
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    server: config::Args,
}

const AFTER_HELP: &str = "\
Examples:
  quipu serve --dev
      one node with a directory that goes when it ends, for trying things out
  quipu serve --node-id 1 --data-dir /var/lib/quipu --listen 10.0.0.1:7401 \\
              --peer-listen 10.0.0.1:7501 --http-listen 10.0.0.1:7601 \\
              --seeds 1@10.0.0.1:7501,2@10.0.0.2:7501,3@10.0.0.3:7501
      one of three nodes; the same on the other two, with their own ids and addresses
  quipu serve --node-id 4 … --join --seeds 1@10.0.0.1:7501
      one more node for a cluster that there is

SIGTERM and Ctrl-C hand over what the node leads and end it in order; a second one ends it at once.
Exit codes: 0 ended in order, 1 failed, 2 the configuration is refused.";

pub(super) fn run(args: &Args) -> anyhow::Result<Verdict> {
    let config = config::load(&args.server, std::env::vars_os())?.config;
    telemetry::tracing::start(&config.log)
        .map_err(|error| anyhow::anyhow!("logging cannot start: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("the system starts no threads")?;
    let served = runtime.block_on(serve(&config));
    // Streams of clients that do not end by themselves must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    served
}

async fn serve(config: &ServerConfig) -> anyhow::Result<Verdict> {
    let shutdown = Shutdown::new();
    shutdown.on_signals().context("signals cannot be listened for")?;
    let temporary = match &config.data_dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("quipu-dev-").tempdir()?),
    };
    let data_dir = config.data_dir.clone();
    let data_dir = data_dir.or_else(|| temporary.as_ref().map(|dir| dir.path().join("data")));
    let data_dir = data_dir.context("a data directory is missing: give --data-dir")?;
    tracing::info!(node = %config.node_id, data_dir = %data_dir.display(), "starting");
    let settings = Settings::new(config, data_dir);
    let server = tokio::select! {
        server = Server::start(settings) => server?,
        () = shutdown.draining() => return Ok(Verdict::Good),
    };
    let addresses = server.addresses();
    tokio::select! {
        () = server.wait_until_ready() => tracing::info!(
            clients = %addresses.clients,
            peers = %addresses.peers,
            http = addresses.http.map(tracing::field::display),
            cluster = %server.node().cluster().0,
            "ready"
        ),
        () = shutdown.draining() => {}
        reason = server.failed() => anyhow::bail!("the node failed: {reason}"),
    }
    tokio::select! {
        () = shutdown.draining() => {}
        reason = server.failed() => {
            // DURABILITY: nothing is written any more; what is on disk is found out by recovery.
            anyhow::bail!("the node failed: {reason}");
        }
    }
    tokio::select! {
        () = server.stop() => tracing::info!("stopped in order"),
        () = shutdown.stopping() => tracing::warn!("stopped at once"),
    }
    Ok(Verdict::Good)
}
