//! What is read at start-up and before each attempt: the state directory, the configured trust, the token.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use postern_svid::{Bundle, Bundles, VerifyError};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::config::{Attestation, Trust};
use crate::descriptor;
use crate::error::StartError;
use crate::files;
use crate::identity::Live;
use crate::pace;
use crate::possession::Possession;
use crate::state::StoredSvid;

/// What vouches for the control plane right now.
pub(crate) enum Anchor {
    Bundles(Bundles),
    Pinned([u8; 32]),
}

impl Live {
    /// Reads the state directory, sets aside what cannot be used and publishes what can.
    pub(crate) fn load(&self) -> Result<(), StartError> {
        self.take_over_token();
        let bundle = self.load_bundle()?.map(Arc::new);
        {
            let mut held = self.held.lock();
            held.bundle.clone_from(&bundle);
            held.stored = bundle.as_ref().map(|bundle| bundle.sequence());
        }
        if bundle.is_none()
            && let Trust::Bundle(path) = &self.config.trust
        {
            // Checked now, though used later: a mistake should show at start-up.
            self.configured_bundle(path)?;
        }
        self.load_federation();
        let now = self.clock.wall();
        let stored = self.load_svid(now)?;
        let pending = self.state.pending_key()?;
        match (&stored, pending) {
            // A crash fell between storing the SVID and forgetting its key.
            (Some(stored), Some(pending)) if stored.key.is(&pending) => {
                let path = self.config.state_dir.as_path();
                self.state.forget_pending_key().map_err(|error| files::io_error(path, error))?;
            }
            (_, pending) => self.held.lock().pending = pending,
        }
        match stored {
            Some(stored) => {
                let renew_after = pace::renew_after(stored.renew_after, now, stored.svid.not_after());
                // One that is due keeps its past date, so that it is renewed at once.
                let renew_after = stored.renew_after.map_or(renew_after, |told| told.min(renew_after));
                info!(id = %stored.svid.id(), "identity restored from the state directory");
                self.publish(Arc::new(stored.svid), stored.key, renew_after);
                Ok(())
            }
            None => self.can_prove(),
        }
    }

    fn load_bundle(&self) -> Result<Option<Bundle>, StartError> {
        let why = match self.state.bundle()? {
            None => return Ok(None),
            Some(Ok(bundle)) if self.config.identity.is_member_of(bundle.trust_domain()) => {
                return Ok(Some(bundle));
            }
            Some(Ok(bundle)) => format!("it belongs to the trust domain {}", bundle.trust_domain()),
            Some(Err(why)) => why,
        };
        let path = self.state.set_bundle_aside()?;
        warn!(path = %path.display(), "the stored trust bundle is set aside: {why}");
        Ok(None)
    }

    fn load_svid(&self, now: SystemTime) -> Result<Option<StoredSvid>, StartError> {
        let why = match self.state.svid()? {
            None => return Ok(None),
            Some(Err(why)) => why,
            Some(Ok(stored)) => match self.check_stored(&stored, now) {
                Ok(()) => return Ok(Some(stored)),
                Err(why) => why,
            },
        };
        let path = self.state.set_svid_aside()?;
        warn!(path = %path.display(), "the stored SVID is set aside and a new one asked for: {why}");
        Ok(None)
    }

