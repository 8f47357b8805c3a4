//! The fence around a leader's writes: spec, conditions, NICs, route tables and public addresses alike. Who
//! may lead no more begins none, and goes on with none.
//!
//! A check before a write wouldn't do. The API server may put the write off ("429, again in 8 seconds"), and
//! a connection takes a while to make; a process that is paused meanwhile, beyond its Lease, would wake and
//! send it. So the check comes before each step of the write. No check calls back a write that is on the wire
//! by then. `resourceVersion` and ETag stop that where there is one, see [`crate::leader`].

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use tracing::warn;

/// Does a write for as long as it `may` be done. After that it waits for ever: the process is about to stand
/// by, and drops it.
pub async fn only_while<T>(may: impl Fn() -> bool, what: &str, write: impl Future<Output = T>) -> T {
    let mut write = pin!(write);
    let mut is_reported = false;
    poll_fn(|context| {
        if may() {
            return write.as_mut().poll(context);
        }
        if !std::mem::replace(&mut is_reported, true) {
            warn!(what, "not written: another may lead by now");
        }
        Poll::Pending
    })
    .await
}
