//! The `quipu` command.

use std::process::ExitCode;

/// Gives back to the system what a burst took. glibc's allocator keeps it for as long as the
/// process lives: batches are allocated by one thread and freed by another.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    quipu::cli::main()
}
