//! A root in a directory of its own, on a machine that no network reaches: its key, sealed; its certificate; and a record of all
//! that it has signed, to which lines are only added.
//!
//! A line is durable before the certificate that it tells of leaves, and holds the hash of the line before it. The same request
//! gets the same certificate again.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_svid::TrustDomain;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::try_out;
use crate::check::CheckError;
use crate::csr::{self, CsrError, VerifiedKey};
use crate::keys::{self, KeyError, KeyStore, Seal};
use crate::profile::{self, ProfileError, ROOT_KEY, Signer, Validity};

/// The root's certificate.
pub const CERTIFICATE: &str = "root.pem";
/// What it has signed.
pub const RECORD: &str = "signed.log";
const README: &str = "README.txt";
const LOCK: &str = "root.lock";
/// The key's name.
const KEY: &str = "root-offline";
/// A root's life: its successor has to be carried to everybody.
const LIFE: Duration = Duration::from_secs(3_650 * DAY);
const DAY: u64 = 86_400;
/// Of a tier, in days: too short is a trip to the vault too often, too long a stolen key that lives on.
const DAYS: std::ops::RangeInclusive<u32> = 60..=1_100;
/// A line takes two KiB; two lines a year.
const MAX_RECORD: u64 = 4 * 1_024 * 1_024;
const MAX_FILE: u64 = 64 * 1_024;

/// Why an offline root was not made, or signs nothing. Each text names the file and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// A chain below it would be refused.
    #[error("what was signed did not pass its own test, and does not leave: {0}")]
    Check(#[from] CheckError),
    /// The machine's clock.
    #[error("{0}; set this machine's clock, nothing else tells it the time")]
    Clock(String),
    /// The request.
    #[error("{}: {what}", .file.display())]
    Request {
        /// Its file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of the directory.
    #[error("{}: {what}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The key, or a file that cannot be read or written.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate could not be built.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// An offline root that signs.
pub struct OfflineRoot {
    directory: PathBuf,
    trust_domain: TrustDomain,
    certificate: CertificateDer<'static>,
    validity: Validity,
    keys: Box<dyn KeyStore>,
    signed: Vec<Line>,
    last: String,
    _lock: File,
}

/// A request for a tier as an offline root sees it, with what a person compares.
pub struct Asked {
    key: VerifiedKey,
    subject: Vec<u8>,
    /// The tier's label.
    pub label: String,
    /// SHA-256 over the request, hexadecimal: what the control plane has shown.
    pub sha256: String,
}

/// What was signed.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The tier's certificate.
    pub certificate: CertificateDer<'static>,
    /// SHA-256 over it, hexadecimal.
    pub sha256: String,
    /// End of its life.
    pub not_after: SystemTime,
    /// Whether this very certificate had been signed before.
    pub is_again: bool,
}

/// A line of the record.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Line {
    at: u64,
    label: String,
    request: String,
    key: String,
    not_after: u64,
    certificate: String,
    previous: String,
}

