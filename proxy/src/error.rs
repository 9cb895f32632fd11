//! What went wrong with one stream, on whose side, and what may be done about it.
//!
//! Errors are made where they happen, with everything that is known there; [`Reason`] is the table that turns them
//! into an HTTP status, a gRPC status, a sentence for the caller and a metric label.

use std::fmt;
use std::time::Duration;

use http::StatusCode;
use postern_policy::NotAsked;

/// Which side caused an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Whoever sent us the request.
    Peer,
    /// The far sidecar or service of an outbound call.
    Remote,
    /// The workload beside us.
    Workload,
    /// This sidecar or its configuration.
    Us,
}

/// Whether the same request may be tried again elsewhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// The far side may have acted on it.
    Never,
    /// Not a byte of it was processed.
    Unsent,
}

/// One row of the table below.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(usize)]
pub enum Reason {
    /// The request is ambiguous or malformed.
    BadRequest,
    /// Something broke in this sidecar.
    Internal,
    /// Too many requests are in flight.
    Overloaded,
    /// The peer asked for a port that the workload does not declare.
    PortNotDeclared,
    /// The policy said no.
    PolicyDenied,
    /// A rate limit refused for now.
    RateLimited,
    /// No policy set is in force.
    NoPolicy,
    /// The policy set went unconfirmed for too long.
    PolicyStale,
    /// An upgrade that is not allowed here.
    UpgradeRefused,
    /// A CONNECT to a port that speaks HTTP.
    ConnectToHttp,
    /// No Service document names this destination.
    UnknownService,
    /// No rule lets the workload call there, or one forbids it.
    EgressDenied,
    /// A destination outside of the mesh could not be reached in time.
    ExternalUnreachable,
    /// A connection outside of the mesh broke.
    ExternalReset,
    /// Who answers outside of the mesh did not prove that it is whom the Service names.
    ExternalUntrusted,
    /// The workload's own TLS names another host than the one it asked for, or it is no TLS.
    SniMismatch,
    /// The Service has no endpoint.
    NoEndpoint,
    /// The endpoint could not be reached in time.
    RemoteUnreachable,
    /// The endpoint did not prove the expected identity.
    RemoteIdentity,
    /// The connection to the endpoint broke.
    RemoteReset,
    /// This sidecar has no valid certificate.
    NoIdentity,
    /// The workload does not accept connections.
    WorkloadUnreachable,
    /// The workload broke the connection.
    WorkloadReset,
    /// The workload did not answer an upgrade as it must.
    WorkloadProtocol,
    /// Permission was withdrawn while the stream ran.
    Revoked,
    /// The peer stopped reading or sending.
    Stalled,
    /// The peer took the request back.
    Canceled,
    /// The request head is too large.
    HeadTooLarge,
    /// The request's target is too long.
    UriTooLong,
    /// The request came to the wrong door.
    Misdirected,
    /// The call would come back to this very listener.
    Loop,
    /// An HTTP request to a port that is declared opaque.
    HttpToTcp,
    /// The request carries a token that is none, or that does not hold.
    TokenInvalid,
}

impl Reason {
    /// All of them, for metrics that are written even at zero.
    pub const ALL: [Self; 33] = [
        Self::BadRequest,
        Self::Internal,
        Self::Overloaded,
        Self::PortNotDeclared,
        Self::PolicyDenied,
        Self::RateLimited,
        Self::NoPolicy,
        Self::PolicyStale,
        Self::UpgradeRefused,
        Self::ConnectToHttp,
        Self::UnknownService,
        Self::EgressDenied,
        Self::ExternalUnreachable,
        Self::ExternalReset,
        Self::ExternalUntrusted,
        Self::SniMismatch,
        Self::NoEndpoint,
        Self::RemoteUnreachable,
        Self::RemoteIdentity,
        Self::RemoteReset,
        Self::NoIdentity,
        Self::WorkloadUnreachable,
        Self::WorkloadReset,
        Self::WorkloadProtocol,
        Self::Revoked,
        Self::Stalled,
        Self::Canceled,
        Self::HeadTooLarge,
        Self::UriTooLong,
        Self::Misdirected,
        Self::Loop,
        Self::HttpToTcp,
        Self::TokenInvalid,
    ];

