//! What was asked at the workload's socket, and what became of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};

/// Methods by the name that is counted; what has no other name is the last.
const METHODS: [&str; 10] = [
    "FetchX509SVID",
    "FetchX509Bundles",
    "FetchJWTSVID",
    "FetchJWTBundles",
    "ValidateJWTSVID",
    "StreamSecrets",
    "FetchSecrets",
    "DeltaSecrets",
    CONNECT,
    "other",
];
/// Not a method: a connection that was closed before it could ask.
pub(super) const CONNECT: &str = "connect";

/// gRPC's codes as far as this server gives them.
const RESULTS: [(Code, &str); 9] = [
    (Code::Ok, "ok"),
    (Code::DeadlineExceeded, "deadline_exceeded"),
    (Code::InvalidArgument, "invalid_argument"),
    (Code::PermissionDenied, "permission_denied"),
    (Code::ResourceExhausted, "resource_exhausted"),
    (Code::Unavailable, "unavailable"),
    (Code::Unimplemented, "unimplemented"),
    // An SDS client that did not take what it got.
    (Code::Aborted, "refused_by_client"),
    (Code::Unknown, "other"),
];

/// Counts since the start. Only ever added to, but for what is open.
#[derive(Debug, Default)]
pub struct Counts {
    requests: [[AtomicU64; RESULTS.len()]; METHODS.len()],
    connections: AtomicU64,
    streams: AtomicU64,
}

impl Counts {
    /// Every method with every result, and how often.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        METHODS.iter().zip(&self.requests).flat_map(|(method, results)| {
            RESULTS
                .iter()
                .zip(results)
                .map(|((_, result), count)| (*method, *result, count.load(Ordering::Relaxed)))
        })
    }

    /// How often a result was given, whatever was asked.
    pub fn with_result(&self, result: &str) -> u64 {
        self.requests().filter(|(_, one, _)| *one == result).map(|(_, _, count)| count).sum()
    }

    /// Connections that are open.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Streams that are open.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, method: &str, code: Code) {
        let method = METHODS.iter().position(|one| *one == method).unwrap_or(METHODS.len() - 1);
        let result = RESULTS.iter().position(|(one, _)| *one == code).unwrap_or(RESULTS.len() - 1);
        self.requests[method][result].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connected(self: &Arc<Self>) -> Open {
        Open::of(self, |counts| &counts.connections)
    }
}

/// Something that is counted while it is held.
pub(super) struct Open {
    counts: Arc<Counts>,
    of: fn(&Counts) -> &AtomicU64,
}

impl Open {
    fn of(counts: &Arc<Counts>, of: fn(&Counts) -> &AtomicU64) -> Self {
        of(counts).fetch_add(1, Ordering::Relaxed);
        Self { counts: counts.clone(), of }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        (self.of)(&self.counts).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Room for the streams of all connections.
pub(super) struct Streams {
    room: Arc<Semaphore>,
    counts: Arc<Counts>,
}

/// A stream's place among all, as long as it is held.
pub(super) struct Place {
    _open: Open,
    _permit: OwnedSemaphorePermit,
}

impl Streams {
    pub(super) fn new(room: usize, counts: Arc<Counts>) -> Self {
        Self { room: Arc::new(Semaphore::new(room)), counts }
    }

    pub(super) fn enter(&self) -> Result<Place, Status> {
        let permit = self.room.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("too many streams are open at this socket: close some, or share one")
        })?;
        Ok(Place { _open: Open::of(&self.counts, |counts| &counts.streams), _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_and_what_was_asked() {
        let counts = Arc::new(Counts::default());
        counts.count("FetchX509SVID", Code::Ok);
        counts.count("/../\n", Code::DataLoss);
        let told: Vec<_> = counts.requests().filter(|(_, _, count)| *count > 0).collect();
        assert_eq!(told, [("FetchX509SVID", "ok", 1), ("other", "other", 1)]);

        let streams = Streams::new(1, counts.clone());
        let place = streams.enter().unwrap_or_else(|status| panic!("{status}"));
        assert_eq!(streams.enter().err().map(|status| status.code()), Some(Code::ResourceExhausted));
        assert_eq!(counts.streams(), 1);
        drop(place);
        assert_eq!(counts.streams(), 0);
        assert!(streams.enter().is_ok());
    }
}
