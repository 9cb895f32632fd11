//! A root that exists already, from files: proven fit for a mesh before anything is stored. Whatever is wrong with it would
//! otherwise show in every sidecar, and a root cannot be taken back.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use postern_svid::{Bundle, Bundles, TrustDomain};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SignatureAlgorithm};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::AuthorityError;
use super::tiers::label_of_root;
use crate::keys::{self, KeyError, KeyStore};
use crate::profile::{self, ISSUING_KEY, ProfileError, Serial, Signer, Validity};
use crate::store::{self, AuthorityChange, Kind, State, Store};
use crate::{check, csr};

/// A root and its key in PEM, comments included.
const MAX_FILE: u64 = 64 * 1_024;
/// A root that ends sooner is refused: the mesh would stand still with it, and its successor is not even planned.
const MIN_LEFT: Duration = Duration::from_secs(30 * 86_400);
const SHA256: Oid<'static> = oid!(1.2.840.10045.4.3.2);
const SHA384: Oid<'static> = oid!(1.2.840.10045.4.3.3);

/// A root from files, with its key, that has vouched for a throwaway leaf.
pub struct ExistingRoot {
    certificate: CertificateDer<'static>,
    pkcs8: Zeroizing<Vec<u8>>,
    algorithm: &'static SignatureAlgorithm,
    key_id: Vec<u8>,
    validity: Validity,
}

/// Why files are no root that a mesh can have. The text names the file, what is wrong and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// The key's file is open to others, or cannot be read.
    #[error(transparent)]
    File(#[from] KeyError),
    /// The content.
    #[error("{}: {what}", .file.display())]
    Unfit {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl ExistingRoot {
    /// Reads a certificate and its key, both PEM, and proves them: the rules of our verifier, a signature of its own, the dates, and a
    /// chain made below it and verified as a sidecar would.
    pub fn read(
        td: &TrustDomain,
        certificate: &Path,
        key: &Path,
        now: SystemTime,
    ) -> Result<Self, RootError> {
        let der = certificate_of(certificate)?;
        let fit = Fit::of(td, &der, 1, now)
            .map_err(|what| RootError::Unfit { file: certificate.to_owned(), what })?;
        let pkcs8 = key_of(key, &fit)?;
        let unfit = |what: String| RootError::Unfit { file: certificate.to_owned(), what };
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.as_slice().into(), fit.algorithm);
        let pair = pair.map_err(|error| unfit(error.to_string()))?;
        let signer = Signer::new(&der, pair).map_err(|error| unfit(error.to_string()))?;
        try_out(td, &der, &[], &signer, fit.validity, now).map_err(|error| {
            unfit(format!("a chain made below it is refused: {error}. Make the root as docs/keys.md says"))
        })?;
        let Fit { algorithm, key_id, validity, .. } = fit;
        Ok(Self { certificate: der, pkcs8, algorithm, key_id, validity })
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Stores key and certificate as the root of a CA that has none. What an earlier try left is taken up.
    pub fn install(
        &self,
        store: &dyn Store,
        keys: &dyn KeyStore,
        now: SystemTime,
    ) -> Result<(), AuthorityError> {
        let label = label_of_root(&self.certificate);
        if keys.names()?.contains(&label) {
            let key = keys.load(&label, self.algorithm)?;
            if Signer::new(&self.certificate, key)?.spki() != self.spki()? {
                return Err(AuthorityError::KeyMismatch(label));
            }
        } else {
            keys.import(&label, &self.pkcs8, self.algorithm)?;
        }
        let row = row(label, &self.certificate, self.key_id.clone(), self.validity, State::Active, false);
        let change = AuthorityChange::new(now, "an existing root, from files");
        store.change_authorities(AuthorityChange { add: vec![row], publishes: true, ..change })?;
        Ok(())
    }

    fn spki(&self) -> Result<Vec<u8>, ProfileError> {
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&self.pkcs8.as_slice().into(), self.algorithm)?;
        Ok(pair.subject_public_key_info())
    }
}

/// A root's row.
pub(super) fn row(
    label: String,
    certificate: &CertificateDer<'_>,
    key_id: Vec<u8>,
    validity: Validity,
    state: State,
    is_offline: bool,
) -> store::Authority {
    store::Authority {
        kind: Kind::Root,
        state,
        label,
        key_id,
        certificate: certificate.to_vec(),
        not_before: validity.not_before,
        not_after: validity.not_after,
        // Known when it is written.
        since: validity.not_before,
        sequence: 0,
        tainted: None,
        replica: None,
        is_offline,
    }
}

/// What a root's certificate says, once it is known to be fit.
pub(super) struct Fit {
    algorithm: &'static SignatureAlgorithm,
    pub(super) key_id: Vec<u8>,
    pub(super) validity: Validity,
    spki: Vec<u8>,
}

impl Fit {
    /// `depth` CAs have to fit below it.
    pub(super) fn of(
        td: &TrustDomain,
        der: &CertificateDer<'static>,
        depth: u32,
        now: SystemTime,
    ) -> Result<Self, String> {
        let unreadable = || "not an X.509 certificate".to_owned();
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| unreadable())?;
        // What is said of roots alone comes before what is said of any certificate.
        let algorithm = profile::algorithm(parsed.public_key())
            .ok_or("its key is of a kind that a root here does not have: make one on P-384 or P-256")?;
        check_names(td, &parsed)?;
        Bundle::new(td.clone(), 1, vec![der.clone()])
            .map_err(|error| format!("{error}; sidecars would refuse it"))?;
        if parsed.subject().as_raw() != parsed.issuer().as_raw() {
            return Err(
                "it is signed by another CA: a root signs itself, and its key is needed here".to_owned()
            );
        }
        if !is_signed_by_itself(&parsed, algorithm) {
            return Err(
                "its signature is not its own key's, by ECDSA with SHA-256 or SHA-384; make it with openssl req -x509 -sha384"
                    .to_owned(),
            );
        }
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(value)
                    if value.path_len_constraint.is_some_and(|length| length < depth) =>
                {
                    let length = value.path_len_constraint.unwrap_or_default();
                    let below = if depth == 1 { "the issuing CA" } else { "a tier that signs issuing CAs" };
                    return Err(format!(
                        "its path length is {length}, so that it cannot sign {below}: {depth} or more is right, or none"
                    ));
                }
                ParsedExtension::NameConstraints(_) => {
                    return Err(
                        "it has name constraints, which not every verifier of a mesh understands: make a root without, the issuing CA has its own"
                            .to_owned(),
                    );
                }
                ParsedExtension::ExtendedKeyUsage(_) => {
                    return Err(
                        "it has an extended key usage, by which some verifiers narrow what is below it: make a root without"
                            .to_owned(),
                    );
                }
                _ => {}
            }
        }
        let at = |seconds: i64| {
            let seconds = u64::try_from(seconds).ok().map(Duration::from_secs);
            seconds.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
        };
        let dates = parsed.validity();
        let (Some(not_before), Some(not_after)) =
            (at(dates.not_before.timestamp()), at(dates.not_after.timestamp()))
        else {
            return Err("its dates are before 1970".to_owned());
        };
        if now < not_before {
            return Err(format!("it is valid only from {} on; is the clock right?", dates.not_before));
        }
        if now + MIN_LEFT > not_after {
            return Err(format!(
                "it ends at {}: a root has at least {} days left",
                dates.not_after,
                MIN_LEFT.as_secs() / 86_400
            ));
        }
        let key_id = profile::subject_key_id(&parsed).ok_or("it has no subject key id")?;
        let spki = parsed.public_key().raw.to_vec();
        Ok(Self { algorithm, key_id, validity: Validity { not_before, not_after }, spki })
    }
}