    /// HTTP status, gRPC status, label (in metrics, logs and `postern-error`), and what a caller is told.
    pub const fn row(self) -> (u16, u8, &'static str, &'static str) {
        const INVALID_ARGUMENT: u8 = 3;
        const PERMISSION_DENIED: u8 = 7;
        const RESOURCE_EXHAUSTED: u8 = 8;
        const INTERNAL: u8 = 13;
        const UNAVAILABLE: u8 = 14;
        const CANCELLED: u8 = 1;
        const UNAUTHENTICATED: u8 = 16;
        match self {
            Self::BadRequest => {
                (400, INVALID_ARGUMENT, "bad_request", "The request is malformed or ambiguous.")
            }
            Self::Internal => (500, INTERNAL, "internal", "The sidecar failed."),
            Self::Overloaded => (503, UNAVAILABLE, "overloaded", "Too many requests are in flight."),
            Self::PortNotDeclared => {
                (421, UNAVAILABLE, "port_not_declared", "The workload does not serve this port to the mesh.")
            }
            Self::PolicyDenied => (403, PERMISSION_DENIED, "policy_denied", "This call is not allowed."),
            Self::RateLimited => {
                (429, RESOURCE_EXHAUSTED, "rate_limited", "Too many calls: try again later.")
            }
            Self::NoPolicy => (403, PERMISSION_DENIED, "no_policy", "This call is not allowed."),
            Self::PolicyStale => (403, PERMISSION_DENIED, "policy_stale", "This call is not allowed."),
            Self::UpgradeRefused => {
                (403, PERMISSION_DENIED, "upgrade_refused", "This upgrade is not allowed.")
            }
            Self::ConnectToHttp => (
                403,
                PERMISSION_DENIED,
                "connect_to_http",
                "This port speaks HTTP: send it requests, not CONNECT.",
            ),
            Self::UnknownService => {
                (403, PERMISSION_DENIED, "unknown_service", "No service of the mesh has this name and port.")
            }
            Self::EgressDenied => (403, PERMISSION_DENIED, "egress_denied", "This call is not allowed."),
            Self::ExternalUnreachable => {
                (503, UNAVAILABLE, "external_unreachable", "The destination cannot be reached.")
            }
            Self::ExternalReset => {
                (502, UNAVAILABLE, "external_reset", "The connection to the destination broke.")
            }
            Self::ExternalUntrusted => {
                (502, UNAVAILABLE, "external_untrusted", "The destination did not prove who it is.")
            }
            Self::SniMismatch => {
                (403, PERMISSION_DENIED, "sni_mismatch", "The TLS is for another host than was asked for.")
            }
            Self::NoEndpoint => (503, UNAVAILABLE, "no_endpoint", "The service has no endpoint."),
            Self::RemoteUnreachable => {
                (503, UNAVAILABLE, "remote_unreachable", "The service's sidecar cannot be reached.")
            }
            Self::RemoteIdentity => {
                (502, UNAVAILABLE, "remote_identity", "The service's endpoint did not prove its identity.")
            }
            Self::RemoteReset => (502, UNAVAILABLE, "remote_reset", "The connection to the service broke."),
            Self::NoIdentity => {
                (503, UNAVAILABLE, "no_identity", "The sidecar has no valid certificate yet.")
            }
            Self::WorkloadUnreachable => {
                (502, UNAVAILABLE, "workload_unreachable", "The workload does not accept connections.")
            }
            Self::WorkloadReset => (502, UNAVAILABLE, "workload_reset", "The workload broke the connection."),
            Self::WorkloadProtocol => {
                (502, UNAVAILABLE, "workload_protocol", "The workload answered against the protocol.")
            }
            Self::Revoked => (403, PERMISSION_DENIED, "revoked", "Permission for this call was withdrawn."),
            Self::Stalled => (504, UNAVAILABLE, "stalled", "The other side made no progress."),
            Self::Canceled => (499, CANCELLED, "canceled", "The caller took the request back."),
            Self::HeadTooLarge => {
                (431, RESOURCE_EXHAUSTED, "head_too_large", "The request head is too large.")
            }
            Self::UriTooLong => {
                (414, RESOURCE_EXHAUSTED, "uri_too_long", "The request's target is too long.")
            }
            Self::Misdirected => {
                (421, UNAVAILABLE, "misdirected", "The request does not belong to this listener.")
            }
            Self::HttpToTcp => (
                403,
                PERMISSION_DENIED,
                "http_to_tcp",
                "This port is declared opaque: reach it with CONNECT.",
            ),
            Self::TokenInvalid => {
                (401, UNAUTHENTICATED, "token_invalid", "The request's token is not valid.")
            }
            Self::Loop => (508, UNAVAILABLE, "loop", "The call would come back to this sidecar."),
        }
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().0).expect("the table holds valid codes only (a test walks it)")
    }

    /// The gRPC status.
    pub const fn grpc(self) -> u8 {
        self.row().1
    }

    /// The label in metrics, logs and `postern-error`.
    pub const fn label(self) -> &'static str {
        self.row().2
    }

    /// What the caller is told.
    pub const fn sentence(self) -> &'static str {
        self.row().3
    }

    /// What a workload is told of a failure at the far end: whether no rule or no policy at all forbids a call is not
    /// the caller's to know.
    pub const fn as_told(self) -> Self {
        match self {
            Self::NoPolicy | Self::PolicyStale => Self::PolicyDenied,
            other => other,
        }
    }

    /// The reason with this label, as it comes back in `postern-error`.
    pub fn from_label(label: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.label().as_bytes() == label)
    }
}

