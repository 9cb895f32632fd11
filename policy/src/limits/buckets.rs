//! Where a limit's buckets live: few, or one for each key and then at most so many.
//!
//! A bucket that is full again equals one that is not there, so those are forgotten, and forgetting costs nobody
//! anything. When all places are taken by buckets that are not full, a new key shares one bucket with all that found no
//! place. The other ways out are worse: no limit for the newcomer lets whoever can make up keys (any caller, if the key is
//! a header field) out of the limit; pushing out a bucket that is in use gives its caller a full burst again, as often as
//! somebody else makes up keys; and a map without an end is the memory of the machine.
//!
//! Of a key only a keyed hash is kept, 64 bits of SipHash under a secret of this limit's own: keys are as long as
//! callers make them, and may be somebody's token. Two keys that meet in it (one pair in 2^64) share a bucket, which
//! makes the limit stricter and never wider.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::meter::Quota;

/// A power of two. A lock is held while one bucket is looked up and stepped, which takes less than 100 ns, or while one
/// shard is swept; never two at once, and never across anything else.
const SHARDS: usize = 64;

/// The buckets of one limit.
#[derive(Debug)]
pub(crate) struct Buckets {
    /// One for each quota: the only one of a limit without a key, else the one that is shared when no place is left.
    shared: Box<[AtomicU64]>,
    keyed: Option<Keyed>,
}

/// Which bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    /// The number of its quota.
    pub(crate) quota: usize,
    /// What is kept of its key.
    pub(crate) tag: Option<u64>,
}

/// Where one request was taken from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Taken {
    Shared,
    Own,
}

impl Buckets {
    /// For a limit with so many quotas; `most` is there if it has a key.
    pub(crate) fn new(quotas: usize, most: Option<usize>) -> Self {
        Self { shared: (0..quotas).map(|_| AtomicU64::new(0)).collect(), keyed: most.map(Keyed::new) }
    }

    /// The secret under which keys are hashed, of a limit that has them.
    pub(crate) fn secret(&self) -> Option<&RandomState> {
        self.keyed.as_ref().map(|keyed| &keyed.secret)
    }

    /// Buckets of keys that are held, full again or not.
    pub(crate) fn keys(&self) -> usize {
        self.keyed.as_ref().map_or(0, |keyed| keyed.live.load(Ordering::Relaxed))
    }

    /// Whether one more request would pass; nothing is taken.
    pub(crate) fn peek(&self, at: At, quota: &Quota, now: u64) -> Result<(), Duration> {
        if let (Some(keyed), Some(tag)) = (&self.keyed, at.tag) {
            let own = keyed.shard(tag).places.lock().get(&tag).copied();
            match own {
                Some(until) => return quota.step(until, now).map(drop),
                // A bucket that is not there is full.
                None if keyed.has_room(now) => return Ok(()),
                None => {}
            }
        }
        quota.step(self.of(at).map_or(0, |shared| shared.load(Ordering::Relaxed)), now).map(drop)
    }

    /// Takes one request.
    pub(crate) fn take(&self, at: At, quota: &Quota, now: u64) -> Result<Taken, Duration> {
        if let (Some(keyed), Some(tag)) = (&self.keyed, at.tag)
            && let Some(taken) = keyed.take(tag, quota, now)
        {
            return taken.map(|()| Taken::Own);
        }
        let Some(shared) = self.of(at) else { return Ok(Taken::Shared) };
        let mut until = shared.load(Ordering::Relaxed);
        loop {
            let next = quota.step(until, now)?;
            match shared.compare_exchange_weak(until, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(Taken::Shared),
                Err(other) => until = other,
            }
        }
    }

    /// Gives back what was taken.
    pub(crate) fn give_back(&self, at: At, taken: Taken, quota: &Quota) {
        match (taken, &self.keyed, at.tag) {
            (Taken::Own, Some(keyed), Some(tag)) => keyed.give_back(tag, quota),
            _ => {
                if let Some(shared) = self.of(at) {
                    let back = |until| Some(quota.back(until));
                    let _ = shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
                }
            }
        }
    }

