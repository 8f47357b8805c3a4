//! Locks of plain data.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A panic elsewhere doesn't spoil plain data, so a poisoned lock is as good as any other.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
