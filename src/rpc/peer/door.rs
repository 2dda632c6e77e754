//! The door: what a node can be asked before and after it is part of a cluster.
//!
//! # How a cluster begins
//! Every fresh node asks its seeds who they are. If one of them is in a cluster already, that is
//! the cluster. If all of them answer and none is, the one with the lowest id writes a founding
//! record into its own directory first and then gives it to the others, who keep the first one they
//! get.
//! A node that lost its directory finds the others in a cluster and so never founds a second one;
//! and with a seed that does not answer nobody founds anything, because that one may know a
//! cluster.

use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::watch;

use crate::cluster::{Founding, Identity, Node};
use crate::storage::{self, DataDir};
use crate::types::NodeId;

/// Who a node is and, once it runs, all of it.
#[derive(Debug)]
pub struct Door {
    dir: Arc<DataDir>,
    identity: Mutex<Identity>,
    founding: watch::Sender<Option<Founding>>,
    node: OnceLock<Arc<Node>>,
}

impl Door {
    /// The door of a node that is not running yet.
    pub fn new(dir: Arc<DataDir>, identity: Identity) -> Self {
        let founding = watch::Sender::new(identity.founding.clone());
        Self { dir, identity: Mutex::new(identity), founding, node: OnceLock::new() }
    }

    /// Who the node is.
    pub fn identity(&self) -> Identity {
        self.identity.lock().expect("nobody panics with the lock").clone()
    }

    /// The cluster that the node belongs to, if it does.
    pub fn founding(&self) -> Option<Founding> {
        self.founding.borrow().clone()
    }

    /// Watches for the cluster.
    pub fn watch_founding(&self) -> watch::Receiver<Option<Founding>> {
        self.founding.subscribe()
    }

    /// Makes the node part of a cluster, unless it is of one already, and returns which.
    ///
    /// DURABILITY: a record is on disk before anybody hears that this node holds it.
    ///
    /// # Errors
    /// What storage said: the node belongs to no cluster.
    pub fn adopt(&self, founding: &Founding) -> storage::Result<Founding> {
        let mut identity = self.identity.lock().expect("nobody panics with the lock");
        if let Some(known) = &identity.founding {
            return Ok(known.clone());
        }
        let adopted = Identity { founding: Some(founding.clone()), ..identity.clone() };
        adopted.store(&self.dir)?;
        *identity = adopted;
        self.founding.send_replace(Some(founding.clone()));
        Ok(founding.clone())
    }

    /// Writes down which incarnation of the node this is.
    ///
    /// # Errors
    /// What storage said.
    pub fn become_incarnation(&self, incarnation: u64) -> storage::Result<Identity> {
        let mut identity = self.identity.lock().expect("nobody panics with the lock");
        let named = Identity { incarnation, ..identity.clone() };
        named.store(&self.dir)?;
        *identity = named.clone();
        Ok(named)
    }

    /// The node, once it runs.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.get()
    }

    /// Lets the node be asked.
    ///
    /// # Panics
    /// If there is one already.
    pub fn open(&self, node: Arc<Node>) {
        assert!(self.node.set(node).is_ok(), "a node starts once");
    }

    /// Where other nodes reach a node.
    pub fn peer_address(&self, node: NodeId) -> Option<String> {
        if let Some(running) = self.node.get() {
            return running.peer_address(node);
        }
        let known = self.known_peers().into_iter().find(|(known, _)| *known == node);
        known.map(|(_, address)| address)
    }

    /// Addresses of the nodes that this one knows, with their ids.
    pub fn known_peers(&self) -> Vec<(NodeId, String)> {
        if let Some(node) = self.node.get() {
            let state = node.state();
            if state.nodes().len() > 0 {
                let told = state.nodes().map(|n| (n.node_id(), n.peer_address.clone()));
                return told.collect();
            }
        }
        let founding = self.founding.borrow();
        let founders = founding.iter().flat_map(|founding| &founding.founders);
        founders.map(|founder| (NodeId(founder.node), founder.peer_address.clone())).collect()
    }
}
