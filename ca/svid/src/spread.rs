//! Numbers that spread load: how long to wait, which of two to take. Never keys, serials or nonces: those come from the
//! cryptographic library and the system.
//!
//! In a simulation they come from its seed, so that the same seed is the same run.

use std::cell::Cell;
use std::hash::{BuildHasher as _, RandomState};

thread_local! {
    static SEEDED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The next number. Nobody can be kept from guessing it, and nothing rests on that.
pub fn number() -> u64 {
    SEEDED.with(|seeded| match seeded.get() {
        // std's keys, which are the system's and others each time.
        None => RandomState::new().hash_one(0_u8),
        Some(state) => {
            let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            seeded.set(Some(state));
            mixed(state)
        }
    })
}

/// The next one as a number from 0 up to 1.
pub fn fraction() -> f64 {
    unit(number())
}

/// From here on this thread draws the numbers of `seed`, or again those that nobody knows before.
pub fn seed(seed: Option<u64>) {
    SEEDED.set(seed);
}

/// The upper 53 bits as a number from 0 up to 1.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
pub const fn unit(number: u64) -> f64 {
    (number >> 11) as f64 / (1_u64 << 53) as f64
}

/// SplitMix64's output for a state.
pub const fn mixed(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_nothing_else_does() {
        let draw = || [number(), number(), number()];
        let unknown = draw();
        assert_ne!(unknown, draw());
        seed(Some(7));
        let known = draw();
        seed(Some(7));
        assert_eq!(known, draw());
        assert_ne!(known, draw());
        seed(None);
        assert_ne!(known, draw());
    }

    #[test]
    fn fractions_fill_the_unit() {
        let all: Vec<f64> = (0..1_000).map(|_| fraction()).collect();
        assert!(all.iter().all(|one| (0.0..1.0).contains(one)));
        for tenth in 0..10 {
            let low = f64::from(tenth) / 10.0;
            assert!(all.iter().any(|one| (low..low + 0.1).contains(one)), "none from {low} on");
        }
    }
}
