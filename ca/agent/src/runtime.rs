//! The one place that says where blocking work runs and in which order waits are looked at: a simulation has neither threads
//! nor chance.

use tokio::task::JoinHandle;

#[cfg(not(feature = "sim"))]
pub(crate) use tokio::select;

/// tokio's `select!`, which begins at a random branch, from the top.
#[cfg(feature = "sim")]
macro_rules! in_order {
    (biased; $($branches:tt)*) => { tokio::select! { biased; $($branches)* } };
    ($($branches:tt)*) => { tokio::select! { biased; $($branches)* } };
}
#[cfg(feature = "sim")]
pub(crate) use in_order as select;

/// Runs `work` where it may block; in a simulation here and now.
pub(crate) fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(not(feature = "sim"))]
    let task = tokio::task::spawn_blocking(work);
    #[cfg(feature = "sim")]
    let task = tokio::task::spawn(std::future::ready(work()));
    task
}
