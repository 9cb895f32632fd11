//! How many connections there may be, from the descriptors that this process may open.
//!
//! A stranger must not be able to take the last descriptor: the store could not write, and nobody could ask `/ready` why. So
//! whoever has shown no certificate gets a part of the places, each address a part of that, and the rest stays for workloads,
//! the other listeners and the store.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections to the identity API, however many descriptors there are.
const CONNECTIONS: usize = 10_000;
/// Handshakes at a time: each costs a signature, and two processors do some thousands a second.
const HANDSHAKES: usize = 512;
/// Connections to the health, the mesh admin and the bundle endpoint, each: probes and a scraper or two.
const SITE: usize = 128;
/// Descriptors of the store, the listeners, the runtime, and room for tools such as a debugger.
const OURS: usize = 200;

/// How many of what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Limits {
    /// Connections to the identity API, with those still in their handshake.
    pub(crate) connections: usize,
    /// Unfinished handshakes.
    pub(crate) handshakes: Share,
    /// Connections whose peer has shown no certificate.
    pub(crate) strangers: Share,
    /// Connections to the health endpoint, and as many to mesh admin and to the bundle endpoint.
    pub(crate) site: Share,
}

/// A number for all, of which one address gets a part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Share {
    pub(crate) all: usize,
    pub(crate) per_source: usize,
}

impl Limits {
    /// For a process that may have `files` open.
    pub(crate) fn of(files: usize) -> Self {
        // Half, as for the sidecar; where that leaves too little, an eighth still leaves most of a small limit to the rest.
        let connections = (files / 2).saturating_sub(OURS).max(files / 8).clamp(8, CONNECTIONS);
        // A handshake lasts five seconds at most, so that a flood of them takes half the places only as long as it goes on.
        let handshakes = HANDSHAKES.min(connections / 2);
        // A first certificate takes a second; a quarter of the places is plenty even when a whole mesh joins at once.
        let strangers = connections / 4;
        let site = SITE.min(files / 16).max(4);
        Self {
            connections,
            // Many honest sidecars may stand behind one address: what one gets is bounded, not small.
            handshakes: Share { all: handshakes, per_source: handshakes * 3 / 4 },
            strangers: Share { all: strangers, per_source: strangers.div_ceil(2) },
            site: Share { all: site, per_source: site / 2 },
        }
    }

    /// For this process.
    pub(crate) fn of_this_process() -> Self {
        Self::of(nofile())
    }
}

/// Places of one kind.
pub(crate) struct Quota {
    free: Arc<Semaphore>,
    per_source: usize,
    by_source: Mutex<HashMap<IpAddr, usize>>,
}

/// One place; dropping it frees it.
pub(crate) struct Place {
    _place: OwnedSemaphorePermit,
    quota: Arc<Quota>,
    source: IpAddr,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Full {
    /// All are taken.
    All,
    /// This address has its part.
    Source,
}

impl Quota {
    pub(crate) fn new(share: Share) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(share.all));
        Arc::new(Self { free, per_source: share.per_source, by_source: Mutex::default() })
    }

    /// A place for `source`, if there is one at once.
    pub(crate) fn take(self: &Arc<Self>, source: IpAddr) -> Result<Place, Full> {
        let place = self.free.clone().try_acquire_owned().map_err(|_| Full::All)?;
        // No larger than the places that are taken: an entry goes with the last of its address.
        let mut by_source = self.by_source.lock();
        let taken = by_source.entry(source).or_default();
        if *taken >= self.per_source {
            return Err(Full::Source);
        }
        *taken += 1;
        drop(by_source);
        Ok(Place { _place: place, quota: self.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_source = self.quota.by_source.lock();
        if let Some(taken) = by_source.get_mut(&self.source) {
            *taken -= 1;
            if *taken == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

/// The soft limit of open files, as the kernel states it.
fn nofile() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_limit_the_rest_of_the_process_keeps_its_descriptors() {
        assert!(nofile() >= 64);
        for files in [64, 128, 256, 512, 1_024, 4_096, 20_000, 1_048_576, usize::MAX] {
            let limits = Limits::of(files);
            // The store, three listeners, the runtime and the standard streams take about twenty.
            assert!(limits.connections + 3 * limits.site.all + 24 <= files, "{files}: {limits:?}");
            let unproven = limits.handshakes.all + limits.strangers.all;
            assert!(unproven <= limits.connections * 3 / 4, "{files}: {limits:?}");
            for share in [limits.handshakes, limits.strangers, limits.site] {
                assert!(share.per_source >= 1 && share.per_source <= share.all, "{files}: {limits:?}");
            }
        }
        assert_eq!(Limits::of(1_024).connections, 312);
        assert_eq!(Limits::of(1_048_576).connections, 10_000);
        assert_eq!(Limits::of(1_048_576).handshakes, Share { all: 512, per_source: 384 });
    }

    #[test]
    fn one_address_gets_its_part_and_gives_it_back() {
        let quota = Quota::new(Share { all: 3, per_source: 2 });
        let [one, other, third] = [1, 2, 3].map(|n| IpAddr::from([192, 0, 2, n]));
        let held = [quota.take(one).ok().unwrap(), quota.take(one).ok().unwrap()];
        assert_eq!(quota.take(one).err(), Some(Full::Source));
        let last = quota.take(other).ok().unwrap();
        assert_eq!(quota.take(third).err(), Some(Full::All));
        drop((held, last));
        assert!(quota.by_source.lock().is_empty());
        quota.take(one).ok().unwrap();
    }
}
