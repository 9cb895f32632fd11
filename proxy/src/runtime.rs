//! Who runs what: the one place that starts threads and tasks.
//!
//! The data path runs on `workers` threads, each with its own single-threaded runtime, its own pools and its own share
//! of the accepted connections: a request never crosses threads, and nothing on its way is contended. One more thread
//! runs identity, documents, admin and health, so that `/metrics` never waits behind traffic.

use std::future::Future;
use std::io;
use std::thread;
use std::time::Duration;

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

/// How tables are hashed that somebody walks through: in a simulation their order is the same in every run.
#[cfg(not(feature = "sim"))]
pub type Hashing = std::hash::RandomState;
/// How tables are hashed that somebody walks through: in a simulation their order is the same in every run.
#[cfg(feature = "sim")]
pub type Hashing = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

/// Starts a task on the current worker. The handle's owner decides what its end means; a dropped handle detaches the
/// task, which then must end by itself (with its connection, or by a deadline).
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::task::spawn(future)
}

/// Runs `work` where it may block; in a simulation, which has no threads, here and now.
pub fn blocking<T, W>(work: W) -> tokio::task::JoinHandle<T>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    #[cfg(not(feature = "sim"))]
    let task = tokio::task::spawn_blocking(work);
    #[cfg(feature = "sim")]
    let task = spawn(std::future::ready(work()));
    task
}

/// Holds a blocking thread up; in a simulation nothing does, for nothing else could happen meanwhile.
pub fn hold(length: Duration) {
    #[cfg(not(feature = "sim"))]
    #[expect(clippy::disallowed_methods, reason = "no task runs on a blocking thread")]
    thread::sleep(length);
    #[cfg(feature = "sim")]
    let _ = length;
}

/// A task that ends when its owner lets go of it.
#[derive(Debug)]
pub struct Owned(tokio::task::JoinHandle<()>);

impl Owned {
    /// Starts the task.
    pub fn spawn<F>(future: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self(spawn(future))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a named thread with a single-threaded runtime that runs `future` to its end.
pub fn thread<F, M>(name: &str, make: M) -> io::Result<thread::JoinHandle<F::Output>>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future,
    F::Output: Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let output = runtime.block_on(async move { make().await });
        // Tasks of dead peers may be parked for ever; they are not waited for.
        runtime.shutdown_background();
        output
    })
}