impl OfflineRoot {
    /// Makes a root for `td` in the new directory `directory`, its key sealed with `seal`. Gives its certificate.
    pub fn create(
        td: &TrustDomain,
        directory: &Path,
        seal: Seal,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, OfflineError> {
        if fs::symlink_metadata(directory).is_ok() {
            return Err(KeyError::Exists(directory.to_owned()).into());
        }
        // Whole or not at all: a directory without its certificate is no root that somebody carries away.
        let mut name = directory.file_name().unwrap_or_default().to_owned();
        name.push(format!(".new.{}", std::process::id()));
        let beside = directory.with_file_name(name);
        keys::private_dir(&beside)?;
        let made = Self::fill(td, &beside, seal, now).and_then(|certificate| {
            let io = |error| KeyError::Io(directory.to_owned(), error);
            fs::rename(&beside, directory).and_then(|()| keys::sync_parent(directory)).map_err(io)?;
            Ok(certificate)
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&beside);
        }
        made
    }

    fn fill(
        td: &TrustDomain,
        directory: &Path,
        seal: Seal,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, OfflineError> {
        let keys = keys::open_sealed(directory, seal);
        let key = keys.create(KEY, ROOT_KEY)?;
        let validity = Validity::from_now(now, LIFE);
        let label = format!("root-{}", profile::ca_label()?);
        let certificate = profile::offline_root(td, &label, &key, validity)?;
        // A whole chain, before anybody builds on it.
        let signer = Signer::new(&certificate, key)?;
        let tier_key = KeyPair::generate_for(profile::TIER_KEY).map_err(ProfileError::Build)?;
        let life = Validity::from_now(now, Duration::from_secs(60));
        let tier = profile::tier(td, "tier-0000000000000000", &tier_key, &signer, life)?;
        let tier_signer = Signer::new(&tier, tier_key)?;
        try_out(td, &certificate, &[tier], &tier_signer, life, now)?;
        let pem = pem("CERTIFICATE", &certificate);
        keys::replace(&directory.join(CERTIFICATE), 0o644, pem.as_bytes())?;
        keys::replace(&directory.join(README), 0o644, readme(td).as_bytes())?;
        keys::write_private(&directory.join(RECORD), b"")?;
        Ok(certificate)
    }

    /// Opens the root in `directory` and reads its record, which must be whole.
    pub fn open(directory: &Path, seal: Seal, now: SystemTime) -> Result<Self, OfflineError> {
        keys::private_dir_there(directory)?;
        let lock = lock(directory)?;
        let file = directory.join(CERTIFICATE);
        let refused = |what: &str| OfflineError::File { file: file.clone(), what: what.to_owned() };
        let certificate = CertificateDer::from_pem_slice(&read(&file, MAX_FILE)?)
            .map_err(|_| refused("it holds no certificate in PEM; restore the directory from its copy"))?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| refused("not an X.509 certificate; restore the directory from its copy"))?;
        let trust_domain = trust_domain(&parsed).ok_or_else(|| {
            refused("it names no trust domain; give the directory that ca init --offline-root made")
        })?;
        let dates = parsed.validity();
        let at = |seconds: i64| {
            let since = u64::try_from(seconds).map(Duration::from_secs).unwrap_or_default();
            SystemTime::UNIX_EPOCH + since
        };
        let (not_before, not_after) = (at(dates.not_before.timestamp()), at(dates.not_after.timestamp()));
        let validity = Validity { not_before, not_after };
        if now < validity.not_before {
            return Err(OfflineError::Clock("it is before this root's first day".to_owned()));
        }
        if now >= validity.not_after {
            return Err(refused("it has ended (or the clock is wrong); make another root"));
        }
        let (signed, last) = record(directory, &certificate)?;
        if signed.last().is_some_and(|line| now < SystemTime::UNIX_EPOCH + Duration::from_secs(line.at)) {
            return Err(OfflineError::Clock("it is earlier than when this root signed last".to_owned()));
        }
        let keys = keys::open_sealed(directory, seal);
        let (directory, signed) = (directory.to_owned(), signed);
        Ok(Self { directory, trust_domain, certificate, validity, keys, signed, last, _lock: lock })
    }

    /// Whose root it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Reads a request: a tier's of this trust domain, whose key is proven, and nothing else.
    pub fn read(&self, file: &Path) -> Result<Asked, OfflineError> {
        let refused = |what: String| OfflineError::Request { file: file.to_owned(), what };
        let text = read(file, MAX_FILE)?;
        let mut found = rustls_pki_types::CertificateSigningRequestDer::pem_slice_iter(&text).take(2);
        let der = match (found.next(), found.next()) {
            (Some(Ok(der)), None) => der,
            (Some(Ok(_)), Some(_)) => {
                return Err(refused("it holds several requests; sign one at a time".to_owned()));
            }
            _ => {
                return Err(refused(
                    "it holds no request in PEM (-----BEGIN CERTIFICATE REQUEST-----); postern ca tier csr makes one".to_owned(),
                ));
            }
        };
        let told = |error: CsrError| refused(error.to_string());
        let (key, label) = csr::tier(&der, &self.trust_domain).map_err(told)?;
        if rcgen::PublicKeyData::algorithm(&key) != profile::TIER_KEY {
            return Err(refused("its key is not on P-384; make it with postern ca tier csr".to_owned()));
        }
        let subject = csr::Request::parse(&der).map_err(told)?.subject().to_vec();
        let sha256 = crate::hex(&csr::fingerprint(&der));
        Ok(Asked { key, subject, label, sha256 })
    }

    /// Signs a tier for `days`, at most to the root's own end. What was signed for this request before, and is not half over, is
    /// given again.
    pub fn sign(&mut self, asked: &Asked, days: u32, now: SystemTime) -> Result<Signed, OfflineError> {
        let seconds =
            |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if !DAYS.contains(&days) {
            let (least, most) = (DAYS.start(), DAYS.end());
            return Err(
                self.refused(RECORD, format!("nothing was signed: a tier lives {least} to {most} days"))
            );
        }
        let before = self.signed.iter().rev().find(|line| line.request == asked.sha256);
        if let Some(line) = before
            && let Ok(der) = STANDARD.decode(&line.certificate)
            && seconds(now) < line.at + (line.not_after - line.at) / 2
        {
            let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(line.not_after);
            let sha256 = crate::hex(&csr::fingerprint(&der));
            return Ok(Signed { certificate: der.into(), sha256, not_after, is_again: true });
        }
        let life = Duration::from_secs(u64::from(days) * DAY);
        let validity = Validity::from_now(now, life).ending_by(self.validity.not_after);
        let key = self.keys.load(KEY, ROOT_KEY)?;
        let signer = Signer::new(&self.certificate, key)?;
        if signer.spki() != spki(&self.certificate) {
            let what = "its key is another than the certificate's; restore the directory from its copy";
            return Err(self.refused(CERTIFICATE, what.to_owned()));
        }
        let td = &self.trust_domain;
        let certificate = profile::tier(td, &asked.label, &asked.key, &signer, validity)?;
        // The same certificate but for its key: below it a chain is tried out, for the real key is not here.
        let stand_in = KeyPair::generate_for(profile::TIER_KEY).map_err(ProfileError::Build)?;
        let tier = profile::tier(td, &asked.label, &stand_in, &signer, validity)?;
        let tier_signer = Signer::new(&tier, stand_in)?;
        try_out(td, &self.certificate, &[tier], &tier_signer, validity, now)?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|_| CheckError::Unreadable)?;
        if parsed.subject().as_raw() != asked.subject {
            return Err(CheckError::Different("the subject").into());
        }
        if parsed.public_key().raw != asked.key.spki() {
            return Err(CheckError::Different("the public key").into());
        }
        self.note(Line {
            at: seconds(now),
            label: asked.label.clone(),
            request: asked.sha256.clone(),
            key: crate::hex(&asked.key.fingerprint()),
            not_after: seconds(validity.not_after),
            certificate: STANDARD.encode(&certificate),
            previous: self.last.clone(),
        })?;
        let sha256 = crate::hex(&csr::fingerprint(&certificate));
        Ok(Signed { certificate, sha256, not_after: validity.not_after, is_again: false })
    }

