//! Possession of the key of a certificate that somebody else's CA gave: a machine's, a device's, a cloud's.

use std::time::{SystemTime, UNIX_EPOCH};

use postern_svid::Channel;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::aws_lc_rs as algorithms;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Attestation, FactName, Facts, NoProof};
use crate::lineage::Attestor;

/// Certificates that a caller may show: its own, and what lies between it and a root.
const MAX_CHAIN: usize = 6;
/// Roots of one bundle.
const MAX_ROOTS: usize = 64;
/// Names of a certificate that become facts.
const MAX_NAMES: usize = 128;

/// What a key may sign with, by its number in TLS (RFC 8446 4.2.3).
const SCHEMES: [(u32, &dyn SignatureVerificationAlgorithm); 4] = [
    (0x0403, algorithms::ECDSA_P256_SHA256),
    (0x0503, algorithms::ECDSA_P384_SHA384),
    (0x0804, algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY),
    (0x0807, algorithms::ED25519),
];

/// What certificates of a path may be signed with.
const SIGNATURES: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
];

/// Roots whose certificates are believed.
#[derive(Clone, Debug)]
pub struct Machines {
    /// Their name here.
    pub name: String,
    /// The roots.
    pub roots: Roots,
}

/// A bundle of roots.
#[derive(Clone, Debug, Default)]
pub struct Roots(Vec<Root>);

#[derive(Clone, Debug)]
struct Root {
    anchor: TrustAnchor<'static>,
    fingerprint: String,
    /// webpki does not ask a root for its dates.
    dates: (i64, i64),
}

impl Roots {
    /// Reads PEM.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut roots = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let der = certificate.map_err(|error| format!("the roots: {error}"))?;
            if roots.len() == MAX_ROOTS {
                return Err(format!("the bundle has more than {MAX_ROOTS} roots"));
            }
            let number = roots.len() + 1;
            let anchor = webpki::anchor_from_trusted_cert(&der)
                .map_err(|error| format!("root {number} is no certificate that can be one: {error}"))?;
            let (_, parsed) = X509Certificate::from_der(&der)
                .map_err(|error| format!("root {number} is no certificate: {error}"))?;
            if !parsed.is_ca() {
                return Err(format!("certificate {number} is no CA's"));
            }
            let dates = parsed.validity();
            roots.push(Root {
                anchor: anchor.to_owned(),
                fingerprint: crate::hex(&crate::csr::fingerprint(&der)),
                dates: (dates.not_before.timestamp(), dates.not_after.timestamp()),
            });
        }
        if roots.is_empty() {
            Err("the file holds no certificate in PEM".to_owned())
        } else {
            Ok(Self(roots))
        }
    }
}

/// A chain, and a signature by its first certificate's key.
#[derive(Clone, Copy, Debug)]
pub struct Possession<'a> {
    /// DER; the caller's own first.
    pub chain: &'a [Vec<u8>],
    /// How it signed.
    pub scheme: u32,
    /// The signature.
    pub signature: &'a [u8],
    /// The connection that it came by.
    pub channel: &'a Channel,
}

impl Attestation {
    /// What the certificate says of whoever holds its key and asks for `id` with the request `csr`.
    pub fn x509pop(
        &self,
        possession: Possession<'_>,
        csr: &[u8],
        id: &str,
        now: SystemTime,
    ) -> Result<Facts, NoProof> {
        let Possession { chain, scheme, signature, channel } = possession;
        let chain: Vec<CertificateDer<'_>> =
            chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let (first, rest) = chain.split_first().ok_or("no certificate is shown")?;
        if chain.len() > MAX_CHAIN {
            return Err(
                format!("a chain of {} certificates; at most {MAX_CHAIN} are read", chain.len()).into()
            );
        }
        let leaf = EndEntityCert::try_from(first)
            .map_err(|error| format!("the certificate shown cannot be read: {error}"))?;
        let found = self.path(&leaf, rest, now)?;
        let (_, algorithm) =
            SCHEMES.iter().find(|(number, _)| *number == scheme).ok_or("an unknown way to sign")?;
        // The path first: to check a signature by a stranger's key is work for a stranger.
        leaf.verify_signature(*algorithm, &channel.message(csr, id), signature).map_err(
            |_| "the signature is not by the certificate's key, or for another request or connection",
        )?;
        let (machines, root) = found;
        facts(&machines.name, &root.fingerprint, first)
    }

    fn path(
        &self,
        leaf: &EndEntityCert<'_>,
        rest: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<(&Machines, &Root), NoProof> {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let mut why = NoProof::from("no root is believed; name one under `attestation.x509pop`");
        for machines in &self.x509pop {
            let in_their_dates =
                machines.roots.0.iter().filter(|root| (root.dates.0..=root.dates.1).contains(&seconds));
            let roots: Vec<&Root> = in_their_dates.collect();
            let anchors: Vec<TrustAnchor<'_>> = roots.iter().map(|root| root.anchor.clone()).collect();
            let time = UnixTime::since_unix_epoch(since);
            let path =
                leaf.verify_for_usage(SIGNATURES, &anchors, rest, time, KeyUsage::client_auth(), None, None);
            match path {
                Ok(path) => {
                    let same = |root: &&&Root| {
                        root.anchor.subject == path.anchor().subject
                            && root.anchor.subject_public_key_info == path.anchor().subject_public_key_info
                    };
                    let root = roots.iter().find(same).ok_or("the path ends nowhere")?;
                    return Ok((machines, root));
                }
                Err(error) => {
                    why = format!("the certificate does not verify by {}: {}", machines.name, plain(&error))
                        .into()
                }
            }
        }
        Err(why)
    }
}

/// What the library says in its own types' names, in words.
fn plain(error: &webpki::Error) -> String {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => "it, or one above it, has expired".to_owned(),
        Error::CertNotValidYet { .. } => "it, or one above it, is not valid yet".to_owned(),
        Error::RequiredEkuNotFoundContext(_) => {
            "its extended key usage has no client authentication".to_owned()
        }
        Error::UnknownIssuer => "no root that is believed, and in its dates, leads to it".to_owned(),
        // A name of one word.
        error => error.to_string().chars().take_while(char::is_ascii_alphanumeric).collect(),
    }
}

fn facts(name: &str, root: &str, certificate: &CertificateDer<'_>) -> Result<Facts, NoProof> {
    let unread = |_| NoProof::from("two readers do not agree about the certificate shown");
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(unread)?;
    let mut facts = Facts::new(Attestor::X509Pop)
        .with(FactName::X509Ca, name)
        .with(FactName::X509CaFingerprint, root)
        .with(FactName::X509Fingerprint, crate::hex(&crate::csr::fingerprint(certificate)))
        .with(FactName::X509Subject, parsed.subject().to_string());
    for name in parsed.subject().iter_common_name() {
        facts = facts.with(FactName::X509CommonName, name.as_str().unwrap_or_default());
    }
    let names = parsed.subject_alternative_name().map_err(|_| "the certificate's names cannot be read")?;
    let names = names.map(|found| found.value.general_names.as_slice()).unwrap_or_default();
    if names.len() > MAX_NAMES {
        return Err(format!("the certificate has more than {MAX_NAMES} names").into());
    }
    for name in names {
        facts = match name {
            GeneralName::DNSName(name) => facts.with(FactName::X509Dns, *name),
            GeneralName::URI(name) => facts.with(FactName::X509Uri, *name),
            _ => facts,
        };
    }
    Ok(facts)
}

#[cfg(test)]
#[path = "x509pop_tests.rs"]
mod tests;
