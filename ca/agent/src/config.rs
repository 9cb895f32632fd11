//! What an agent must be told.

use std::path::{Path, PathBuf};

use postern_svid::SpiffeId;

use crate::error::StartError;

/// An agent's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the identity API listens: `host:port`, an IPv6 address in brackets; or `unix:` and the path of a socket.
    pub control_plane: String,
    /// Where else: other replicas of the same control plane, in the same form.
    pub replicas: Vec<String>,
    /// Who must answer there.
    pub control_plane_id: SpiffeId,
    /// What vouches for the control plane until its own bundle is held.
    pub trust: Trust,
    /// The id to ask for.
    pub identity: SpiffeId,
    /// How to prove that this workload may have it.
    pub attestation: Attestation,
    /// Directory for key, chain and bundle; 0700, made if missing.
    pub state_dir: PathBuf,
    /// The mark of the connection to the control plane, where rules of redirection tell the sidecar apart by it.
    pub mark: Option<u32>,
    /// Accept SVIDs that live less than five minutes.
    pub test: bool,
}

/// What vouches for the control plane at the first contact. There is no third way and no trust on first use.
#[derive(Clone, Debug)]
pub enum Trust {
    /// A PEM file with the roots of the trust domain.
    Bundle(PathBuf),
    /// SHA-256 over the DER of a root. The control plane must send that root in its chain, and its path must end there.
    RootSha256([u8; 32]),
}

/// Proof of who the workload is.
#[derive(Clone, Debug)]
pub enum Attestation {
    /// A file, mode 0600, that holds a join token. It is read again for each use, so that it can be replaced.
    JoinToken(PathBuf),
    /// A descriptor that this process was started with and that holds a join token: a pipe, a memfd, an open file. It is read
    /// once, at the start.
    JoinTokenDescriptor(u32),
    /// A file with a projected Kubernetes service account token. It is read again for each use: kubelet exchanges it.
    ServiceAccountToken(PathBuf),
    /// A file with an OIDC provider's token, read again for each use.
    OidcToken(PathBuf),
    /// A certificate that somebody else's CA gave this machine, and its key; both read again for each use.
    X509Pop {
        /// A file with the chain, PEM, its own certificate first.
        certificate: PathBuf,
        /// A file with the key, PEM, mode 0600.
        key: PathBuf,
    },
    /// Nothing but this process itself: the kernel tells the control plane of it, over a Unix socket.
    Process,
}

impl Attestation {
    /// Whether the proof can be shown again, and is with each renewal. A join token is for once.
    pub(crate) const fn is_repeated(&self) -> bool {
        match self {
            Self::JoinToken(_) | Self::JoinTokenDescriptor(_) => false,
            Self::ServiceAccountToken(_) | Self::OidcToken(_) | Self::X509Pop { .. } | Self::Process => true,
        }
    }
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), StartError> {
        for address in self.addresses() {
            if socket(address).is_none() && host_and_port(address).is_none() {
                return Err(StartError::Address(address.to_owned()));
            }
        }
        if self.identity.trust_domain_name() != self.control_plane_id.trust_domain_name() {
            return Err(StartError::TrustDomains {
                identity: self.identity.clone(),
                control_plane: self.control_plane_id.clone(),
            });
        }
        if self.identity.is_reserved() {
            return Err(StartError::ReservedIdentity(self.identity.clone()));
        }
        Ok(())
    }

    /// Everywhere that the identity API may be.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.control_plane).chain(&self.replicas).map(String::as_str)
    }

    /// How many addresses there are.
    pub(crate) const fn places(&self) -> usize {
        1 + self.replicas.len()
    }
}

/// The path of a Unix socket.
pub(crate) fn socket(address: &str) -> Option<&Path> {
    address.strip_prefix("unix:").filter(|path| path.starts_with('/')).map(Path::new)
}

/// The two parts of an address, brackets removed.
pub(crate) fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then_some((host, port))
}
