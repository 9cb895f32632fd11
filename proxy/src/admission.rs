//! How many requests and tunnels run at a time: in all, and towards one Service, counted over all workers.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use postern_policy::ServiceName;

use crate::error::{Error, Reason, Side};
use crate::limits::Limits;
use crate::sidecar::Sidecar;

/// What is in flight.
#[derive(Debug, Default)]
pub struct Admission {
    all: AtomicUsize,
    /// Only Services that something runs towards.
    destinations: Mutex<HashMap<ServiceName, usize>>,
}

/// One request in flight; it has left when this is dropped.
pub struct Admitted {
    sidecar: Arc<Sidecar>,
    destination: Option<ServiceName>,
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted").field("destination", &self.destination).finish_non_exhaustive()
    }
}

impl Sidecar {
    /// A place among the requests in flight, if one is free.
    pub fn admit(self: &Arc<Self>, limits: &Limits) -> Result<Admitted, Error> {
        let admitted = Admitted { sidecar: Arc::clone(self), destination: None };
        // Counted first: the guard above takes back what is refused below.
        let before = self.admission.all.fetch_add(1, Ordering::Relaxed);
        if !self.pressure.allows_streams(limits) {
            self.metrics.limit("memory");
            return Err(Error::unsent(Side::Us, Reason::Overloaded, "memory is nearly full"));
        }
        if before >= limits.in_flight {
            self.metrics.limit("in_flight");
            return Err(Error::unsent(Side::Us, Reason::Overloaded, "limits.inFlight is reached"));
        }
        Ok(admitted)
    }

    /// The same, towards `destination`: one slow Service must not take the places of all others.
    pub fn admit_to(self: &Arc<Self>, limits: &Limits, destination: &ServiceName) -> Result<Admitted, Error> {
        let mut admitted = self.admit(limits)?;
        let mut destinations = self.admission.destinations.lock();
        let running = destinations.get(destination).copied().unwrap_or(0);
        if running >= limits.in_flight_per_destination {
            self.metrics.limit("in_flight_per_destination");
            let detail = format!("limits.inFlightPerDestination is reached for {destination}");
            return Err(Error::unsent(Side::Us, Reason::Overloaded, detail));
        }
        destinations.insert(destination.clone(), running + 1);
        admitted.destination = Some(destination.clone());
        Ok(admitted)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let admission = &self.sidecar.admission;
        admission.all.fetch_sub(1, Ordering::Relaxed);
        let Some(destination) = &self.destination else { return };
        let mut destinations = admission.destinations.lock();
        if let Some(running) = destinations.get_mut(destination) {
            *running -= 1;
            if *running == 0 {
                destinations.remove(destination);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Retry;
    use crate::testing;

    fn name(text: &str) -> ServiceName {
        let (namespace, name) = text.split_once('/').unwrap();
        ServiceName { namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn one_destination_has_one_count_and_leaves_room_for_others() {
        let sidecar = testing::sidecar("inFlight: '5', inFlightPerDestination: '2'");
        let limits = sidecar.snapshots.limits();
        let (slow, other) = (name("shop/slow"), name("shop/other"));
        let to = |service| sidecar.admit_to(&limits, service);
        let held = [to(&slow).unwrap(), to(&slow).unwrap()];
        let error = to(&slow).unwrap_err();
        assert_eq!(error.reason, Reason::Overloaded);
        assert!(error.detail.contains("shop/slow"), "{error}");
        let others = [to(&other).unwrap(), to(&other).unwrap()];
        // What was refused took no place: one is left of five.
        let last = sidecar.admit(&limits).unwrap();
        assert!(sidecar.admit(&limits).unwrap_err().detail.contains("limits.inFlight "));
        let page = sidecar.metrics.render();
        assert!(page.contains("limit=\"in_flight_per_destination\"} 1"), "{page}");
        drop((held, last));
        to(&slow).unwrap();
        drop(others);
        assert!(sidecar.admission.destinations.lock().is_empty(), "a Service that is gone costs nothing");
    }

    #[test]
    fn what_memory_has_no_room_for_does_not_begin() {
        let sidecar = testing::sidecar("");
        let limits = sidecar.snapshots.limits();
        for (memory, is_room) in [(84, true), (85, false), (100, false), (0, true)] {
            sidecar.pressure.set(memory, 0);
            let admitted = sidecar.admit_to(&limits, &name("shop/orders"));
            assert_eq!(admitted.is_ok(), is_room, "{memory} %");
            if let Err(error) = admitted {
                assert_eq!((error.reason, error.retry), (Reason::Overloaded, Retry::Unsent));
            }
        }
        let page = sidecar.metrics.render();
        assert!(page.contains("limit=\"memory\"} 2"), "{page}");
        assert_eq!(sidecar.admission.all.load(Ordering::Relaxed), 0, "what was refused takes no place");
    }
}
