//! What all services share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::channels::Channels;
use super::peer::Proposer;
use crate::cluster::Node;

/// What all services share; a cheap clone.
#[derive(Debug, Clone)]
pub struct Context {
    node: Arc<Node>,
    channels: Arc<Channels>,
    proposer: Proposer,
    is_draining: Arc<AtomicBool>,
}

impl Context {
    /// The context of a node's services.
    pub fn new(node: Arc<Node>, channels: Arc<Channels>) -> Self {
        let proposer = Proposer::new(node.clone(), channels.clone());
        Self { node, channels, proposer, is_draining: Arc::default() }
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The ways to other nodes.
    pub fn channels(&self) -> &Arc<Channels> {
        &self.channels
    }

    /// The way to the metadata.
    pub fn proposer(&self) -> &Proposer {
        &self.proposer
    }

    /// From now on, says to new callers that the node is stopping.
    pub fn start_draining(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    /// True if the node is stopping.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }
}
