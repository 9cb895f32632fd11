//! The CAs: one root, and the issuing CA that signs leaves and replaces itself.
//!
//! An issuing CA is *prepared* at half of its predecessor's life, proven by a throwaway leaf, made *active* at two thirds, and
//! the old one is *retired*: its key is deleted at once, its certificate stays in the chains of its last leaves. The roots do
//! not change, so no peer has to learn anything first. The root's key is read only to sign an issuing CA.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use postern_svid::{Bundle, BundleError, Bundles, Clock, TrustDomain};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::check;
use crate::keys::{KeyError, KeyStore};
use crate::profile::{self, ISSUING_KEY, ProfileError, ROOT_KEY, Signer, Validity};
use crate::store::{self, AuthorityChange, Kind, State, Store, StoreError};

/// How long CAs live.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// The root.
    pub root: Duration,
    /// An issuing CA; at least six times the leaves'.
    pub issuing: Duration,
    /// The longest life of a leaf.
    pub leaf: Duration,
}

impl Lives {
    /// Ten years for the root, which is replaced by hand; a week for the issuing CA, which replaces itself.
    pub fn with_leaf(leaf: Duration) -> Self {
        const DAY: u64 = 86_400;
        let issuing = Duration::from_secs(7 * DAY).max(leaf.saturating_mul(6));
        Self { root: Duration::from_secs(3_650 * DAY), issuing, leaf }
    }
}

/// The root and the issuing CAs of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    store: Arc<dyn Store>,
    keys: Arc<dyn KeyStore>,
    clock: Arc<dyn Clock>,
    lives: Lives,
    root: Ca,
    bundles: Bundles,
    slots: RwLock<Slots>,
    /// One rotation at a time.
    turning: Mutex<()>,
}

/// A CA's certificate and what the store knows of it.
struct Ca {
    label: String,
    certificate: CertificateDer<'static>,
    key_id: Vec<u8>,
    spki: [u8; 32],
    validity: Validity,
}

/// An issuing CA that can sign.
pub struct Issuing {
    ca: Ca,
    signer: Signer,
}

struct Slots {
    active: Arc<Issuing>,
    prepared: Option<Arc<Issuing>>,
}

/// What a round of maintenance did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// A successor is ready.
    Prepared,
    /// The successor signs from now on.
    Activated,
}

impl Issuing {
    /// The certificate that follows a leaf in its chain.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.ca.certificate
    }

    /// Its subject key identifier.
    pub fn key_id(&self) -> &[u8] {
        &self.ca.key_id
    }

    /// The last second of its life.
    pub fn not_after(&self) -> SystemTime {
        self.ca.validity.not_after
    }

    /// What signs.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }
}

impl Authority {
    /// Takes up the CAs in `store`, or makes them if it holds none.
    pub fn open(
        trust_domain: TrustDomain,
        store: Arc<dyn Store>,
        keys: Arc<dyn KeyStore>,
        clock: Arc<dyn Clock>,
        lives: Lives,
    ) -> Result<Self, AuthorityError> {
        let rows = store.authorities()?;
        let roots: Vec<_> = rows.iter().filter(|r| r.kind == Kind::Root).collect();
        let now = clock.wall();
        let root = match roots.as_slice() {
            [] if rows.is_empty() => make_root(&trust_domain, store.as_ref(), keys.as_ref(), lives, now)?,
            [one] => Ca::from_row(one)?,
            _ => return Err(AuthorityError::Damaged("it holds issuing CAs but not exactly one root")),
        };
        if now > root.validity.not_after {
            return Err(AuthorityError::RootExpired);
        }
        // Signed with once here, so that a wrong, missing or readable-by-all key shows at the start and not in half a week.
        let root_signer = root.signer(&trust_domain, keys.as_ref(), ROOT_KEY)?;
        if store.bundle_sequence()? == 0 {
            store.raise_bundle_sequence(1)?;
        }
        let bundle =
            Bundle::new(trust_domain.clone(), store.bundle_sequence()?, vec![root.certificate.clone()])?;
        let bundles = Bundles::of(bundle);

        let usable = |state| {
            rows.iter()
                .rev()
                .find(|r| r.kind == Kind::Issuing && r.state == state && r.not_after > now)
                .map(|row| -> Result<_, AuthorityError> {
                    let ca = Ca::from_row(row)?;
                    let signer = ca.signer(&trust_domain, keys.as_ref(), ISSUING_KEY)?;
                    let issuing = Issuing { ca, signer };
                    check::issuing(&trust_domain, &issuing, &bundles, now)?;
                    Ok(Arc::new(issuing))
                })
                .transpose()
        };
        let prepared = usable(State::Prepared)?;
        let active = match usable(State::Active)? {
            Some(active) => active,
            None => {
                // The first start, or one after a sleep longer than an issuing CA's life.
                let made = make_issuing(&trust_domain, keys.as_ref(), &root, &root_signer, lives, now)?;
                check::issuing(&trust_domain, &made, &bundles, now)?;
                let set = stale(&rows, now);
                let add = vec![made.ca.row(Kind::Issuing, State::Active)];
                let reason = "no active issuing CA at the start";
                store.change_authorities(AuthorityChange { at: now, reason, add, set })?;
                Arc::new(made)
            }
        };
        for retired in rows.iter().filter(|r| r.kind == Kind::Issuing && r.state == State::Retired) {
            keys.remove(&retired.label)?;
        }
        let slots = RwLock::new(Slots { active, prepared });
        Ok(Self { trust_domain, store, keys, clock, lives, root, bundles, slots, turning: Mutex::new(()) })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The issuing CA that signs now.
    pub fn active(&self) -> Arc<Issuing> {
        self.slots.read().active.clone()
    }

    /// The root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root.certificate
    }