    /// Forgets buckets that are full again.
    pub(crate) fn sweep(&self, now: u64) {
        if let Some(keyed) = &self.keyed {
            keyed.sweep(now);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.sweep(u64::MAX);
        for shared in &self.shared {
            shared.store(0, Ordering::Relaxed);
        }
    }

    fn of(&self, at: At) -> Option<&AtomicU64> {
        self.shared.get(at.quota)
    }
}

/// Buckets by key.
#[derive(Debug)]
struct Keyed {
    most: usize,
    live: AtomicUsize,
    secret: RandomState,
    shards: Box<[Shard]>,
}

#[derive(Debug)]
struct Shard {
    /// When each bucket is full again.
    places: Mutex<HashMap<u64, u64, BuildHasherDefault<AsItIs>>>,
    /// None of them is full before this: a look at it spares most sweeps.
    earliest: AtomicU64,
}

impl Keyed {
    fn new(most: usize) -> Self {
        let shard = || Shard { places: Mutex::default(), earliest: AtomicU64::new(u64::MAX) };
        Self {
            most,
            live: AtomicUsize::new(0),
            secret: RandomState::new(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
        }
    }

    fn shard(&self, tag: u64) -> &Shard {
        // The map itself goes by the lowest and the highest bits.
        &self.shards[(tag >> 32) as usize % SHARDS]
    }

    /// `None` if there is no place for this key.
    fn take(&self, tag: u64, quota: &Quota, now: u64) -> Option<Result<(), Duration>> {
        for is_second in [false, true] {
            let shard = self.shard(tag);
            let mut places = shard.places.lock();
            if let Some(until) = places.get_mut(&tag) {
                return Some(quota.step(*until, now).map(|next| *until = next));
            }
            let one_more = |live| (live < self.most).then_some(live + 1);
            if self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
                // Cannot be refused: a burst is at least one.
                let until = quota.step(0, now).unwrap_or(now);
                places.insert(tag, until);
                shard.earliest.fetch_min(until, Ordering::Relaxed);
                return Some(Ok(()));
            }
            drop(places);
            if is_second || !self.sweep(now) {
                break;
            }
        }
        None
    }

    fn give_back(&self, tag: u64, quota: &Quota) {
        let shard = self.shard(tag);
        if let Some(until) = shard.places.lock().get_mut(&tag) {
            *until = quota.back(*until);
            shard.earliest.fetch_min(*until, Ordering::Relaxed);
        }
    }

    fn has_room(&self, now: u64) -> bool {
        self.live.load(Ordering::Relaxed) < self.most || self.sweep(now)
    }

    /// Forgets what is full; whether there was any. A shard is looked through only when something in it may be full by
    /// now, and then once: a caller who makes up keys costs a shard's length for each request that changes one of its
    /// buckets, and no more.
    fn sweep(&self, now: u64) -> bool {
        let mut forgotten = 0;
        for shard in self.shards.iter().filter(|shard| shard.earliest.load(Ordering::Relaxed) <= now) {
            let mut places = shard.places.lock();
            let before = places.len();
            let mut earliest = u64::MAX;
            places.retain(|_, until| {
                let stays = *until > now;
                if stays {
                    earliest = earliest.min(*until);
                }
                stays
            });
            shard.earliest.store(earliest, Ordering::Relaxed);
            forgotten += before - places.len();
            // What a flood needed is given back once it is over.
            if places.len() * 8 < places.capacity() {
                let len = places.len();
                places.shrink_to(len * 2);
            }
        }
        self.live.fetch_sub(forgotten, Ordering::Relaxed);
        forgotten > 0
    }
}

/// The keys are hashes already, under a secret.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, tag: u64) {
        self.0 = tag;
    }
}

#[cfg(test)]
#[path = "buckets_tests.rs"]
mod tests;
