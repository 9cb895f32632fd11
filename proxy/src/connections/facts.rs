//! What a stream is: the facts that it is judged by, at its begin and again.

use std::net::IpAddr;
use std::time::SystemTime;

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{Generation, HeaderFields, MAX_PAYLOAD, TokenSet, Upgrade};

/// What a stream does, in canonical form: what was judged, what is judged again, and what is forwarded.
#[derive(Debug)]
pub enum Operation {
    /// An HTTP request.
    Http {
        /// Its method (GET for a WebSocket), as the far workload sees it.
        method: CanonMethod,
        /// Its path and query.
        path: CanonPath,
        /// Whom it is addressed to.
        host: CanonHost,
        /// The header fields that rules asked for when it came. Others are not known any more when rules change.
        headers: HeaderFields,
        /// What it wants to become.
        upgrade: Option<Upgrade>,
        /// The tokens that it carries; unknown if no rule asked for any when it came.
        tokens: TokenSet,
    },
    /// Opaque bytes.
    Tcp,
    /// Opaque bytes that begin with a TLS handshake, which was read.
    Tls {
        /// The server name that it asks for; none if it asks for none.
        sni: Option<CanonHost>,
    },
}

/// A stream's facts.
#[derive(Debug)]
pub struct Facts {
    /// Inbound: the workload's port. Outbound: the service's target port.
    pub port: u16,
    /// What it does there.
    pub operation: Operation,
    /// Outbound: the service's name.
    pub destination: Option<String>,
    /// Outbound: what the workload asked for.
    pub asked: Option<Asked>,
}

/// What a workload asks its sidecar for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The host.
    pub host: CanonHost,
    /// The port.
    pub port: u16,
    /// Whether it was outside of the mesh.
    pub external: bool,
    /// Outside of the mesh: where it was to be dialled. Empty if that is not known.
    pub addresses: Vec<IpAddr>,
}

impl Facts {
    /// The operation as the policy engine wants to know it at `now`: tokens end.
    pub fn policy_operation(&self, now: SystemTime) -> postern_policy::Operation<'_> {
        match &self.operation {
            Operation::Http { method, path, host, headers, upgrade, tokens } => {
                postern_policy::Operation::Http {
                    method,
                    path,
                    host: Some(host),
                    headers: Some(headers),
                    upgrade: upgrade.as_ref(),
                    tokens: tokens.at(now),
                }
            }
            Operation::Tcp => postern_policy::Operation::Tcp,
            Operation::Tls { sni } => postern_policy::Operation::Tls { sni: sni.as_ref() },
        }
    }

    /// Whether what was forwarded is what `generation` would judge: a raw path may have gone on while no rule spoke of
    /// paths, and now one does.
    pub fn is_judged_as_forwarded(&self, generation: &Generation) -> bool {
        match &self.operation {
            Operation::Http { path, .. } => generation.check_path(self.port, path).is_ok(),
            Operation::Tcp | Operation::Tls { .. } => true,
        }
    }

    /// Whether a token ended between two moments.
    pub(super) fn has_token_ended(&self, from: SystemTime, to: SystemTime) -> bool {
        match &self.operation {
            Operation::Http { tokens, .. } => tokens.has_ended_between(from, to),
            _ => false,
        }
    }

    /// Roughly the bytes that these facts hold.
    pub fn weight(&self) -> usize {
        match &self.operation {
            Operation::Http { path, headers, tokens, .. } => {
                4 * path.path().len() + headers.bytes() + tokens.count() * MAX_PAYLOAD
            }
            Operation::Tcp | Operation::Tls { .. } => 0,
        }
    }

    /// Method and path for people; a tunnel has neither.
    pub fn method_and_path(&self) -> (&str, &str) {
        match &self.operation {
            Operation::Http { method, path, .. } => (method.as_str(), path.path()),
            Operation::Tcp | Operation::Tls { .. } => ("-", "-"),
        }
    }
}
