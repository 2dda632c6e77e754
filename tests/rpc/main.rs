//! The API over real connections: nodes in one process, with real files.
//!
//! Bad input and attacks, and where each is tried. The numbers are those of the list that this
//! server is held to; what needs TLS, accounts, groups or federation is not here.
//!
//! | # | what comes | test |
//! |---|---|---|
//! | 9 | names that nothing can have | `bad_input::names_and_ids…`, `admin::topics…` |
//! | 10 | names that collide in metrics | `../cluster/metrics`: topics are named by their ids |
//! | 11 | the id of a topic that was deleted and made anew | `admin::a_topic_made_anew…` |
//! | 12, 13 | producers that are fenced, gaps, numbers used again | `records::a_producer…` |
//! | 16 | messages, batches and records that are too large | `bad_input::batches_that_are_too…` |
//! | 17, 18, 19 | lying numbers, wrong checksums, bombs | `bad_input::batches_that_are_not…` |
//! | 20 | offsets outside of the log | `bad_input::numbers…` |
//! | 21 | numbers without bounds | `bad_input::numbers…`, `…a_fetch_that…`, `admin::lists…` |
//! | 22 | deep nesting, unknown enums, text that is none | `bad_input::messages_that_are_none…` |
//! | 24, 25 | floods, slow and silent connections | `floods` |
//! | 26 | a reader that never opens its window | `subscribe::whoever_does_not_read…` |
//! | 27 | too many connections of one address | `floods::a_silent_connection…` |
//! | 31 | no leader here | `forward::a_call_that_is_not…` |
//! | 31 | no majority; a node that drains | `states::without…`; `records::a_wait_ends…` |
//! | 32 | a full disk | `states::a_full_disk…`, `states::leadership_leaves_a_full_disk` |
//! | 33 | records that cannot be read | `states::damage_is_read_from…`, `states::damage_without…` |
//! | 34, 35 | messages and snapshots between nodes | `../raft/messages` |
//! | 39 | configuration and directories | `../config`, `../storage/links` |
//! | | moves, transfers, drains, decommissions | `admin` |

#![allow(unreachable_pub, reason = "the modules of a test share what they need")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod bad_input;
mod filling;
mod floods;
mod forward;
#[allow(dead_code, reason = "the tests of abuse use the rest")]
mod http2;
mod records;
mod states;
mod streams;
mod subscribe;
mod support;
mod traces;
