//! Work on many files at once, with the same result as one after the other.

use std::num::NonZero;
use std::thread;

/// More would cost more memory than they save time.
const MAX_THREADS: usize = 8;
/// A thread takes tens of microseconds to start; a KiB of YAML about as long to read.
const WORTH_A_THREAD: usize = 64 << 10;

/// Does `work` on every item and returns the results in the items' order. `weight` says how much work one is, in bytes.
pub(super) fn map<T: Send, R: Send>(
    items: Vec<T>,
    weight: impl Fn(&T) -> usize,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let total: usize = items.iter().map(&weight).sum();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(MAX_THREADS).min(total / WORTH_A_THREAD);
    if threads < 2 {
        return items.into_iter().map(work).collect();
    }
    let mut shares: Vec<Vec<T>> = (0..threads).map(|_| Vec::new()).collect();
    let mut before = 0;
    for item in items {
        let at = (before * threads / total).min(threads - 1);
        before += weight(&item);
        shares[at].push(item);
    }
    let work = &work;
    thread::scope(|scope| {
        let mut rest = shares.split_off(1);
        let started: Vec<_> = rest
            .iter_mut()
            .map(|share| {
                let share = std::mem::take(share);
                scope.spawn(move || share.into_iter().map(work).collect::<Vec<R>>())
            })
            .collect();
        let own = shares.into_iter().flatten().map(work);
        let mut out: Vec<R> = own.collect();
        for thread in started {
            match thread.join() {
                Ok(results) => out.extend(results),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..1_000).collect();
        let expected: Vec<usize> = items.iter().map(|n| n * 2).collect();
        for weight in [0, 1, WORTH_A_THREAD] {
            assert_eq!(map(items.clone(), |_| weight, |n| n * 2), expected);
        }
        assert_eq!(map(items, |n| if *n == 3 { 100 * WORTH_A_THREAD } else { 0 }, |n| n * 2), expected);
    }
}
