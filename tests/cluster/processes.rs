//! Clusters of real processes that are killed, stopped, wiped, moved and taken out.
//!
//! One test at a time: each has three servers or more, whose elections need some of the machine.

mod crashes;
mod directories;
mod doctor;
mod load;
mod members;
mod membership;
mod nodes;
mod topics;
