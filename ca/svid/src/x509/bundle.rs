//! Trust bundles: the roots of one trust domain, and the set of bundles that a process knows.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, TrustAnchor};

use super::cert::{Facts, Read};
use super::error::VerifyError;
use super::lint;
use super::revoked::{Revocations, Revoked};
use crate::jwt::JwtKeys;
use crate::{SpiffeId, TrustDomain};

/// Rotation needs two, a merger of CAs perhaps four. Bundles that grow without end have broken other meshes.
const MAX_ROOTS: usize = 8;
/// Of a PEM file, comments included.
const MAX_PEM: usize = 256 * 1024;

/// The roots of one trust domain, each checked, at least one and at most eight; the keys that it signs
/// JWT-SVIDs with; and what it has revoked.
#[derive(Clone)]
pub struct Bundle {
    trust_domain: TrustDomain,
    sequence: u64,
    digest: [u8; 32],
    roots_digest: [u8; 32],
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<Anchor>,
    revocations: Arc<Revocations>,
    jwt_keys: JwtKeys,
}

/// A root in the two forms that verification needs.
#[derive(Clone)]
pub(super) struct Anchor {
    pub(super) anchor: TrustAnchor<'static>,
    pub(super) facts: Arc<Facts>,
}

impl Bundle {
    /// The bundle of `trust_domain` in its version `sequence`. Every root must be a CA with keyCertSign and, if it names
    /// a trust domain, name this one; duplicates fall away. Dates are not checked here: a root is refused by date when a
    /// chain leads to it.
    pub fn new(
        trust_domain: TrustDomain,
        sequence: u64,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        Self::read_by(Facts::parse, trust_domain, sequence, roots)
    }

    pub(super) fn read_by(
        read: Read,
        trust_domain: TrustDomain,
        sequence: u64,
        mut roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        if roots.len() > MAX_ROOTS {
            return Err(BundleError::TooManyRoots(roots.len()));
        }
        // One order everywhere, so that equal sets have equal digests.
        roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        let mut anchors = Vec::with_capacity(roots.len());
        for (index, root) in roots.iter().enumerate() {
            let facts = read(root)
                .and_then(|facts| lint::root(&facts, &trust_domain).map(|()| facts))
                .map_err(|error| BundleError::Root { index, error })?;
            let anchor = webpki::anchor_from_trusted_cert(root)
                .map_err(|_| BundleError::Root {
                    index,
                    error: VerifyError::BadEncoding("not fit for a trust anchor"),
                })?
                .to_owned();
            anchors.push(Anchor { anchor, facts: Arc::new(facts) });
        }
        let digest = digest(roots.iter().map(|root| root.as_ref()));
        Ok(Self {
            trust_domain,
            sequence,
            digest,
            roots_digest: digest,
            roots,
            anchors,
            revocations: Arc::default(),
            jwt_keys: JwtKeys::default(),
        })
    }

    /// This bundle with the taint and deny lists of its trust domain, in the place of what it had.
    #[must_use]
    pub fn with_revocations(mut self, revocations: Revocations) -> Self {
        self.digest = if revocations.is_empty() {
            self.roots_digest
        } else {
            let entries = revocations.iter().map(Revoked::digest);
            let entries: Vec<_> = entries.collect();
            // Both halves have one length, so that no entry can pass for a root.
            let lists = digest(entries.iter().map(|entry| &entry[..]));
            digest([&self.roots_digest[..], &lists[..]].into_iter())
        };
        self.revocations = Arc::new(revocations);
        self
    }

    /// This bundle with the keys of its trust domain for JWT-SVIDs, in the place of what it had. Its digest stays, as above.
    #[must_use]
    pub fn with_jwt_keys(mut self, keys: JwtKeys) -> Self {
        self.jwt_keys = keys;
        self
    }

