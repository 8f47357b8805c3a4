//! Work that waits for locks or for the kernel.

use anyhow::Context;

/// Runs such work aside, so that the watches go on meanwhile.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a task was lost")
}