    /// How many certificates it has signed.
    pub fn signed(&self) -> usize {
        self.signed.len()
    }

    fn note(&mut self, line: Line) -> Result<(), OfflineError> {
        let path = self.directory.join(RECORD);
        let io = |error| KeyError::Io(path.clone(), error);
        let text = serde_json::to_string(&line)
            .map_err(|error| OfflineError::File { file: path.clone(), what: error.to_string() })?;
        let mut file = OpenOptions::new().append(true).open(&path).map_err(io)?;
        file.write_all(format!("{text}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        self.last = crate::hex(&csr::fingerprint(text.as_bytes()));
        self.signed.push(line);
        Ok(())
    }

    fn refused(&self, file: &str, what: String) -> OfflineError {
        OfflineError::File { file: self.directory.join(file), what }
    }
}

/// Reads the record and holds its lines against each other.
fn record(directory: &Path, root: &CertificateDer<'_>) -> Result<(Vec<Line>, String), OfflineError> {
    let path = directory.join(RECORD);
    let mut text = read(&path, MAX_RECORD)?;
    // A line that was cut off told of a certificate that never left.
    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if end < text.len() {
        let io = |error| KeyError::Io(path.clone(), error);
        let file = OpenOptions::new().write(true).open(&path).map_err(io)?;
        file.set_len(end as u64).and_then(|()| file.sync_all()).map_err(io)?;
        text.truncate(end);
    }
    let mut previous = crate::hex(&csr::fingerprint(root));
    let mut lines = Vec::new();
    for (number, text) in text.split(|byte| *byte == b'\n').enumerate().filter(|(_, text)| !text.is_empty()) {
        let line = serde_json::from_slice::<Line>(text).ok();
        let line = line.filter(|line| line.previous == previous && line.not_after >= line.at);
        let Some(line) = line else {
            let what = format!(
                "line {} was changed, or one before it was taken out; restore the directory from its copy, and ask who was at it",
                number + 1
            );
            return Err(OfflineError::File { file: path, what });
        };
        previous = crate::hex(&csr::fingerprint(text));
        lines.push(line);
    }
    Ok((lines, previous))
}

fn trust_domain(root: &X509Certificate<'_>) -> Option<TrustDomain> {
    root.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => {
            names.general_names.iter().find_map(|name| match name {
                GeneralName::URI(uri) => TrustDomain::parse(uri.strip_prefix("spiffe://")?).ok(),
                _ => None,
            })
        }
        _ => None,
    })
}

fn spki(certificate: &CertificateDer<'_>) -> Vec<u8> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed.public_key().raw.to_vec())
        .unwrap_or_default()
}

fn lock(directory: &Path) -> Result<File, OfflineError> {
    let path = directory.join(LOCK);
    let io = |error| KeyError::Io(path.clone(), error);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    let file = options.open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(OfflineError::File { file: path, what: "this root is signing something already".to_owned() })
        }
        Err(fs::TryLockError::Error(error)) => Err(io(error).into()),
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, OfflineError> {
    let io = |error| KeyError::Io(path.to_owned(), error);
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(KeyError::NotAFile(path.to_owned()).into());
    }
    let mut text = Vec::new();
    file.take(limit + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > limit {
        return Err(KeyError::TooLong(path.to_owned(), limit).into());
    }
    Ok(text)
}

/// PEM with lines of 64 characters.
pub fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let encoded = STANDARD.encode(der);
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn readme(td: &TrustDomain) -> String {
    format!(
        "This is the root of the mesh {td}: whoever has {KEY}.sealed and its passphrase can name any workload. Keep it offline.\n\
         Keep two copies of this directory in two places, and the passphrase in a third. Bring only {CERTIFICATE} to the control plane.\n\
         Once: postern ca init --config control.yaml --root-cert {CERTIFICATE}, on the control plane.\n\
         Once a year: postern ca tier csr --out tier.csr there, postern ca root sign tier.csr --root THIS-DIRECTORY --out tier.pem here, postern ca tier import tier.pem there.\n\
         {RECORD} is the record of all that this root has signed: lines are only added, and copies of the directory must have the same ones.\n"
    )
}

#[cfg(test)]
mod tests;
