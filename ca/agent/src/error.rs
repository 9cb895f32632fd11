//! What keeps an agent from starting, and what makes one attempt fail.

use std::fmt;
use std::io;
use std::path::PathBuf;

use postern_svid::{BundleError, SpiffeId, tls};
use tonic::Code;

use crate::config::{Attestation, Config};

/// Why an agent cannot start. Each text says what to do about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// `control_plane` is no `host:port`.
    Address(String),
    /// The state directory belongs to a running process.
    InUse(PathBuf),
    /// The descriptor that was to bring the join token does not.
    Descriptor {
        /// Its number.
        descriptor: u32,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or directory cannot be read, made or locked.
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others may read or write what must be ours alone.
    Mode {
        /// Which file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The widest mode allowed.
        allowed: u32,
    },
    /// It is neither ours nor root's.
    Owner {
        /// Which file or directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// The configured identity lies under `/postern/`.
    ReservedIdentity(SpiffeId),
    /// The certificate that is to prove who we are, or its key, is unfit.
    Machine {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no SVID in the state directory, and the token that is to prove who we are cannot be read.
    Proof {
        /// The token's file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no SVID in the state directory and no join token to get one.
    Token {
        /// The token's file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The configured trust bundle cannot be read.
    NoTrustBundle {
        /// Its file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The configured trust bundle is unfit.
    TrustBundle {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        error: BundleError,
    },
    /// Identity and control plane belong to different trust domains.
    TrustDomains {
        /// The configured identity.
        identity: SpiffeId,
        /// The configured control plane.
        control_plane: SpiffeId,
    },
    /// It is not what it should be.
    WrongKind {
        /// Which path.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(text) => write!(
                f,
                "the control plane's address {text:?} is not host:port (for example 10.0.0.5:24150 or [::1]:24150), nor unix: and the path of a socket"
            ),
            Self::InUse(path) => write!(
                f,
                "{}: another process uses this state directory; give each sidecar its own",
                path.display()
            ),
            Self::Descriptor { descriptor, problem } => write!(
                f,
                "descriptor {descriptor}: {problem}; it must be a pipe or file of this process's user that holds one join token, for example: postern-proxy run --config FILE {descriptor}< TOKENFILE"
            ),
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Machine { path, problem } => write!(
                f,
                "{}: {problem}; controlPlane.x509pop names a certificate chain and its key, both PEM, the key's mode 0600",
                path.display()
            ),
            Self::Mode { path, mode, allowed } => write!(
                f,
                "{}: mode {mode:04o} lets others in; it holds secrets, so run: chmod {allowed:04o} {}",
                path.display(),
                path.display()
            ),
            Self::Owner { path, uid } => write!(
                f,
                "{}: owned by uid {uid}, neither by this process's user nor by root; chown it",
                path.display()
            ),
            Self::ReservedIdentity(id) => {
                write!(f, "{id}: paths under /postern/ belong to the mesh itself; choose another identity")
            }
            Self::Proof { path, problem } => write!(
                f,
                "{}: {problem}; it must be the file that the platform keeps a token in: for a service account, a projected volume with the audience postern:TRUST-DOMAIN",
                path.display()
            ),
            Self::Token { path, problem } => write!(
                f,
                "{}: {problem}; make a new one on the control plane: postern ca token create --id ID --ttl 10m --out FILE",
                path.display()
            ),
            Self::NoTrustBundle { path, error } => write!(
                f,
                "{}: {error}; controlPlane.trustBundle names it: copy bundle.pem there from the control plane's state directory",
                path.display()
            ),
            Self::TrustBundle { path, error } => {
                write!(
                    f,
                    "{}: {error}; controlPlane.trustBundle must be the bundle.pem of this mesh's control plane",
                    path.display()
                )
            }
            Self::TrustDomains { identity, control_plane } => write!(
                f,
                "the identity {identity} and the control plane {control_plane} must share a trust domain"
            ),
            Self::WrongKind { path, wanted } => write!(f, "{}: not a {wanted}", path.display()),
        }
    }
}

impl std::error::Error for StartError {}

/// Why one attempt to reach or use the control plane failed. Every kind is tried again.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// No connection to this address.
    Connect(String, io::Error),
    /// No answer in time, at the named step.
    Timeout(&'static str),
    /// The handshake failed.
    Handshake {
        /// With whom.
        address: String,
        /// Why.
        error: io::Error,
        /// The stored bundle that decided, if that may be the cause.
        bundle: Option<PathBuf>,
    },
    /// The connection broke.
    Connection(String),
    /// The control plane says no.
    Refused {
        /// In a word.
        code: Code,
        /// In its own words.
        message: String,
        /// What was shown for which id, and the way out; empty for a renewal.
        shown: String,
    },
    /// It answered with something unusable.
    Answer(String),
    /// A file of ours.
    Local(String),
}

impl AttemptError {
    pub(crate) fn from_status(status: &tonic::Status) -> Self {
        // With a source it was made on our side, of an error of the connection; the interesting part lies deepest.
        if let Some(mut cause) = std::error::Error::source(status) {
            let mut text = cause.to_string();
            while let Some(deeper) = cause.source() {
                text = format!("{text}: {deeper}");
                cause = deeper;
            }
            return Self::Connection(text);
        }
        // Even an authenticated peer does not get to write into our log as it likes.
        let message: String = status.message().chars().filter(|c| !c.is_control()).take(300).collect();
        Self::Refused { code: status.code(), message, shown: String::new() }
    }

    /// Whether what was shown proves nothing to the control plane.
    pub(crate) const fn is_unauthenticated(&self) -> bool {
        matches!(self, Self::Refused { code: Code::Unauthenticated, .. })
    }

    /// Adds to a refusal which token was shown for which id, and what to do where that is in doubt.
    pub(crate) fn with_token(mut self, config: &Config) -> Self {
        if let Self::Refused { code: Code::PermissionDenied | Code::Unauthenticated, shown, .. } = &mut self {
            let id = &config.identity;
            let token = match &config.attestation {
                Attestation::JoinToken(path) => format!("the join token in {}", path.display()),
                Attestation::JoinTokenDescriptor(number) => format!("the join token of descriptor {number}"),
                Attestation::Process => {
                    *shown = format!(
                        " (this process, of uid {}, asked for {id}; a Registration on the control plane must grant it that id)",
                        nix::unistd::geteuid()
                    );
                    return self;
                }
                Attestation::X509Pop { certificate, .. } => {
                    *shown = format!(
                        " (the certificate in {} was shown for {id}; a Registration on the control plane must grant it that id)",
                        certificate.display()
                    );
                    return self;
                }
                Attestation::ServiceAccountToken(path) | Attestation::OidcToken(path) => {
                    *shown = format!(
                        " (the token in {} was shown for {id}; a Registration on the control plane must grant it that id)",
                        path.display()
                    );
                    return self;
                }
            };
            *shown = format!(
                " ({token} was shown for {id}; if it is another's, or spent, make one on the control plane: postern ca token create --id {id} --ttl 10m --out FILE)"
            );
        }
        self
    }
}

impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(address, error) => {
                write!(f, "cannot connect to the control plane at {address}: {error}")
            }
            Self::Timeout(step) => write!(f, "no answer from the control plane in time ({step})"),
            Self::Handshake { address, error, .. } if tls::refusal(error) == "not_tls" => write!(
                f,
                "{address} does not speak TLS ({}); is it the control plane's identity port (listen, 24150 by custom), not health or meshAdmin?",
                tls::explain(error)
            ),
            Self::Handshake { address, error, bundle } => {
                write!(
                    f,
                    "TLS handshake with the control plane at {address} failed: {}",
                    tls::explain(error)
                )?;
                match bundle {
                    Some(path) => write!(
                        f,
                        " (if its roots were replaced while this workload was away: give the new ones as trust bundle and remove {})",
                        path.display()
                    ),
                    None => Ok(()),
                }
            }
            Self::Connection(detail) => write!(f, "the connection to the control plane broke: {detail}"),
            Self::Refused { code, message, shown } => {
                write!(f, "the control plane refused ({code:?}): {message}{shown}")
            }
            Self::Answer(detail) => write!(f, "the control plane's answer is unusable: {detail}"),
            Self::Local(detail) => f.write_str(detail),
        }
    }
}
