//! What a caller may cost before anything is computed for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A bucket per key, refilled with time. The table is bounded: when it is full of active keys, further ones share a
/// bucket, so that a flood from many addresses costs strangers their share and not us our memory.
pub struct Buckets<K> {
    rate: f64,
    burst: f64,
    most: usize,
    table: Mutex<Table<K>>,
}

struct Table<K> {
    buckets: HashMap<K, Bucket>,
    shared: Bucket,
    /// So many keys, and those that are idle are let go of.
    sweep_at: usize,
}

/// Keys below which nobody is looked through.
const FEW: usize = 256;

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Option<Instant>,
}

/// Come back after this long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RetryAfter(pub Duration);

impl<K: Eq + Hash> Buckets<K> {
    /// `rate` a second on average, `burst` at once, for at most `most` keys.
    pub fn new(rate: u32, burst: u32, most: usize) -> Self {
        let full = Bucket { tokens: f64::from(burst), at: None };
        let table = Table { buckets: HashMap::new(), shared: full, sweep_at: FEW.min(most) };
        Self { rate: f64::from(rate), burst: f64::from(burst), most, table: Mutex::new(table) }
    }

    /// Takes one.
    pub fn take(&self, key: K, now: Instant) -> Result<(), RetryAfter> {
        let mut table = self.table.lock();
        let Table { buckets, shared, sweep_at } = &mut *table;
        if buckets.len() >= *sweep_at && !buckets.contains_key(&key) {
            // A bucket that is full again says the same as none. Twice what is left is let come before the next look: the work is
            // spread, and the table follows those who are there.
            buckets.retain(|_, bucket| self.refilled(*bucket, now) < self.burst);
            *sweep_at = (buckets.len() * 2).clamp(FEW.min(self.most), self.most);
            if buckets.len() >= self.most {
                return self.take_from(shared, now);
            }
            buckets.shrink_to(*sweep_at);
        }
        let bucket = buckets.entry(key).or_insert(Bucket { tokens: self.burst, at: None });
        self.take_from(bucket, now)
    }

    fn refilled(&self, bucket: Bucket, now: Instant) -> f64 {
        let passed = bucket.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        passed.mul_add(self.rate, bucket.tokens).min(self.burst)
    }

    fn take_from(&self, bucket: &mut Bucket, now: Instant) -> Result<(), RetryAfter> {
        let tokens = self.refilled(*bucket, now);
        bucket.at = Some(now);
        if tokens >= 1.0 {
            bucket.tokens = tokens - 1.0;
            return Ok(());
        }
        bucket.tokens = tokens;
        Err(RetryAfter(Duration::from_secs_f64((1.0 - tokens) / self.rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate() {
        let buckets = Buckets::new(20, 50, 10);
        let start = Instant::now();
        for _ in 0..50 {
            assert_eq!(buckets.take("a", start), Ok(()));
        }
        let RetryAfter(wait) = buckets.take("a", start).unwrap_err();
        assert!(wait <= Duration::from_millis(50) && wait > Duration::from_millis(40), "{wait:?}");
        assert_eq!(buckets.take("b", start), Ok(()), "each key has its own");
        assert_eq!(buckets.take("a", start + Duration::from_millis(51)), Ok(()));
        assert!(buckets.take("a", start + Duration::from_millis(52)).is_err());
        for _ in 0..50 {
            assert_eq!(buckets.take("a", start + Duration::from_secs(60)), Ok(()));
        }
        assert!(buckets.take("a", start + Duration::from_secs(60)).is_err(), "never more than the burst");
    }

    /// Workloads that come and go leave nothing behind.
    #[test]
    fn the_table_follows_those_who_are_there() {
        let buckets = Buckets::new(5, 20, 16_384);
        let start = Instant::now();
        for key in 0..100_000_u32 {
            buckets.take(key, start + Duration::from_millis(18) * key).unwrap();
            assert!(buckets.table.lock().buckets.len() <= FEW);
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let buckets = Buckets::new(1, 2, 3);
        let start = Instant::now();
        for key in 0..3 {
            assert_eq!(buckets.take(key, start), Ok(()));
        }
        // Full of active keys: the rest share one bucket of two.
        assert_eq!(buckets.take(3, start), Ok(()));
        assert_eq!(buckets.take(4, start), Ok(()));
        assert!(buckets.take(5, start).is_err());
        assert_eq!(buckets.table.lock().buckets.len(), 3);
        // Once the old ones are idle, there is room.
        assert_eq!(buckets.take(5, start + Duration::from_secs(5)), Ok(()));
        assert_eq!(buckets.table.lock().buckets.len(), 1);
    }
}
