//! The one place that starts tasks and threads, and the shape of the runtime.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

#[cfg(not(feature = "sim"))]
pub(crate) use tokio::select;

/// tokio's `select!`, which begins at a random branch, from the top: a simulation has no chance in it.
#[cfg(feature = "sim")]
macro_rules! in_order {
    (biased; $($branches:tt)*) => { tokio::select! { biased; $($branches)* } };
    ($($branches:tt)*) => { tokio::select! { biased; $($branches)* } };
}
#[cfg(feature = "sim")]
pub(crate) use in_order as select;

/// Two workers: the signatures and the disk are on blocking threads, and while one worker is busy the other still answers
/// `/ready`.
const WORKERS: usize = 2;
/// One for each request that the CA works on at a time, and some for the rest.
const BLOCKING: usize = 288;

/// The runtime of the process.
pub(crate) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_name("control")
        .enable_all()
        .build()
}

/// A task that ends with whoever holds it.
pub(crate) struct Owned(AbortHandle);

impl Owned {
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task).abort_handle())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `work` where it may block; in a simulation, which has no threads, here and now.
pub(crate) fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(not(feature = "sim"))]
    let task = tokio::task::spawn_blocking(work);
    #[cfg(feature = "sim")]
    let task = tokio::task::spawn(std::future::ready(work()));
    task
}

/// All tasks of a control plane: told to stop together, waited for together.
#[derive(Clone)]
pub(crate) struct Tasks {
    set: Arc<Mutex<JoinSet<()>>>,
    stop: Arc<watch::Sender<bool>>,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self { set: Arc::default(), stop: Arc::new(watch::Sender::new(false)) }
    }

    /// Starts a task. What it gives ends that task before the others.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut set = self.set.lock();
        // What has ended is let go here, or the set would grow with every connection.
        while set.try_join_next().is_some() {}
        set.spawn(task)
    }

    /// Resolves when everything is to stop.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut stop = self.stop.subscribe();
        async move {
            // The sender lives as long as this set; if it is gone, stopping is right as well.
            let _ = stop.wait_for(|stop| *stop).await;
        }
    }

    /// Tells all tasks to stop.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until every task has ended; dropping the wait breaks the rest off.
    pub(crate) async fn ended(&self) {
        loop {
            let mut set = std::mem::take(&mut *self.set.lock());
            if set.is_empty() {
                return;
            }
            while set.join_next().await.is_some() {}
        }
    }
}
