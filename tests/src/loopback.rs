//! Loopback addresses that nobody else on this machine uses.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Sixteen addresses in a row. Held by listening on the last one, so that other processes' tests pass it by.
#[derive(Debug)]
pub struct Block {
    first: u32,
    _held: Option<TcpListener>,
}

/// Addresses of a block; the last marks it as taken.
const SIZE: u32 = 16;
const MARK_PORT: u16 = 24_199;
/// From 127.64.0.0 up to 127.192.0.0: far from 127.0.0.1, where everything else of a machine lives.
const BLOCKS: u32 = (128 << 16) / SIZE;

impl Block {
    /// The next free block.
    pub fn take() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..BLOCKS {
            let at = NEXT.fetch_add(1, Ordering::Relaxed);
            // Processes start far apart from each other.
            let index = std::process::id().wrapping_mul(2_654_435_761).wrapping_add(at) % BLOCKS;
            let first = u32::from(Ipv4Addr::new(127, 64, 0, 0)) + index * SIZE;
            if let Ok(held) = TcpListener::bind((Ipv4Addr::from(first + SIZE - 1), MARK_PORT)) {
                return Self { first, _held: Some(held) };
            }
        }
        panic!("no free block of loopback addresses");
    }

    /// The addresses of pods, in a network of the test's own: 10.77.0.1 is the test's.
    pub fn of_pods() -> Self {
        Self { first: u32::from(Ipv4Addr::new(10, 77, 0, 1)), _held: None }
    }

    /// One of its addresses, from 0 to 14.
    pub fn address(&self, at: usize) -> IpAddr {
        assert!(at < SIZE as usize - 1, "a block has {} addresses", SIZE - 1);
        Ipv4Addr::from(self.first + at as u32).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap() {
        let (one, two) = (Block::take(), Block::take());
        for at in 0..15 {
            assert!(one.address(at).is_loopback());
            assert!((0..15).all(|other| two.address(other) != one.address(at)));
        }
        assert!(TcpListener::bind((one.address(14).to_string().as_str(), MARK_PORT)).is_ok());
    }
}
