//! What the C library's allocator keeps of memory that nobody uses any more. A flood of connections leaves its heap full of holes,
//! and it gives back no more than what lies free at the heap's end: so holes are given back from here.
//!
//! The crate's only unsafe code: two calls into the C library, which the standard library has no other way to.
#![allow(unsafe_code)]

use std::time::Duration;

/// How often it is looked at. Both calls walk through what is free.
pub const EVERY: Duration = Duration::from_secs(5);

/// What may lie free without being worth a look, in bytes.
const WORTH: usize = 2 << 20;

/// What has been seen of the heap.
#[derive(Debug)]
pub struct Heap {
    /// The least that lay free since holes were last given back: those before have no pages any more.
    free: usize,
}

impl Heap {
    /// Looks at the heap for the first time.
    pub fn new() -> Self {
        Self { free: free() }
    }

    /// Gives holes back, if there are new ones that are worth it.
    pub fn give_back(&mut self) -> bool {
        let now = free();
        self.free = self.free.min(now);
        if now - self.free < WORTH {
            return false;
        }
        trim();
        self.free = free();
        true
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes that lie free in all of the allocator's arenas, whether or not there are pages behind them.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn free() -> usize {
    // SAFETY: takes nothing, and returns numbers; it locks each arena while it counts.
    unsafe { libc::mallinfo2() }.fordblks
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: touches only what is free, under the arenas' locks.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Another C library: it keeps to its own ways.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn free() -> usize {
    0
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    const PIECE: usize = 8 << 10;

    #[test]
    fn holes_are_given_back() {
        let mut heap = Heap::new();
        let start = resident();
        // As connections leave it: everything gone, but for a little here and there.
        let mut pieces: Vec<Vec<u8>> = (0..16_384).map(|_| vec![1; PIECE]).collect();
        let full = resident();
        assert!(full - start > 100 << 20, "{start} then {full}");
        let mut number = 0;
        pieces.retain(|_| {
            number += 1;
            number % 64 == 0
        });
        assert!(
            resident() > full - (32 << 20),
            "the allocator gives holes back by itself: this is not needed"
        );
        assert!(heap.give_back());
        let after = resident();
        assert!(after < full - (90 << 20), "{full} then {after}");
        assert!(pieces.iter().flatten().all(|byte| *byte == 1));
    }

    #[test]
    fn what_was_used_again_is_given_back_again() {
        let mut heap = Heap { free: usize::MAX };
        assert!(!heap.give_back(), "what has always been free is no hole");
        let mut used: Vec<Vec<u8>> = (0..4_096).map(|_| vec![1; PIECE]).collect();
        heap.give_back();
        // The last stays, or all before it would be the heap's end, which goes back by itself.
        used.drain(..4_095);
        assert!(heap.give_back());
        assert_eq!(used.len(), 1);
    }

    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").expect("there is /proc");
        let pages: usize = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
        pages * 4_096
    }
}
