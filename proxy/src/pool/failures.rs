//! Dials to one endpoint that failed: told to whoever waited for them, and reason enough to ask the other endpoints first.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Reason, Side};

/// How long an endpoint rests after its first failure. Twice as long after each further one in a row, and at most `LONGEST`:
/// one that is back is found out within that.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(4);

/// Failures of one slot.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// All there were: who waited for a dial sees by it that this one failed.
    count: u64,
    last: Option<(Reason, String)>,
    in_a_row: u32,
    /// Until when others are asked first.
    until: Option<Instant>,
}

impl Failures {
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// The error of a dial that ended since there were `count` failures.
    pub(super) fn since(&self, count: u64) -> Option<Error> {
        let (reason, detail) = self.last.as_ref().filter(|_| self.count > count)?;
        Some(Error::unsent(Side::Remote, *reason, detail.clone()))
    }

    pub(super) fn failed(&mut self, error: &Error) {
        self.count += 1;
        self.last = Some((error.reason, error.detail.clone()));
        // What is wrong with ourselves says nothing about the endpoint.
        if error.side == Side::Remote && error.reason != Reason::Internal {
            self.until = Some(Instant::now() + LONGEST.min(FIRST * 2_u32.pow(self.in_a_row.min(8))));
            self.in_a_row += 1;
        }
    }

    pub(super) fn succeeded(&mut self) {
        (self.in_a_row, self.until) = (0, None);
    }

    /// Whether the next failure would be one more in a row: it rests, or has rested lately.
    pub(super) fn are_recent(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until + LONGEST)
    }

    /// Whether others are asked first: it failed lately, or it did and somebody is finding out whether it is back.
    pub(super) fn is_resting(&self, is_dialed: bool) -> bool {
        self.until.is_some_and(|until| is_dialed || Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use postern_policy::{Endpoint, Transport};

    use super::*;
    use crate::pool::{Kind, MeshPool};

    #[tokio::test(start_paused = true)]
    async fn it_rests_longer_each_time_but_never_long() {
        let unreachable = Error::unsent(Side::Remote, Reason::RemoteUnreachable, "");
        let mut failures = Failures::default();
        assert!(!failures.is_resting(true), "a first dial keeps nobody away");
        for wanted in [250, 500, 1_000, 2_000, 4_000, 4_000, 4_000] {
            failures.failed(&unreachable);
            tokio::time::advance(Duration::from_millis(wanted - 1)).await;
            assert!(failures.is_resting(false), "{wanted} ms");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!failures.is_resting(false), "{wanted} ms");
            assert!(failures.is_resting(true), "one of all finds out");
        }
        failures.succeeded();
        assert!(!failures.is_resting(true));
        failures.failed(&unreachable);
        tokio::time::advance(FIRST).await;
        assert!(!failures.is_resting(false), "it begins anew");
        assert!(failures.since(7).is_some() && failures.since(8).is_none());
    }

    /// Every half second the pool lets go of what is of no use.
    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_rests_is_not_forgotten() {
        let (pool, kind) = (MeshPool::default(), Kind::Http);
        let endpoint = Endpoint {
            address: [10, 0, 0, 1].into(),
            mesh_port: 24_143,
            identities: Vec::new(),
            transport: Transport::Postern,
        };
        let unreachable = Error::unsent(Side::Remote, Reason::RemoteUnreachable, "");
        for wanted in [250, 500, 1_000, 2_000, 4_000, 4_000] {
            pool.slot(&endpoint, kind).failures.lock().failed(&unreachable);
            tokio::time::advance(Duration::from_millis(wanted - 1)).await;
            pool.sweep(0);
            assert!(pool.is_resting(&endpoint, kind), "{wanted} ms");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!pool.is_resting(&endpoint, kind), "{wanted} ms");
        }
        tokio::time::advance(LONGEST).await;
        pool.sweep(0);
        assert!(pool.slots.lock().is_empty(), "but for ever it is not remembered");
    }

    #[test]
    fn our_own_defects_are_not_its_failures() {
        let mut failures = Failures::default();
        failures.failed(&Error::unsent(Side::Remote, Reason::Internal, ""));
        assert!(!failures.is_resting(true) && failures.count() == 1);
    }
}
