//! Channels to other nodes, by node.

use std::collections::HashMap;
use std::sync::Mutex;

use tonic::transport::Channel;

use super::peer::{FindAddress, lazy_channel};
use crate::types::NodeId;

/// Channels to the peer ports of other nodes, made when they are first needed.
pub struct Channels {
    find_address: FindAddress,
    by_node: Mutex<HashMap<NodeId, (String, Channel)>>,
}

/// There is no way to a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no address of node {0} is known")]
pub struct NoAddress(pub NodeId);

impl Channels {
    /// Channels to the addresses that `find_address` finds.
    pub fn new(find_address: FindAddress) -> Self {
        Self { find_address, by_node: Mutex::default() }
    }

    /// The channel to a node. It connects when it is used.
    ///
    /// # Errors
    /// [`NoAddress`].
    pub fn get(&self, node: NodeId) -> Result<Channel, NoAddress> {
        let address = (self.find_address)(node).ok_or(NoAddress(node))?;
        let mut by_node = self.by_node.lock().expect("nobody panics with the lock");
        if let Some((known, channel)) = by_node.get(&node) {
            if *known == address {
                return Ok(channel.clone());
            }
        }
        let channel = lazy_channel(&address).map_err(|_| NoAddress(node))?;
        by_node.insert(node, (address, channel.clone()));
        Ok(channel)
    }
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").finish_non_exhaustive()
    }
}
