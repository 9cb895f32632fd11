//! One CA: its certificate, its key, its row in the store, and how it is made.

use std::time::SystemTime;

use postern_svid::TrustDomain;
use rcgen::{PublicKeyData as _, SignatureAlgorithm};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::{AuthorityError, Lives, roots, slots};
use crate::keys::{Key, KeyStore};
use crate::profile::{self, ISSUING_KEY, ROOT_KEY, Signer, Validity};
use crate::store::{self, Kind, State};

/// A CA's certificate and what the store knows of it.
pub(super) struct Ca {
    pub(super) kind: Kind,
    pub(super) label: String,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key_id: Vec<u8>,
    pub(super) spki: [u8; 32],
    /// Key identifier of the CA that signed it; a root's own; of a tier that of its root.
    pub(super) issuer: Vec<u8>,
    /// Of a tier: those between it and its root.
    pub(super) between: Vec<CertificateDer<'static>>,
    pub(super) validity: Validity,
    algorithm: &'static SignatureAlgorithm,
}

/// An issuing CA that can sign.
pub struct Issuing {
    pub(super) ca: Ca,
    pub(super) signer: Signer,
    /// Those between it and its root.
    pub(super) above: Vec<CertificateDer<'static>>,
}

impl Issuing {
    /// The certificate that follows a leaf in its chain.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.ca.certificate
    }

    /// What follows a leaf in its chain: it, and those between it and its root.
    pub fn chain(&self) -> impl Iterator<Item = CertificateDer<'static>> {
        std::iter::once(&self.ca.certificate).chain(&self.above).cloned()
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

impl Ca {
    pub(super) fn from_row(row: &store::Authority) -> Result<Self, AuthorityError> {
        let damaged = AuthorityError::Damaged("a CA's certificate cannot be read or is not the one noted");
        let Ok((rest, parsed)) = X509Certificate::from_der(&row.certificate) else { return Err(damaged) };
        let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let Some(algorithm) = profile::algorithm(parsed.public_key()) else { return Err(damaged) };
        let dates = parsed.validity();
        let noted = [row.not_before, row.not_after].map(|at| i64::try_from(seconds(at)).unwrap_or(0));
        let key_id = profile::subject_key_id(&parsed);
        let between = match row.kind {
            Kind::Tier => match between(rest) {
                Some(between) => between,
                None => return Err(damaged),
            },
            _ if rest.is_empty() => Vec::new(),
            _ => return Err(damaged),
        };
        let own = row.certificate.get(..row.certificate.len() - rest.len()).unwrap_or_default();
        if own.is_empty()
            || key_id.as_ref() != Some(&row.key_id)
            || noted != [dates.not_before.timestamp(), dates.not_after.timestamp()]
        {
            return Err(damaged);
        }
        let last = between.last().and_then(|last| X509Certificate::from_der(last).ok());
        let signed = last.as_ref().map_or(&parsed, |(_, last)| last);
        Ok(Self {
            kind: row.kind,
            label: row.label.clone(),
            spki: crate::csr::fingerprint(parsed.public_key().raw),
            certificate: CertificateDer::from(own.to_vec()),
            key_id: row.key_id.clone(),
            // A root of somebody else's making may leave out that it is its own.
            issuer: authority_key_id(signed).unwrap_or_else(|| row.key_id.clone()),
            between,
            validity: Validity { not_before: row.not_before, not_after: row.not_after },
            algorithm,
        })
    }

    /// What a chain below it carries of it: of a root, which a peer has, nothing.
    pub(super) fn carried(&self) -> Vec<CertificateDer<'static>> {
        match self.kind {
            Kind::Root => Vec::new(),
            _ => std::iter::once(&self.certificate).chain(&self.between).cloned().collect(),
        }
    }

    pub(super) fn row(&self, state: State) -> store::Authority {
        store::Authority {
            kind: self.kind,
            state,
            label: self.label.clone(),
            key_id: self.key_id.clone(),
            certificate: self.certificate.to_vec(),
            not_before: self.validity.not_before,
            not_after: self.validity.not_after,
            // Known when it is written.
            since: self.validity.not_before,
            sequence: 0,
            tainted: None,
            replica: None,
            is_offline: false,
        }
    }

    /// `issuer` signed it; a root is its own.
    fn made(
        kind: Kind,
        label: String,
        key: &Key,
        certificate: CertificateDer<'static>,
        validity: Validity,
        issuer: Option<&Self>,
    ) -> Self {
        let spki = crate::csr::fingerprint(&key.subject_public_key_info());
        let algorithm = key.algorithm();
        let key_id = profile::key_id(key);
        let issuer = issuer.map_or(&key_id, |issuer| &issuer.key_id).clone();
        Self { kind, label, key_id, spki, issuer, between: Vec::new(), certificate, validity, algorithm }
    }

    pub(super) fn signer(&self, keys: &dyn KeyStore) -> Result<Signer, AuthorityError> {
        let key = keys.load(&self.label, self.algorithm)?;
        let signer = Signer::new(&self.certificate, key)?;
        if crate::csr::fingerprint(&signer.spki()) != self.spki {
            return Err(AuthorityError::KeyMismatch(self.label.clone()));
        }
        Ok(signer)
    }
}

/// A root that is new, its key stored and its row not yet.
pub(super) fn make_root(
    td: &TrustDomain,
    keys: &dyn KeyStore,
    lives: Lives,
    now: SystemTime,
) -> Result<Ca, AuthorityError> {
    let label = format!("{}{}", roots::ROOT, profile::ca_label()?);
    let key = keys.create(&label, ROOT_KEY)?;
    let validity = Validity::from_now(now, lives.root);
    let certificate = profile::root(td, &label, &key, validity)?;
    Ok(Ca::made(Kind::Root, label, &key, certificate, validity, None))
}

/// The certificates in `der`, one after the other.
fn between(mut der: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).ok()?;
        found.push(CertificateDer::from(der.get(..der.len() - rest.len())?.to_vec()));
        der = rest;
    }
    Some(found)
}

pub(super) fn authority_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(found) => {
            found.key_identifier.as_ref().map(|id| id.0.to_vec())
        }
        _ => None,
    })
}

/// An issuing CA under `parent` that is new, its key stored and its row not yet.
pub(super) fn make_issuing(
    td: &TrustDomain,
    keys: &dyn KeyStore,
    parent: &Ca,
    parent_signer: &Signer,
    lives: Lives,
    now: SystemTime,
) -> Result<Issuing, AuthorityError> {
    let label = format!("{}{}", slots::ISSUING, profile::ca_label()?);
    let key = keys.create(&label, ISSUING_KEY)?;
    let validity = Validity::from_now(now, lives.issuing).ending_by(parent.validity.not_after);
    let certificate = profile::issuing(td, &label, &key, parent_signer, validity)?;
    let ca = Ca::made(Kind::Issuing, label, &key, certificate, validity, Some(parent));
    let signer = Signer::new(&ca.certificate, key)?;
    Ok(Issuing { ca, signer, above: parent.carried() })
}
