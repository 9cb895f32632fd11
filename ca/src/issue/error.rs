//! Why no certificate was issued: what the log says, and the little that the caller is told.

use std::time::Duration;

use postern_svid::{IdError, Revoked, SpiffeId};

use crate::attest::NoProof;
use crate::authz::Denied;
use crate::check::CheckError;
use crate::csr::CsrError;
use crate::limits::RetryAfter;
use crate::lineage::{Attestor, Refusal};
use crate::profile::ProfileError;
use crate::store::StoreError;

/// Why no certificate was issued. `Display` is for the log; [`tonic::Status`] made from it is for the caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// Too many requests.
    #[error("too many requests; come back in {:?}", .0.0)]
    Busy(RetryAfter),
    /// A certificate of our own making did not pass the test.
    #[error("the CA's own test failed: {0}")]
    Check(#[from] CheckError),
    /// The clock went back.
    #[error(
        "the clock is {} s behind the last certificate issued, or before 2024; nothing is issued until it has caught up. Correct the clock; if it is right and was ahead earlier, say so: postern ca clock confirm --reason TEXT",
        .behind.as_secs()
    )]
    Clock {
        /// By how much.
        behind: Duration,
    },
    /// The request is refused.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The id is not granted; with the id that the proof stands for.
    #[error("{0}; the proof stands for {1}")]
    Denied(Denied, SpiffeId),
    /// The id asked for is none.
    #[error("the id asked for: {0}")]
    Id(IdError),
    /// The key may not be certified.
    #[error("the key is refused: {0}")]
    Key(&'static str),
    /// The lineage renews no more.
    #[error("the lineage renews no more: {}", refusal(*.0))]
    Lineage(Refusal),
    /// The issuing CA ends too soon.
    #[error("the issuing CA ends too soon to issue anything; its rotation has failed, see earlier messages")]
    NoTime,
    /// The predecessor is not the certificate of the connection.
    #[error("predecessor_serial is not the serial number of the connection's certificate")]
    Predecessor,
    /// Building failed.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// On the deny list.
    #[error("on the deny list, by {0}; postern ca allow-again takes it off")]
    Revoked(Revoked),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A shorter life was asked for than is given.
    #[error("{} s of life asked for; the least is {} s", .asked.as_secs(), .least.as_secs())]
    Ttl {
        /// What was asked for.
        asked: Duration,
        /// The least.
        least: Duration,
    },
    /// The proof is no good; the text is for the log only.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// What was shown to an attestor proves nothing; the text is for the log only.
    #[error("{}: {}", .0.as_str(), .1)]
    NoProof(Attestor, NoProof),
    /// No registration grants the id to the facts that were proven; the text is for the log only.
    #[error("no registration grants {asked} to {facts}{nearest}")]
    Unregistered {
        /// The id.
        asked: SpiffeId,
        /// The facts, as selectors.
        facts: String,
        /// The registration that is nearest, and why it does not; empty if there is none.
        nearest: String,
    },
}

impl IssueError {
    /// Every word that [`reason`](Self::reason) gives.
    pub const REASONS: [&'static str; 18] = [
        "bad_id",
        "busy",
        "clock",
        "csr",
        "denied",
        "fork",
        "internal",
        "key",
        "ledger",
        "lineage",
        "no_time",
        "own_test",
        "predecessor",
        "revoked",
        "store",
        "ttl",
        "unauthenticated",
        "unregistered",
    ];

    /// A constant word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Busy(_) => "busy",
            Self::Check(_) => "own_test",
            Self::Clock { .. } => "clock",
            Self::Csr(_) => "csr",
            Self::Denied(..) => "denied",
            Self::Id(_) => "bad_id",
            Self::Key(_) => "key",
            Self::Lineage(Refusal::Fork | Refusal::Forked) => "fork",
            Self::Lineage(_) => "lineage",
            Self::NoTime => "no_time",
            Self::Predecessor => "predecessor",
            Self::Profile(_) => "internal",
            Self::Revoked(_) => "revoked",
            Self::Store(StoreError::Clock { .. } | StoreError::Leapt { .. }) => "clock",
            Self::Store(StoreError::Ledger(_)) => "ledger",
            Self::Store(_) => "store",
            Self::Ttl { .. } => "ttl",
            Self::Unauthenticated(_) | Self::NoProof(..) => "unauthenticated",
            Self::Unregistered { .. } => "unregistered",
        }
    }
}

/// One text for everything that concerns a proof: whoever tries tokens learns nothing from the answer.
const OPAQUE: &str = "the proof was not accepted; make a new join token (postern ca token create); the control plane's log has the reason";

/// The same for attestors: forged, expired and unknown are told apart in the log alone.
const OPAQUE_ATTESTED: &str = "the proof was not accepted; the control plane's log has the reason";

impl From<IssueError> for tonic::Status {
    fn from(error: IssueError) -> Self {
        match &error {
            IssueError::Busy(after) => busy(error.to_string(), *after),
            IssueError::Unauthenticated(_) => Self::unauthenticated(OPAQUE),
            IssueError::NoProof(..) => Self::unauthenticated(OPAQUE_ATTESTED),
            IssueError::Unregistered { .. } => Self::permission_denied(
                "the proof is accepted, but no registration grants it the id asked for; the control plane's log has the facts",
            ),
            IssueError::Denied(..) => {
                Self::permission_denied("the proof does not stand for the id asked for")
            }
            IssueError::Lineage(_) | IssueError::Revoked(_) => Self::permission_denied(error.to_string()),
            IssueError::Csr(_) | IssueError::Id(_) | IssueError::Predecessor | IssueError::Ttl { .. } => {
                Self::invalid_argument(error.to_string())
            }
            IssueError::Key(_) => Self::failed_precondition(error.to_string()),
            IssueError::Store(StoreError::Conflict(_)) => {
                Self::aborted("another request was faster; try again")
            }
            IssueError::Clock { .. } | IssueError::NoTime | IssueError::Store(_) => {
                Self::unavailable("the CA cannot issue now; the control plane's log has the reason")
            }
            IssueError::Check(_) | IssueError::Profile(_) => {
                Self::internal("the CA failed; the control plane's log has the reason")
            }
        }
    }
}

/// The answer to one request too many.
pub(crate) fn busy(text: String, after: RetryAfter) -> tonic::Status {
    let mut status = tonic::Status::resource_exhausted(text);
    if let Ok(value) = after.0.as_millis().max(1).to_string().parse() {
        // gRPC's own name for it (A6, client retries).
        status.metadata_mut().insert("grpc-retry-pushback-ms", value);
    }
    status
}

fn refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Fork | Refusal::Forked => {
            "two parties have presented keys of it, so one of them is a copy. Find out which, then make a new join token or attest anew"
        }
        Refusal::Attestor => {
            "it did not begin with a join token, so each renewal repeats its attestation, and this one did not"
        }
        Refusal::TooOld => "its attestation is more than 30 days old. Make a new join token",
    }
}