/// Refuses other names than the trust domain's: a root is found by its subject, and names nothing else.
fn check_names(td: &TrustDomain, parsed: &X509Certificate<'_>) -> Result<(), String> {
    let own = td.id();
    for extension in parsed.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
        let names = &names.general_names;
        if !matches!(names.as_slice(), [GeneralName::URI(uri)] if *uri == own) {
            // It may hold anything.
            let found: Vec<_> =
                names.iter().take(4).map(|name| name.to_string().escape_debug().to_string()).collect();
            return Err(format!(
                "its subject alternative name holds {}: a root has none, or {own} alone",
                found.join(", ")
            ));
        }
    }
    Ok(())
}

fn is_signed_by_itself(parsed: &X509Certificate<'_>, algorithm: &'static SignatureAlgorithm) -> bool {
    let is_p256 = algorithm == &PKCS_ECDSA_P256_SHA256;
    let named = &parsed.signature_algorithm.algorithm;
    let verification = match (is_p256, *named == SHA256, *named == SHA384) {
        (true, true, _) => &ECDSA_P256_SHA256_ASN1,
        (true, _, true) => &ECDSA_P256_SHA384_ASN1,
        (false, true, _) => &ECDSA_P384_SHA256_ASN1,
        (false, _, true) => &ECDSA_P384_SHA384_ASN1,
        _ => return false,
    };
    let key = &parsed.public_key().subject_public_key.data;
    UnparsedPublicKey::new(verification, key)
        .verify(parsed.tbs_certificate.as_ref(), &parsed.signature_value.data)
        .is_ok()
}

