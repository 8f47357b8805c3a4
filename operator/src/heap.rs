//! How many bytes of heap a piece of work keeps. The allocator of the unit tests counts them for each thread,
//! as glibc's allocator rounds them up.

#![allow(unsafe_code)] // an allocator can't be written otherwise; this one hands each call on

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Bytes now, and at most since they were last measured.
    static NOW: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// A piece of the heap has a word beside it, is a multiple of 16 bytes, and has 32 at least.
fn taken(size: usize) -> isize {
    ((size + 8).next_multiple_of(16)).max(32) as isize
}

fn count(bytes: isize) {
    let _ = NOW.try_with(|now| {
        let (kept, most) = now.get();
        now.set((kept + bytes, most.max(kept + bytes)));
    });
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(taken(layout.size()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-taken(layout.size()));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(taken(size) - taken(layout.size()));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What this thread has in addition after the work, and what it had in addition at most.
pub fn kept(work: impl FnOnce()) -> (usize, usize) {
    let (before, _) = NOW.get();
    NOW.set((before, before));
    work();
    let (after, most) = NOW.get();
    ((after - before).max(0) as usize, (most - before).max(0) as usize)
}

#[test]
fn what_is_kept_counts_and_what_is_dropped_counts_only_at_most() {
    let mut all = vec![];
    let (now, most) = kept(|| {
        drop(vec![0_u8; 100_000]);
        all = vec![0_u8; 1000];
    });
    assert_eq!((now, most, all.len()), (1008, 100_016, 1000));
}
