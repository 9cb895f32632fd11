//! Lines of the log that callers bring about: bounded, however often they call.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// In each second.
const MOST: u32 = 10;

/// Lets so many lines a second through.
#[derive(Debug)]
pub(super) struct Lines(Mutex<Second>);

#[derive(Debug)]
struct Second {
    began: Instant,
    written: u32,
    left_out: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self(Mutex::new(Second { began: Instant::now(), written: 0, left_out: 0 }))
    }
}

impl Lines {
    /// Whether a line may be written now, and how many have been left out since the last one.
    pub(super) fn next(&self) -> Option<u64> {
        let mut second = self.0.lock();
        if second.began.elapsed() >= Duration::from_secs(1) {
            (second.began, second.written) = (Instant::now(), 0);
        }
        if second.written == MOST {
            second.left_out += 1;
            return None;
        }
        second.written += 1;
        Some(std::mem::take(&mut second.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_a_second_and_the_next_one_tells_of_the_others() {
        let lines = Lines::default();
        let written = (0..1_000).filter(|_| lines.next() == Some(0)).count();
        assert_eq!(written, 10);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((lines.next(), lines.next()), (Some(990), Some(0)));
    }
}