/// The one certificate in a file.
pub(super) fn certificate_of(path: &Path) -> Result<CertificateDer<'static>, RootError> {
    let unfit = |what: &str| RootError::Unfit { file: path.to_owned(), what: what.to_owned() };
    let mut found = certificates_of(path, 2)?;
    match (found.pop(), found.pop()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(unfit(NONE)),
        (Some(_), Some(_)) => Err(unfit("it holds several certificates: the root's alone belongs there")),
    }
}

const NONE: &str =
    "it holds no certificate in PEM (-----BEGIN CERTIFICATE-----); from DER: openssl x509 -inform DER";

/// The certificates in a file, at most so many.
pub(super) fn certificates_of(path: &Path, most: usize) -> Result<Vec<CertificateDer<'static>>, RootError> {
    let io = |error| KeyError::Io(path.to_owned(), error);
    let unfit = |what: String| RootError::Unfit { file: path.to_owned(), what };
    let mut text = Vec::new();
    // Opening a FIFO would wait for a writer.
    let flags = nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(KeyError::NotAFile(path.to_owned()).into());
    }
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_FILE {
        return Err(KeyError::TooLong(path.to_owned(), MAX_FILE).into());
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).take(most).collect();
    let found = found.map_err(|error| unfit(format!("not PEM: {error}")))?;
    if found.is_empty() { Err(unfit(NONE.to_owned())) } else { Ok(found) }
}

/// The key of `fit` as PKCS#8.
fn key_of(path: &Path, fit: &Fit) -> Result<Zeroizing<Vec<u8>>, RootError> {
    let unfit = |what: &str| RootError::Unfit { file: path.to_owned(), what: what.to_owned() };
    let text = keys::read_given(path, MAX_FILE)?;
    const ENCRYPTED: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
    if ENCRYPTED.iter().any(|mark| text.windows(mark.len()).any(|part| part == *mark)) {
        return Err(unfit(
            "the key is encrypted with a passphrase: openssl pkey -in FILE -out PLAIN opens it; keep PLAIN on a tmpfs, it is copied into stateDir (sealed, if keys.seal is configured)",
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        unfit("it holds no private key in PEM (PRIVATE KEY or EC PRIVATE KEY); from DER: openssl pkey -inform DER")
    })?;
    let key = Zeroizing::new(key.secret_der().to_vec());
    let signing = if fit.algorithm == &PKCS_ECDSA_P256_SHA256 {
        &ECDSA_P256_SHA256_ASN1_SIGNING
    } else {
        &ECDSA_P384_SHA384_ASN1_SIGNING
    };
    let pair = EcdsaKeyPair::from_private_key_der(signing, &key)
        .map_err(|_| unfit("not a private key on the curve of the certificate's key"))?;
    let pkcs8 = pair.to_pkcs8v1().map_err(|_| unfit("the key cannot be written as PKCS#8"))?;
    let pkcs8 = Zeroizing::new(pkcs8.as_ref().to_vec());
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.as_slice().into(), fit.algorithm);
    if pair.is_ok_and(|pair| pair.subject_public_key_info() == fit.spki) {
        Ok(pkcs8)
    } else {
        Err(unfit("it is the key of another certificate"))
    }
}

/// Makes an issuing CA and a leaf that nobody will see, and verifies them under the root. The signer is it, or the tier that
/// begins `carried`.
pub(crate) fn try_out(
    td: &TrustDomain,
    root: &CertificateDer<'static>,
    carried: &[CertificateDer<'static>],
    signer: &Signer,
    life: Validity,
    now: SystemTime,
) -> Result<(), check::CheckError> {
    let bundle = Bundle::new(td.clone(), 1, vec![root.clone()])
        .map_err(|_| check::CheckError::Different("the trust bundle"))?;
    let generate = || KeyPair::generate_for(ISSUING_KEY).map_err(ProfileError::Build);
    let (issuing_key, key, id) = (generate()?, generate()?, td.control_plane());
    let validity = Validity::from_now(now, Duration::from_secs(60)).ending_by(life.not_after);
    let issuing = profile::issuing(td, &profile::ca_label()?, &issuing_key, signer, validity)?;
    let key =
        csr::verify(&csr::own(&key)?, &id).map_err(|_| check::CheckError::Different("our own request"))?;
    let leaf = profile::leaf(&id, &key, &Signer::new(&issuing, issuing_key)?, validity, Serial::random()?)?;
    let chain = [&[leaf, issuing], carried].concat();
    check::leaf(&chain, &id, &key, &Bundles::of(bundle), now)
}

#[cfg(test)]
mod tests;
