//! What an operator can ask an agent.

use std::time::SystemTime;

use postern_svid::SpiffeId;

use crate::error::AttemptError;
use crate::identity::Live;

/// What the agent is at.
#[derive(Clone, Debug)]
pub struct Status {
    /// The configured id.
    pub identity: SpiffeId,
    /// Serial number of the SVID in use.
    pub serial: Option<Vec<u8>>,
    /// When that SVID ends.
    pub not_after: Option<SystemTime>,
    /// When it will be renewed.
    pub next_renewal: Option<SystemTime>,
    /// Sequence of the bundle in force.
    pub bundle_sequence: Option<u64>,
    /// Whether the stream to the control plane is open.
    pub connected: bool,
    /// When an SVID was last received.
    pub last_success: Option<SystemTime>,
    /// SVIDs received by this process.
    pub issued: u64,
    /// Failed attempts to get an SVID in this process.
    pub failures: u64,
    /// Failed attempts since the last success.
    pub attempts: u32,
    /// Why the last attempt failed, until one succeeds.
    pub last_error: Option<String>,
    /// Why the stream last broke or a bundle was refused, until a stream is open again.
    pub last_stream_error: Option<String>,
    /// The control plane's clock minus ours at the last answer, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// Whether SVIDs under five minutes are accepted.
    pub test: bool,
}

#[derive(Default)]
pub(crate) struct Progress {
    connected: bool,
    last_success: Option<SystemTime>,
    issued: u64,
    failures: u64,
    attempts: u32,
    last_error: Option<String>,
    last_stream_error: Option<String>,
    clock_skew_ms: Option<i64>,
}

impl Live {
    pub(crate) fn status(&self) -> Status {
        let current = self.current();
        let bundle_sequence = self.held.lock().bundle.as_ref().map(|bundle| bundle.sequence());
        let progress = self.progress.lock();
        Status {
            identity: self.config.identity.clone(),
            serial: current.as_ref().map(|identity| identity.svid.serial().to_vec()),
            not_after: current.as_ref().map(|identity| identity.svid.not_after()),
            next_renewal: current.as_ref().map(|identity| identity.renew_after),
            bundle_sequence,
            connected: progress.connected,
            last_success: progress.last_success,
            issued: progress.issued,
            failures: progress.failures,
            attempts: progress.attempts,
            last_error: progress.last_error.clone(),
            last_stream_error: progress.last_stream_error.clone(),
            clock_skew_ms: progress.clock_skew_ms,
            test: self.config.test,
        }
    }

    pub(crate) fn succeeded(&self, skew_ms: Option<i64>) {
        let now = self.clock.wall();
        let mut progress = self.progress.lock();
        progress.last_success = Some(now);
        progress.issued += 1;
        progress.attempts = 0;
        progress.last_error = None;
        progress.clock_skew_ms = skew_ms;
    }

    pub(crate) fn failed(&self, error: &AttemptError) {
        let mut progress = self.progress.lock();
        progress.failures += 1;
        progress.attempts = progress.attempts.saturating_add(1);
        progress.last_error = Some(error.to_string());
    }

    pub(crate) fn stream_opened(&self) {
        let mut progress = self.progress.lock();
        progress.connected = true;
        progress.last_stream_error = None;
    }

    /// Whether it was open.
    pub(crate) fn stream_closed(&self) -> bool {
        std::mem::take(&mut self.progress.lock().connected)
    }

    pub(crate) fn stream_error(&self, error: &AttemptError) {
        self.progress.lock().last_stream_error = Some(error.to_string());
    }
}