impl From<NotAsked> for Reason {
    fn from(why: NotAsked) -> Self {
        match why {
            NotAsked::BadRequest(_) => Self::BadRequest,
            NotAsked::UnknownService => Self::UnknownService,
            NotAsked::ConnectToHttp => Self::ConnectToHttp,
            NotAsked::HttpToTcp => Self::HttpToTcp,
            NotAsked::PortNotDeclared => Self::PortNotDeclared,
            NotAsked::UpgradeRefused => Self::UpgradeRefused,
            NotAsked::TokenInvalid(_) => Self::TokenInvalid,
        }
    }
}

/// One stream's failure.
#[derive(Debug)]
pub struct Error {
    /// Whose fault it is.
    pub side: Side,
    /// The row of the table.
    pub reason: Reason,
    /// Whether the request may be tried again.
    pub retry: Retry,
    /// What exactly happened, for the log; never sent to a caller.
    pub detail: String,
    /// When the caller may come again.
    pub wait: Option<Duration>,
}

impl Error {
    /// An error after which the request must not be repeated.
    pub fn new(side: Side, reason: Reason, detail: impl Into<String>) -> Self {
        Self { side, reason, retry: Retry::Never, detail: detail.into(), wait: None }
    }

    /// An error of which it is proven that the other side saw nothing of the request.
    pub fn unsent(side: Side, reason: Reason, detail: impl Into<String>) -> Self {
        Self { side, reason, retry: Retry::Unsent, detail: detail.into(), wait: None }
    }

    /// What a peer asks for and no rule is asked about.
    pub fn not_asked(why: NotAsked, detail: impl Into<String>) -> Self {
        Self::new(Side::Peer, why.into(), detail)
    }

    /// The same, with what a caller is told about when to come again.
    pub fn until(self, wait: Option<Duration>) -> Self {
        Self { wait, ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.label(), self.detail)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_in_the_manual() {
        let manual = include_str!("../../docs/operations.md");
        let (_, section) = manual.split_once("\n## Reasons\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        for (status, _, label, _) in Reason::ALL.map(Reason::row) {
            assert!(section.contains(&format!("\n| `{label}` | {status} | ")), "{label} {status}");
        }
    }

    /// What is explained is what is answered.
    #[test]
    fn explanations_speak_of_the_same_reasons() {
        use postern_policy::BadToken;
        use postern_policy::norm::NormError;
        for why in [
            NotAsked::BadRequest(NormError::Method),
            NotAsked::UnknownService,
            NotAsked::ConnectToHttp,
            NotAsked::HttpToTcp,
            NotAsked::PortNotDeclared,
            NotAsked::UpgradeRefused,
            NotAsked::TokenInvalid(BadToken::Expired),
        ] {
            let reason = Reason::from(why);
            assert_eq!((reason.label(), reason.status().as_u16()), (why.label(), why.status()));
        }
    }

    #[test]
    fn a_caller_does_not_learn_that_the_far_end_has_no_policy() {
        for reason in Reason::ALL {
            let told = reason.as_told();
            let expected = match reason {
                Reason::NoPolicy | Reason::PolicyStale => Reason::PolicyDenied,
                other => other,
            };
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn the_table_is_whole() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{reason:?} stands at its own index");
            assert!(reason.status().as_u16() >= 400);
            assert!((1..=16).contains(&reason.grpc()));
            assert_eq!(Reason::from_label(reason.label().as_bytes()), Some(reason));
        }
    }
}
