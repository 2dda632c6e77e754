//! Quipu: a partitioned, replicated, append-only log server.
