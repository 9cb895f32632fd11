//! The control plane's own certificate: issued in-process by its own CA, renewed by itself, swapped under open connections.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use postern_ca::authority::Authority;
use postern_ca::issue::{IssueError, Issuer};
use postern_ca::profile::{ISSUING_KEY, ProfileError};
use postern_svid::{Clock, Svid, SvidError, VerifyError, tls};
use rustls::ServerConfig;

/// gRPC is HTTP/2.
const ALPN: &[&[u8]] = &[b"h2"];

/// The certificate in use and when to replace it.
pub(crate) struct Own {
    issuer: Arc<Issuer>,
    authority: Arc<Authority>,
    clock: Arc<dyn Clock>,
    tls: Arc<ArcSwap<ServerConfig>>,
    /// The same certificate for the bundle endpoint, where nobody is asked for one.
    anybody: Arc<ArcSwap<ServerConfig>>,
    held: Mutex<Held>,
}

struct Held {
    svid: Svid,
    renew_after: SystemTime,
}

impl Own {
    pub(crate) fn new(
        issuer: Arc<Issuer>,
        authority: Arc<Authority>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OwnError> {
        let held = make(&issuer, &authority)?;
        let tls = Arc::new(ArcSwap::new(config(&held.svid, &authority, &clock)?));
        let anybody = Arc::new(ArcSwap::new(config_for_anybody(&held.svid, &clock)?));
        Ok(Self { issuer, authority, clock, tls, anybody, held: Mutex::new(held) })
    }

    /// The configuration for new connections; open ones keep theirs.
    pub(crate) fn tls(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.tls.clone()
    }

    /// The same for an endpoint that anybody may read, over HTTP/1.1.
    pub(crate) fn tls_for_anybody(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.anybody.clone()
    }

    /// Replaces the certificate if its time has come.
    pub(crate) fn renew_if_due(&self) -> Result<bool, OwnError> {
        let mut held = self.held.lock();
        if self.clock.wall() < held.renew_after {
            return Ok(false);
        }
        self.replace(&mut held)?;
        Ok(true)
    }

    /// Replaces the certificate now.
    pub(crate) fn renew(&self) -> Result<(), OwnError> {
        self.replace(&mut self.held.lock())
    }

    /// Holds new connections against the bundle in force; replaces the certificate if that vouches for it no longer.
    pub(crate) fn trust(&self) -> Result<(), OwnError> {
        let mut held = self.held.lock();
        if held.svid.verify_against(&self.authority.bundles(), self.clock.wall()).is_err() {
            return self.replace(&mut held);
        }
        self.tls.store(config(&held.svid, &self.authority, &self.clock)?);
        Ok(())
    }

    fn replace(&self, held: &mut Held) -> Result<(), OwnError> {
        let made = make(&self.issuer, &self.authority)?;
        self.tls.store(config(&made.svid, &self.authority, &self.clock)?);
        self.anybody.store(config_for_anybody(&made.svid, &self.clock)?);
        *held = made;
        Ok(())
    }
}

/// Why the control plane has no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnError {
    /// The CA refused.
    #[error("the control plane's own certificate: {0}")]
    Issue(#[from] IssueError),
    /// The key could not be made.
    #[error("the control plane's own certificate: {0}")]
    Key(#[from] ProfileError),
    /// Chain and key do not make an SVID.
    #[error("the control plane's own certificate: {0}")]
    Svid(#[from] SvidError),
    /// rustls refused.
    #[error("the control plane's own certificate: {0}")]
    Tls(tls::ConfigError),
    /// A sidecar would refuse it.
    #[error("the control plane's own certificate: {0}")]
    Verify(#[from] VerifyError),
}

fn make(issuer: &Issuer, authority: &Authority) -> Result<Held, OwnError> {
    let key = rcgen::KeyPair::generate_for(ISSUING_KEY).map_err(ProfileError::Build)?;
    let reply = issuer.issue_own(&key)?;
    let mut chain = reply.chain;
    // A sidecar that knows only the root's hash finds the root here and pins it.
    chain.push(authority.root());
    let svid = Svid::from_pkcs8(chain, key.serialized_der())?;
    svid.verify_against(&authority.bundles(), reply.now)?;
    Ok(Held { svid, renew_after: reply.renew_after })
}

fn config(svid: &Svid, authority: &Authority, clock: &Arc<dyn Clock>) -> Result<Arc<ServerConfig>, OwnError> {
    tls::server_config_optional_client(svid, &authority.bundles(), clock.clone(), ALPN).map_err(OwnError::Tls)
}

fn config_for_anybody(svid: &Svid, clock: &Arc<dyn Clock>) -> Result<Arc<ServerConfig>, OwnError> {
    tls::server_config_any_client(svid, clock.clone(), &[b"http/1.1"]).map_err(OwnError::Tls)
}
