//! Why there is no JWT authority, and why no token was issued.

use std::time::Duration;

use postern_svid::SpiffeId;
use postern_svid::jwt::JwtError;

use crate::authority::AuthorityError;
use crate::keys::KeyError;
use crate::limits::RetryAfter;
use crate::profile::ProfileError;
use crate::store::StoreError;

/// Why there is no working JWT authority.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwtAuthorityError {
    /// The bundle could not be made anew.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// What is stored contradicts itself.
    #[error("the CA's store is damaged: {0}; restore the state directory from a backup")]
    Damaged(&'static str),
    /// A key is missing or open to others.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key is another than the row's.
    #[error(
        "the key {0} is not the one that the database knows; restore the state directory, keys and database together, from a backup"
    )]
    KeyMismatch(String),
    /// The random source failed.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why no token was issued. `Display` is for the log; [`tonic::Status`] made from it is for the caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwtIssueError {
    /// The audiences are none.
    #[error("the audience: {0}")]
    Audience(&'static str),
    /// Too many requests.
    #[error("too many requests; come back in {:?}", .0.0)]
    Busy(RetryAfter),
    /// The token of our own making did not pass the test.
    #[error("the CA's own test failed: {0}")]
    Check(JwtError),
    /// The clock is before every certificate, or before that of the newest record.
    #[error("the clock is {} s behind the ledger's newest record; postern ca clock show", .0.as_secs())]
    Clock(Duration),
    /// Another id than the connection's was asked for.
    #[error("a token of another id was asked for than the connection's, {0}")]
    Denied(SpiffeId),
    /// The connection's certificate has ended, or is not one of ours.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// Its lineage has a fork, or it is revoked.
    #[error("{0}")]
    Revoked(&'static str),
    /// The key refused to sign.
    #[error("the JWT key refused to sign")]
    Sign,
    /// The store refused.
    #[error(transparent)]
    Store(StoreError),
    /// A shorter life was asked for than is given.
    #[error("{} s of life asked for; the least is {} s", .asked.as_secs(), .least.as_secs())]
    Ttl {
        /// What was asked for.
        asked: Duration,
        /// The least.
        least: Duration,
    },
}

impl JwtIssueError {
    /// Every word that [`reason`](Self::reason) gives.
    pub const REASONS: [&'static str; 10] = [
        "audience",
        "busy",
        "clock",
        "denied",
        "internal",
        "own_test",
        "revoked",
        "store",
        "ttl",
        "unauthenticated",
    ];

    /// A constant word, for metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Audience(_) => "audience",
            Self::Busy(_) => "busy",
            Self::Check(_) => "own_test",
            Self::Clock(_) => "clock",
            Self::Denied(_) => "denied",
            Self::Revoked(_) => "revoked",
            Self::Sign => "internal",
            Self::Store(StoreError::Leapt { .. }) => "clock",
            Self::Store(_) => "store",
            Self::Ttl { .. } => "ttl",
            Self::Unauthenticated(_) => "unauthenticated",
        }
    }
}

impl From<StoreError> for JwtIssueError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Clock { behind } => Self::Clock(behind),
            error => Self::Store(error),
        }
    }
}

impl From<JwtIssueError> for tonic::Status {
    fn from(error: JwtIssueError) -> Self {
        match &error {
            JwtIssueError::Busy(after) => crate::issue::busy(error.to_string(), *after),
            JwtIssueError::Audience(_) | JwtIssueError::Ttl { .. } => {
                Self::invalid_argument(error.to_string())
            }
            JwtIssueError::Denied(_) => Self::permission_denied("an SVID gets tokens of its own id only"),
            JwtIssueError::Revoked(_) => Self::permission_denied(error.to_string()),
            JwtIssueError::Unauthenticated(_) => Self::unauthenticated(error.to_string()),
            JwtIssueError::Clock(_) | JwtIssueError::Store(_) => {
                Self::unavailable("the CA cannot issue now; the control plane's log has the reason")
            }
            JwtIssueError::Check(_) | JwtIssueError::Sign => {
                Self::internal("the CA failed; the control plane's log has the reason")
            }
        }
    }
}