    /// Reads the `CERTIFICATE` sections of `pem`; text around them is ignored, any other section is refused.
    pub fn from_pem(trust_domain: TrustDomain, sequence: u64, pem: &[u8]) -> Result<Self, BundleError> {
        if pem.len() > MAX_PEM {
            return Err(BundleError::Pem(format!("longer than {} KiB", MAX_PEM / 1024)));
        }
        if contains(pem, b"PRIVATE KEY-----") {
            return Err(BundleError::Pem(
                "it holds a private key, which does not belong into a trust bundle".to_owned(),
            ));
        }
        let roots = CertificateDer::pem_slice_iter(pem)
            .take(MAX_ROOTS + 1)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| BundleError::Pem(what_is_no_pem(&error)))?;
        Self::new(trust_domain, sequence, roots)
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        to_pem(&self.roots)
    }

    /// The trust domain whose identities these roots vouch for, and no other's.
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The version, which never goes down; 0 for a bundle from a file.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Equal exactly when roots and lists are: what one sequence may stand for. Without lists it is
    /// [`roots_digest`](Self::roots_digest).
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// SHA-256 over the roots, sorted, each preceded by its length in four bytes: equal exactly when the roots are. For
    /// those who are shown the roots alone.
    pub const fn roots_digest(&self) -> &[u8; 32] {
        &self.roots_digest
    }

    /// The roots, sorted by their bytes.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// What its trust domain no longer stands by.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The keys of its trust domain for JWT-SVIDs.
    pub const fn jwt_keys(&self) -> &JwtKeys {
        &self.jwt_keys
    }

    pub(super) fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("trust_domain", &self.trust_domain)
            .field("sequence", &self.sequence)
            .field("roots", &self.roots.len())
            .field("revocations", &self.revocations.iter().count())
            .finish()
    }
}

/// Bundles by trust domain. They are never merged: the trust domain in a leaf's id selects the one bundle that may vouch
/// for it, so no trust domain can make identities of another (SPIFFE Federation, 4.2). Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Bundles(Arc<BTreeMap<TrustDomain, Arc<Bundle>>>);

impl Bundles {
    /// A set of one bundle.
    pub fn of(bundle: Bundle) -> Self {
        Self::default().with(Arc::new(bundle))
    }

    /// This set with `bundle` in the place of whatever its trust domain had.
    #[must_use]
    pub fn with(&self, bundle: Arc<Bundle>) -> Self {
        let mut bundles = (*self.0).clone();
        bundles.insert(bundle.trust_domain.clone(), bundle);
        Self(Arc::new(bundles))
    }

    /// The bundle of `trust_domain`.
    pub fn of_trust_domain(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        self.0.get(trust_domain)
    }

    /// The bundle that may vouch for `id`.
    pub fn of_id(&self, id: &SpiffeId) -> Option<&Arc<Bundle>> {
        self.0.get(&id.trust_domain())
    }

    /// Whether every root of `older` is here too, for the same trust domain, and nothing is revoked that was not: then
    /// whatever verified against `older` verifies here.
    pub fn keep_all_of(&self, older: &Self) -> bool {
        older.iter().all(|older| {
            self.of_trust_domain(&older.trust_domain).is_some_and(|newer| {
                older.roots.iter().all(|root| newer.roots.contains(root))
                    && older.revocations.hold_all_of(&newer.revocations)
            })
        })
    }

    /// All bundles, by name of their trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.0.values()
    }
}

/// Why bytes are no trust bundle.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BundleError {
    /// Without a root nobody could be verified.
    Empty,
    /// Not PEM.
    Pem(String),
    /// A root that cannot be one.
    Root {
        /// Its place after sorting, from 0.
        index: usize,
        /// What is wrong with it.
        error: VerifyError,
    },
    /// More than eight.
    TooManyRoots(usize),
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the trust bundle holds no certificate"),
            Self::Pem(detail) => write!(f, "the trust bundle is not PEM: {detail}"),
            Self::Root { index, error } => {
                write!(f, "root {} of the trust bundle is unfit: {error}", index + 1)
            }
            Self::TooManyRoots(count) => {
                write!(
                    f,
                    "the trust bundle holds {count} certificates; {MAX_ROOTS} is the most (are leaves or issuing CAs among them?)"
                )
            }
        }
    }
}

impl std::error::Error for BundleError {}

/// `CERTIFICATE` sections, in the order given.
pub(super) fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut pem = String::new();
    for certificate in certificates {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(certificate);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            // RFC 7468: 64 characters to a line. Base64 is ASCII, so every index is a character boundary.
            let (line, tail) = rest.split_at(rest.len().min(64));
            let _ = writeln!(pem, "{line}");
            rest = tail;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// The library would tell whole lines, byte by byte in numbers.
fn what_is_no_pem(error: &pem::Error) -> String {
    match error {
        pem::Error::IllegalSectionStart { .. } => {
            "a line begins a section and is not `-----BEGIN CERTIFICATE-----`".to_owned()
        }
        pem::Error::MissingSectionEnd { .. } => "`-----END CERTIFICATE-----` is missing".to_owned(),
        pem::Error::Base64Decode(_) => "what stands between BEGIN and END is not base64".to_owned(),
        _ => "it cannot be read".to_owned(),
    }
}

fn digest<'a>(parts: impl Iterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        // A root has passed the size check of `Facts::parse`; the rest is of one length.
        context.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