    /// End of the root's life.
    pub fn root_not_after(&self) -> SystemTime {
        self.root.validity.not_after
    }

    /// The trust bundle, as the set that verification wants.
    pub fn bundles(&self) -> &Bundles {
        &self.bundles
    }

    /// The trust bundle of this trust domain.
    pub fn bundle(&self) -> Arc<Bundle> {
        let own = self.bundles.of_trust_domain(&self.trust_domain);
        own.expect("made with this trust domain's bundle").clone()
    }

    /// Whether `fingerprint` is that of a CA's key, which no leaf may have.
    pub fn holds_key(&self, fingerprint: &[u8; 32]) -> bool {
        let slots = self.slots.read();
        let issuing = [Some(&slots.active), slots.prepared.as_ref()];
        self.root.spki == *fingerprint || issuing.iter().flatten().any(|i| i.ca.spki == *fingerprint)
    }

    /// Moves the issuing CA on if its time has come. Cheap when it has not; called often.
    pub fn maintain(&self) -> Result<Option<Turn>, AuthorityError> {
        let _one = self.turning.lock();
        let now = self.clock.wall();
        let (active, prepared) = {
            let slots = self.slots.read();
            (slots.active.clone(), slots.prepared.clone())
        };
        let Validity { not_before, not_after } = active.ca.validity;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let age = now.duration_since(not_before).unwrap_or_default();
        let left = not_after.duration_since(now).unwrap_or_default();
        let due = age >= life * 2 / 3 || left < self.lives.leaf * 2;
        match prepared {
            Some(next) if due => {
                check::issuing(&self.trust_domain, &next, &self.bundles, now)?;
                let set =
                    vec![(active.ca.label.clone(), State::Retired), (next.ca.label.clone(), State::Active)];
                let reason = "two thirds of the active one's life are over";
                self.store.change_authorities(AuthorityChange { at: now, reason, add: Vec::new(), set })?;
                *self.slots.write() = Slots { active: next, prepared: None };
                self.keys.remove(&active.ca.label)?;
                Ok(Some(Turn::Activated))
            }
            None if due || age >= life / 2 => {
                let root = self.root.signer(&self.trust_domain, self.keys.as_ref(), ROOT_KEY)?;
                let next =
                    make_issuing(&self.trust_domain, self.keys.as_ref(), &self.root, &root, self.lives, now)?;
                check::issuing(&self.trust_domain, &next, &self.bundles, now)?;
                let add = vec![next.ca.row(Kind::Issuing, State::Prepared)];
                let reason = "half of the active one's life is over";
                self.store.change_authorities(AuthorityChange { at: now, reason, add, set: Vec::new() })?;
                self.slots.write().prepared = Some(Arc::new(next));
                Ok(Some(Turn::Prepared))
            }
            _ => Ok(None),
        }
    }
}

