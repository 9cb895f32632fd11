//! What replicas of a control plane share, in etcd: [`Shared`] for its API version 3 (3.4 or newer).
//!
//! An entry is a key below the prefix, its version etcd's `mod_revision`; a swap is one transaction. A lease is a key that is
//! attached to an etcd lease and goes with it; its fence is that key's `create_revision`, which fenced transactions compare. So whoever
//! was stopped past its lease is refused by etcd itself, whatever it believes. A mark below the prefix names the trust domain; each
//! transaction compares it too.
//!
//! ```text
//! <prefix>/trust-domain       whose all of this is
//! <prefix>/data/<entry>       entries
//! <prefix>/lease/<name>       leases, and who holds them
//! ```
//!
//! Calls block their thread and never a runtime of the caller's: the connection lives on a thread of this crate's own. An etcd that is
//! away or hangs costs a call two seconds at most.

mod calls;
mod config;
mod connect;
mod metrics;
mod refusal;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use postern_ca::store::shared::{Change, Fence, Listing, Shared, SharedError, Swap, check};
use postern_svid::TrustDomain;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;

use crate::calls::{CALL, Calls};
use crate::metrics::Metrics;

pub use config::{Config, Endpoint, MAX_ENDPOINTS, Prefix, Tls, User};

/// What of etcd's API is used, as protobuf has it.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated; documented in the .proto file"
)]
pub(crate) mod proto {
    tonic::include_proto!("etcdserverpb");
}

/// Beyond its own deadline no call takes longer than this, even on a machine that is very busy.
const GRACE: Duration = Duration::from_millis(500);

/// A shared store in etcd.
pub struct Etcd {
    calls: Arc<Calls>,
    metrics: Metrics,
    /// `None` once it is being dropped.
    runtime: Option<Runtime>,
}

impl Etcd {
    /// One for the trust domain `td`. Nobody is asked yet: a control plane starts without etcd if it must.
    pub fn new(config: Config, td: &TrustDomain, registry: &mut Registry) -> Result<Self, SharedError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            // Names are looked up there.
            .max_blocking_threads(2)
            .thread_name("etcd")
            .enable_all()
            .build()
            .map_err(|error| SharedError::Unavailable(format!("no thread can be started: {error}")))?;
        let calls = Arc::new(Calls::new(config, td));
        Ok(Self { calls, metrics: Metrics::new(registry), runtime: Some(runtime) })
    }

    /// Runs `work` on the own thread and waits for it, at most `within` and some grace.
    fn run<T, F>(
        &self,
        call: &'static str,
        within: Duration,
        work: impl FnOnce(Arc<Calls>) -> F,
    ) -> Result<T, SharedError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SharedError>> + Send + 'static,
    {
        let closed = || SharedError::Unavailable("the store is closed".to_owned());
        let runtime = self.runtime.as_ref().ok_or_else(closed)?;
        let (answer, answered) = mpsc::sync_channel(1);
        let work = work(self.calls.clone());
        let task = runtime.spawn(async move {
            // Nobody waits any more: then nobody is told.
            let _ = answer.send(work.await);
        });
        let result = answered.recv_timeout(within + GRACE).unwrap_or_else(|_| {
            task.abort();
            Err(SharedError::Unavailable(format!("no answer within {} s", within.as_secs())))
        });
        self.metrics.asked(call, result.as_ref().err());
        result
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A lookup that hangs must not keep whoever drops this.
            runtime.shutdown_background();
        }
    }
}

impl Shared for Etcd {
    fn read(&self, prefix: &str) -> Result<Listing, SharedError> {
        let prefix = prefix.to_owned();
        self.run("read", CALL, |calls| async move { calls.read(&prefix).await })
    }

    fn swap(&self, changes: &[Change], fence: Option<&Fence>) -> Result<Swap, SharedError> {
        check(changes)?;
        let (changes, fence) = (changes.to_vec(), fence.cloned());
        let swapped =
            self.run("swap", CALL, |calls| async move { calls.swap(&changes, fence.as_ref()).await });
        if let Ok(swap) = &swapped {
            self.metrics.swapped(*swap);
        }
        swapped
    }

    fn wait(&self, prefix: &str, since: u64, timeout: Duration) -> Result<u64, SharedError> {
        let prefix = prefix.to_owned();
        // A connection and the watch are opened before, and its silence is asked about after.
        self.run("wait", timeout + 3 * CALL, |calls| async move { calls.wait(&prefix, since, timeout).await })
    }

    fn acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<Option<Fence>, SharedError> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.run("acquire", CALL, |calls| async move { calls.acquire(name, holder, ttl).await })
    }

    fn renew(&self, fence: &Fence) -> Result<bool, SharedError> {
        let fence = fence.clone();
        self.run("renew", CALL, |calls| async move { calls.renew(&fence).await })
    }

    fn release(&self, fence: &Fence) -> Result<(), SharedError> {
        let fence = fence.clone();
        self.run("release", CALL, |calls| async move { calls.release(&fence).await })
    }

    fn holder(&self, name: &str) -> Result<Option<String>, SharedError> {
        let name = name.to_owned();
        self.run("holder", CALL, |calls| async move { calls.holder(&name).await })
    }
}
