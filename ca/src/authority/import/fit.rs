//! What a tier's certificate must be, whoever has signed it. What is wrong with it is said as its signer would mend it.

use std::time::{Duration, SystemTime};

use postern_svid::TrustDomain;
use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::{Oid, oid};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::ca::authority_key_id;
use crate::authority::tiers::CEREMONY;
use crate::csr;
use crate::profile::{self, Validity};
use crate::store::{Authority as Row, Kind, State};

/// A tier that ends sooner is refused: it signs issuing CAs of a week, and its successor has to be fetched from a vault.
const MIN_LEFT: Duration = Duration::from_secs(30 * 86_400);
/// What a tier's certificate says, once it is known to be fit.
pub(super) struct Tier {
    pub(super) key_id: Vec<u8>,
    pub(super) issuer: Option<Vec<u8>>,
    pub(super) validity: Validity,
    spki: Vec<u8>,
    subject: Vec<u8>,
}

impl Tier {
    pub(super) fn of(td: &TrustDomain, der: &CertificateDer<'_>, now: SystemTime) -> Result<Self, String> {
        let (_, parsed) =
            X509Certificate::from_der(der).map_err(|_| "not an X.509 certificate".to_owned())?;
        if parsed.subject().as_raw() == parsed.issuer().as_raw() {
            return Err("it is signed by itself: give the certificate that the root has signed".to_owned());
        }
        const SIGNATURES: [Oid<'static>; 3] =
            [oid!(1.2.840.10045.4.3.2), oid!(1.2.840.10045.4.3.3), oid!(1.3.101.112)];
        if !SIGNATURES.contains(&parsed.signature_algorithm.algorithm) {
            return Err(format!(
                "its signature algorithm is {}: sidecars take ECDSA with SHA-256 or SHA-384 and Ed25519 (openssl x509 -req -sha384, and no RSA root)",
                parsed.signature_algorithm.algorithm
            ));
        }
        constraints(td, &parsed)?;
        let dates = parsed.validity();
        let (Some(not_before), Some(not_after)) =
            (seconds(dates.not_before.timestamp()), seconds(dates.not_after.timestamp()))
        else {
            return Err("its dates are before 1970".to_owned());
        };
        if now < not_before {
            return Err(format!("it is valid only from {} on; is a clock wrong?", dates.not_before));
        }
        if now + MIN_LEFT > not_after {
            return Err(format!(
                "it ends at {}: a tier has at least {} days left, and lives a year best (openssl x509 -days 365)",
                dates.not_after,
                MIN_LEFT.as_secs() / 86_400
            ));
        }
        let key_id = profile::subject_key_id(&parsed).ok_or("it has no subject key id")?;
        Ok(Self {
            key_id,
            issuer: authority_key_id(&parsed),
            validity: Validity { not_before, not_after },
            spki: parsed.public_key().raw.to_vec(),
            subject: parsed.subject().as_raw().to_vec(),
        })
    }

    /// The request that it answers.
    pub(super) fn request<'a>(&self, rows: &'a [Row]) -> Result<&'a Row, String> {
        let tiers = || rows.iter().filter(|row| row.kind == Kind::Tier);
        let requested = || tiers().filter(|row| row.state == State::Requested);
        let read = |row: &'a Row| csr::Request::parse(&row.certificate).ok();
        let found = requested().find(|row| read(row).is_some_and(|request| request.spki() == self.spki));
        let Some(row) = found else {
            let taken = tiers().any(|row| {
                row.state != State::Requested
                    && X509Certificate::from_der(&row.certificate)
                        .is_ok_and(|(_, parsed)| parsed.public_key().raw == self.spki)
            });
            if taken {
                return Err("it was taken already; postern ca status shows it".to_owned());
            }
            let waiting: Vec<_> = requested().map(|row| row.label.as_str()).collect();
            return Err(match waiting.as_slice() {
                [] => format!("no request waits here for a signature: {CEREMONY}"),
                _ => format!("its key is not that of a request that waits here ({})", waiting.join(", ")),
            });
        };
        if row.tainted.is_some() {
            return Err(format!("{} was tainted before it was signed; make another request", row.label));
        }
        if read(row).is_none_or(|request| request.subject() != self.subject) {
            return Err(format!(
                "its subject is not the one that the request {} asks for, byte for byte: let the CA that signs copy it",
                row.label
            ));
        }
        Ok(row)
    }
}

/// What a tier may do, and what may stand in its certificate.
fn constraints(td: &TrustDomain, parsed: &X509Certificate<'_>) -> Result<(), String> {
    let mut is_ca = false;
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(value) => {
                is_ca = value.ca && extension.critical;
                if value.path_len_constraint != Some(1) {
                    let found = value
                        .path_len_constraint
                        .map_or_else(|| "none".to_owned(), |length| length.to_string());
                    return Err(format!(
                        "its path length is {found}: 1 is right, so that it signs issuing CAs which sign leaves, and nothing else (basicConstraints = critical, CA:TRUE, pathlen:1)"
                    ));
                }
            }
            ParsedExtension::NameConstraints(value) => {
                let is_host = |name: &GeneralName<'_>| {
                    matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_))
                };
                let mut excluded = value.excluded_subtrees.iter().flatten();
                if value.permitted_subtrees.is_some() || !excluded.all(|tree| is_host(&tree.base)) {
                    return Err(
                        "its name constraints are others than excluded DNS names and addresses, which not every verifier of a mesh understands: leave them out, or write those of docs/offline-root.md"
                            .to_owned(),
                    );
                }
            }
            ParsedExtension::ExtendedKeyUsage(_) => {
                return Err("it has an extended key usage: a CA of a mesh has none".to_owned());
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                let id = td.id();
                let is_own = |name: &GeneralName<'_>| matches!(name, GeneralName::URI(uri) if *uri == id);
                if !names.general_names.iter().all(is_own) || names.general_names.len() != 1 {
                    return Err(format!("its subject alternative name is not {id} alone"));
                }
            }
            _ => {}
        }
    }
    if is_ca {
        Ok(())
    } else {
        Err("it is no certificate authority: basicConstraints = critical, CA:TRUE, pathlen:1 is needed"
            .to_owned())
    }
}

pub(super) fn seconds(at: i64) -> Option<SystemTime> {
    let since = u64::try_from(at).ok().map(Duration::from_secs)?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}