/// Why there is no working CA.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The root does not make a bundle.
    #[error("the stored root: {0}")]
    Bundle(#[from] BundleError),
    /// A CA did not pass its own test.
    #[error("the CA's own test failed: {0}")]
    Check(#[from] check::CheckError),
    /// What is stored contradicts itself.
    #[error("the CA's store is damaged: {0}; restore the state directory from a backup")]
    Damaged(&'static str),
    /// A key is missing or open to others.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key is another than the certificate's.
    #[error(
        "the key {0} does not belong to its certificate; restore the state directory, keys and database together, from a backup"
    )]
    KeyMismatch(String),
    /// A certificate could not be built.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Nothing can be issued any more.
    #[error(
        "the root has expired (or the clock is wrong). If the clock is right, every workload needs a new trust bundle: use a new state directory"
    )]
    RootExpired,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Ca {
    fn from_row(row: &store::Authority) -> Result<Self, AuthorityError> {
        let damaged = AuthorityError::Damaged("a CA's certificate cannot be read or is not the one noted");
        let Ok((rest, parsed)) = X509Certificate::from_der(&row.certificate) else { return Err(damaged) };
        let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let dates = parsed.validity();
        let noted = [row.not_before, row.not_after].map(|at| i64::try_from(seconds(at)).unwrap_or(0));
        if !rest.is_empty() || noted != [dates.not_before.timestamp(), dates.not_after.timestamp()] {
            return Err(damaged);
        }
        Ok(Self {
            label: row.label.clone(),
            spki: crate::csr::fingerprint(parsed.public_key().raw),
            certificate: CertificateDer::from(row.certificate.clone()),
            key_id: row.key_id.clone(),
            validity: Validity { not_before: row.not_before, not_after: row.not_after },
        })
    }

    fn row(&self, kind: Kind, state: State) -> store::Authority {
        store::Authority {
            kind,
            state,
            label: self.label.clone(),
            key_id: self.key_id.clone(),
            certificate: self.certificate.to_vec(),
            not_before: self.validity.not_before,
            not_after: self.validity.not_after,
        }
    }

    fn made(label: String, key: &KeyPair, certificate: CertificateDer<'static>, validity: Validity) -> Self {
        let spki = crate::csr::fingerprint(&rcgen::PublicKeyData::subject_public_key_info(key));
        Self { label, key_id: profile::key_id(key), spki, certificate, validity }
    }

    fn signer(
        &self,
        td: &TrustDomain,
        keys: &dyn KeyStore,
        algorithm: &'static rcgen::SignatureAlgorithm,
    ) -> Result<Signer, AuthorityError> {
        let key = keys.load(&self.label, algorithm)?;
        let signer = Signer::new(td, &self.label, self.key_id.clone(), key)?;
        if crate::csr::fingerprint(&signer.spki()) != self.spki {
            return Err(AuthorityError::KeyMismatch(self.label.clone()));
        }
        Ok(signer)
    }
}

fn make_root(
    td: &TrustDomain,
    store: &dyn Store,
    keys: &dyn KeyStore,
    lives: Lives,
    now: SystemTime,
) -> Result<Ca, AuthorityError> {
    let label = format!("root-{}", profile::ca_label()?);
    let key = keys.create(&label, ROOT_KEY)?;
    let validity = Validity::from_now(now, lives.root);
    let certificate = profile::root(td, &label, &key, validity)?;
    let root = Ca::made(label, &key, certificate, validity);
    let add = vec![root.row(Kind::Root, State::Active)];
    store.change_authorities(AuthorityChange { at: now, reason: "first start", add, set: Vec::new() })?;
    Ok(root)
}

fn make_issuing(
    td: &TrustDomain,
    keys: &dyn KeyStore,
    root: &Ca,
    root_signer: &Signer,
    lives: Lives,
    now: SystemTime,
) -> Result<Issuing, AuthorityError> {
    let label = format!("issuing-{}", profile::ca_label()?);
    let key = keys.create(&label, ISSUING_KEY)?;
    let validity = Validity::from_now(now, lives.issuing).ending_by(root.validity.not_after);
    let certificate = profile::issuing(td, &label, &key, root_signer, validity)?;
    let ca = Ca::made(label, &key, certificate, validity);
    let signer = Signer::new(td, &ca.label, ca.key_id.clone(), key)?;
    Ok(Issuing { ca, signer })
}

/// Issuing CAs that a new first one replaces.
fn stale(rows: &[store::Authority], now: SystemTime) -> Vec<(String, State)> {
    rows.iter()
        .filter(|r| r.kind == Kind::Issuing && r.state != State::Retired)
        .filter(|r| r.state == State::Active || r.not_after <= now)
        .map(|r| (r.label.clone(), State::Retired))
        .collect()
}

#[cfg(test)]
mod tests;
