//! What comes from an offline root by file: the root's certificate, and the tiers that it signs. Everything is proven before it is
//! stored, by a throwaway leaf at the end of the whole chain.
//!
//! These work on the store, whether a control plane runs on it or not: one that does takes up what it finds.

mod fit;

use std::path::Path;
use std::time::SystemTime;

use postern_svid::TrustDomain;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::AuthorityError;
use super::ca::authority_key_id;
use super::existing::{Fit, RootError, certificate_of, certificates_of, row, try_out};
use super::tiers::{TIER, label_of_root};
use crate::csr;
use crate::keys::KeyStore;
use crate::profile::{self, Signer, TIER_KEY};
use crate::store::{Authority as Row, AuthorityChange, Kind, State, Store};
use fit::{Tier, seconds};

/// CAs between a tier and its root: a company's intermediate, and one more.
const MAX_BETWEEN: usize = 2;
/// In a file: a chain, and what else somebody put there.
const MAX_CERTIFICATES: usize = 16;
/// Requests that wait: the next tier's and spares'.
const MAX_REQUESTED: usize = 4;
/// Roots in a bundle.
const MAX_ROOTS: usize = 8;

/// A request for a tier, which an offline root has to sign.
#[derive(Clone, Debug)]
pub struct TierRequest {
    /// The tier's label.
    pub label: String,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
    /// Whether it was made just now.
    pub is_new: bool,
}

/// A tier whose certificate was taken.
#[derive(Clone, Debug)]
pub struct ImportedTier {
    /// The tier's label.
    pub label: String,
    /// SHA-256 over its certificate.
    pub sha256: String,
    /// The label of its root.
    pub root: String,
    /// End of its life.
    pub not_after: SystemTime,
    /// Whether it signs from now on.
    pub is_active: bool,
}

/// Why a root or tier is not taken. The text names the file, what is wrong and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The file.
    #[error(transparent)]
    File(#[from] RootError),
    /// The state that the CA is in.
    #[error("{0}")]
    State(String),
}

impl From<crate::store::StoreError> for ImportError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Authority(error.into())
    }
}

impl From<crate::keys::KeyError> for ImportError {
    fn from(error: crate::keys::KeyError) -> Self {
        Self::Authority(error.into())
    }
}

impl From<profile::ProfileError> for ImportError {
    fn from(error: profile::ProfileError) -> Self {
        Self::Authority(error.into())
    }
}

/// The request that waits for an offline root's signature; makes one, key and all, if there is none or if `another` is wanted.
pub fn request_tier(
    td: &TrustDomain,
    store: &dyn Store,
    keys: &dyn KeyStore,
    another: bool,
    now: SystemTime,
) -> Result<TierRequest, ImportError> {
    let rows = store.authorities()?;
    if !rows.iter().any(|row| row.kind == Kind::Root && row.is_offline && row.state != State::Retired) {
        return Err(ImportError::State(
            "no root here is offline, so nothing signs a tier. A new CA: postern ca init --config FILE --root-cert root.pem. One that is there: postern ca root import root.pem (docs/offline-root.md)"
                .to_owned(),
        ));
    }
    let requested = rows.iter().filter(|row| row.kind == Kind::Tier && row.state == State::Requested);
    let requested = requested.filter(|row| row.tainted.is_none());
    let requested: Vec<&Row> = requested.collect();
    if let Some(row) = requested.first().filter(|_| !another) {
        return Ok(TierRequest { label: row.label.clone(), csr: row.certificate.clone(), is_new: false });
    }
    if requested.len() >= MAX_REQUESTED {
        return Err(ImportError::State(format!(
            "{MAX_REQUESTED} requests wait for their signature already; postern ca status has them"
        )));
    }
    let label = format!("{TIER}{}", profile::ca_label()?);
    let key = keys.create(&label, TIER_KEY)?;
    let csr = profile::tier_request(td, &label, &key)?;
    let request = Row {
        kind: Kind::Tier,
        state: State::Requested,
        label: label.clone(),
        key_id: profile::key_id(&key),
        certificate: csr.clone(),
        not_before: now,
        not_after: now,
        since: now,
        sequence: 0,
        tainted: None,
        replica: None,
        is_offline: false,
    };
    let change = AuthorityChange::new(now, "a tier is requested");
    store.change_authorities(AuthorityChange { add: vec![request], ..change })?;
    // A control plane that starts at this very moment clears keys away that have no row.
    keys.load(&label, TIER_KEY)?;
    Ok(TierRequest { label, csr, is_new: true })
}