    fn check_stored(&self, stored: &StoredSvid, now: SystemTime) -> Result<(), String> {
        if *stored.svid.id() != self.config.identity {
            return Err(format!("it is of {}, not of {}", stored.svid.id(), self.config.identity));
        }
        let Ok(Anchor::Bundles(bundles)) = self.anchor() else {
            return Err("there is no trust bundle to verify it with".to_owned());
        };
        match stored.svid.verify_against(&bundles, now) {
            // Then our clock is wrong, not the SVID: a machine without a clock battery boots in the past. Its users refuse
            // it until the clock is right; losing it would cost a join token.
            Ok(()) | Err(VerifyError::NotYetValid { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// What must vouch for the control plane. The bundle that it gave us replaces the configured trust for good, or else
    /// a root that was rotated out for a reason could come back through an old file.
    pub(crate) fn anchor(&self) -> Result<Anchor, StartError> {
        if let Some(bundle) = self.held.lock().bundle.clone() {
            return Ok(Anchor::Bundles(Bundles::default().with(bundle)));
        }
        match &self.config.trust {
            Trust::Bundle(path) => self.configured_bundle(path).map(Bundles::of).map(Anchor::Bundles),
            Trust::RootSha256(pin) => Ok(Anchor::Pinned(*pin)),
        }
    }

    /// The file whose bundle decides, if it is not the configured one.
    pub(crate) fn stored_bundle(&self) -> Option<std::path::PathBuf> {
        self.held.lock().bundle.as_ref().map(|_| self.state.bundle_path())
    }

    fn configured_bundle(&self, path: &Path) -> Result<Bundle, StartError> {
        let pem = std::fs::read(path)
            .map_err(|error| StartError::NoTrustBundle { path: path.to_owned(), error })?;
        Bundle::from_pem(self.config.control_plane_id.trust_domain(), 0, &pem)
            .map_err(|error| StartError::TrustBundle { path: path.to_owned(), error })
    }

    /// Whether there is what proves who we are.
    pub(crate) fn can_prove(&self) -> Result<(), StartError> {
        match &self.config.attestation {
            Attestation::X509Pop { certificate, key } => Possession::load(certificate, key).map(drop),
            Attestation::Process => Ok(()),
            _ => self.token().map(drop),
        }
    }

    /// The token that proves who we are: read anew from its file, because people, or kubelet, replace it; or as its descriptor
    /// has brought it.
    pub(crate) fn token(&self) -> Result<Zeroizing<String>, StartError> {
        match &self.config.attestation {
            Attestation::JoinToken(path) => {
                let token =
                    |problem: &str| StartError::Token { path: path.clone(), problem: problem.to_owned() };
                let bytes = files::read_private(path)?.ok_or_else(|| token("there is no join token"))?;
                parse_token(&bytes).map_err(token)
            }
            Attestation::JoinTokenDescriptor(descriptor) => {
                let handed_over = self.held.lock().handed_over.clone();
                let handed_over = handed_over.unwrap_or_else(|| Err("it was not read".to_owned()));
                handed_over.map_err(|problem| StartError::Descriptor { descriptor: *descriptor, problem })
            }
            Attestation::ServiceAccountToken(path) | Attestation::OidcToken(path) => {
                let unfit = |problem: String| StartError::Proof { path: path.clone(), problem };
                let bytes = files::read_public(path).map_err(|error| unfit(error.to_string()))?;
                parse_token(&bytes).map_err(|problem| unfit(problem.to_owned()))
            }
            Attestation::Process => Err(StartError::Address(self.config.control_plane.clone())),
            Attestation::X509Pop { certificate, .. } => {
                let problem = "a certificate is no token".to_owned();
                Err(StartError::Machine { path: certificate.clone(), problem })
            }
        }
    }

    /// Takes the join token from its descriptor: once, for a pipe gives it once.
    fn take_over_token(&self) {
        if let Attestation::JoinTokenDescriptor(descriptor) = self.config.attestation {
            let token =
                descriptor::read(descriptor).and_then(|bytes| parse_token(&bytes).map_err(str::to_owned));
            self.held.lock().handed_over = Some(token);
        }
    }

    /// Whether there is a proof that has not been used up yet, as far as this process knows.
    pub(crate) fn has_fresh_proof(&self) -> bool {
        if self.config.attestation.is_repeated() {
            return self.can_prove().is_ok();
        }
        self.token().is_ok_and(|token| self.held.lock().used_token.as_ref() != Some(&token))
    }

    /// For a stored SVID whose stored bundle is missing.
    pub(crate) fn configured(&self) -> Option<Arc<Bundle>> {
        match &self.config.trust {
            Trust::Bundle(path) => self.configured_bundle(path).ok().map(Arc::new),
            Trust::RootSha256(_) => None,
        }
    }
}

/// More than any token that a control plane takes.
const MAX_TOKEN: usize = 8 * 1024;

fn parse_token(bytes: &[u8]) -> Result<Zeroizing<String>, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the token is not text")?.trim();
    if text.is_empty()
        || text.len() > MAX_TOKEN
        || text.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return Err("it does not hold one token");
    }
    Ok(Zeroizing::new(text.to_owned()))
}
