//! Consumer groups, as any client sees them that only has the `.proto` files.

mod actor;
mod checker;
mod churn;
mod crowd;
mod expiry;
mod history;
mod judging;
mod member;
mod moving;
mod offsets;
#[cfg(feature = "planted-bugs")]
mod planted;
mod setup;
mod steady;
mod whole;