/// Takes the certificate that an offline root, or a CA below it, has signed for a request. It signs from now on, unless it is
/// kept as a `spare`, or its root does not sign yet.
pub fn import_tier(
    td: &TrustDomain,
    store: &dyn Store,
    keys: &dyn KeyStore,
    file: &Path,
    spare: bool,
    now: SystemTime,
) -> Result<ImportedTier, ImportError> {
    let unfit = |what: String| ImportError::File(RootError::Unfit { file: file.to_owned(), what });
    let found = certificates_of(file, MAX_CERTIFICATES)?;
    let rows = store.authorities()?;
    let roots: Vec<&Row> = rows.iter().filter(|row| row.kind == Kind::Root).collect();
    // Some CAs hand out the whole chain.
    let is_root = |der: &CertificateDer<'_>| roots.iter().any(|row| row.certificate == **der);
    let mut carried = Vec::new();
    for der in found {
        if !is_root(&der) && !carried.contains(&der) {
            carried.push(der);
        }
    }
    let Some((tier, between)) = carried.split_first() else {
        return Err(unfit(
            "it is the root itself; the tier's certificate is what the root has signed".to_owned(),
        ));
    };
    if between.len() > MAX_BETWEEN {
        return Err(unfit(format!("more than {MAX_BETWEEN} CAs between the tier and its root")));
    }
    let fit = Tier::of(td, tier, now).map_err(unfit)?;
    let request = fit.request(&rows).map_err(unfit)?;
    let root = root_of(&fit, between, &roots).map_err(unfit)?;
    if fit.validity.not_after > root.not_after {
        return Err(unfit("it ends after its root: sign it for a shorter time".to_owned()));
    }
    for der in between {
        let end =
            X509Certificate::from_der(der).ok().map(|(_, parsed)| parsed.validity().not_after.timestamp());
        if end.and_then(seconds).is_none_or(|end| end < fit.validity.not_after) {
            return Err(unfit(
                "a CA between it and its root ends before it: sign it for a shorter time".to_owned(),
            ));
        }
    }
    let key = keys.load(&request.label, TIER_KEY)?;
    let signer = Signer::new(tier, key).map_err(|error| unfit(error.to_string()))?;
    let certificate = CertificateDer::from(root.certificate.clone());
    try_out(td, &certificate, &carried, &signer, fit.validity, now).map_err(|error| {
        unfit(format!("a chain made below it is refused: {error}. Sign it as docs/offline-root.md says"))
    })?;

    let is_active = root.state == State::Active && !spare;
    let add = Row {
        state: if is_active { State::Active } else { State::Prepared },
        key_id: fit.key_id,
        certificate: carried.iter().flat_map(|der| der.iter().copied()).collect(),
        not_before: fit.validity.not_before,
        not_after: fit.validity.not_after,
        ..request.clone()
    };
    let before = rows.iter().filter(|row| row.kind == Kind::Tier && row.state == State::Active);
    let set = before.filter(|_| is_active).map(|row| (row.label.clone(), State::Retired)).collect();
    let change = AuthorityChange::new(now, format!("signed by {}, from a file", root.label));
    let (label, root) = (request.label.clone(), root.label.clone());
    store.change_authorities(AuthorityChange { add: vec![add], set, ..change })?;
    let sha256 = crate::hex(&csr::fingerprint(tier));
    Ok(ImportedTier { label, sha256, root, not_after: fit.validity.not_after, is_active })
}

/// The certificate in a file, if it is fit for a root whose key is kept offline.
pub fn check_root(
    td: &TrustDomain,
    file: &Path,
    now: SystemTime,
) -> Result<CertificateDer<'static>, RootError> {
    let der = certificate_of(file)?;
    match Fit::of(td, &der, 2, now) {
        Ok(_) => Ok(der),
        Err(what) => Err(RootError::Unfit { file: file.to_owned(), what }),
    }
}

/// Takes the certificate of a root whose key is kept offline: as the root of a CA that has none, else as the one that is to
/// follow the active one. Gives its row, and whether it is new.
pub fn import_root(
    td: &TrustDomain,
    store: &dyn Store,
    file: &Path,
    now: SystemTime,
) -> Result<(Row, bool), ImportError> {
    let der = certificate_of(file)?;
    let rows = store.authorities()?;
    let roots = || rows.iter().filter(|row| row.kind == Kind::Root);
    if let Some(there) = roots().find(|row| row.certificate == *der) {
        if there.state == State::Retired {
            return Err(ImportError::State(format!("{} was removed, and does not come back", there.label)));
        }
        if !there.is_offline {
            return Err(ImportError::State(format!("{} is a root here already, with its key", there.label)));
        }
        return Ok((there.clone(), false));
    }
    let fit = Fit::of(td, &der, 2, now);
    let fit = fit.map_err(|what| RootError::Unfit { file: file.to_owned(), what })?;
    if let Some(next) = roots().find(|row| matches!(row.state, State::Prepared | State::Published)) {
        return Err(ImportError::State(format!("{} is prepared already; activate or remove it", next.label)));
    }
    if roots().filter(|row| row.state != State::Retired).count() >= MAX_ROOTS {
        return Err(ImportError::State(super::gates::full()));
    }
    let is_first = roots().all(|row| row.state == State::Retired);
    let state = if is_first { State::Active } else { State::Prepared };
    let add = row(label_of_root(&der), &der, fit.key_id, fit.validity, state, true);
    let change = AuthorityChange::new(now, "a root that is offline, from a file");
    store.change_authorities(AuthorityChange { add: vec![add.clone()], publishes: is_first, ..change })?;
    Ok((add, true))
}

/// The root that signed the tier, or the last CA above it.
fn root_of<'a>(
    fit: &Tier,
    between: &[CertificateDer<'static>],
    roots: &[&'a Row],
) -> Result<&'a Row, String> {
    let issuer = match between.last() {
        None => fit.issuer.clone(),
        Some(last) => X509Certificate::from_der(last).ok().and_then(|(_, last)| authority_key_id(&last)),
    };
    let issuer = issuer.ok_or("it has no authority key id, which says whose key has signed it")?;
    let found = roots.iter().find(|row| row.key_id == issuer);
    let usable = |row: &&&&Row| row.is_offline && row.tainted.is_none();
    match found
        .filter(|row| !matches!(row.state, State::Draining | State::Retired))
        .filter(|row| usable(&row))
    {
        Some(row) => Ok(row),
        None => {
            let known = roots.iter().filter(|row| row.is_offline).map(|row| row.label.as_str());
            Err(format!(
                "it is signed by {}, which is no offline root that signs here or will ({}). If a CA between has signed it, put that one's certificate behind it in the file",
                crate::hex(&issuer),
                known.collect::<Vec<_>>().join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests;
