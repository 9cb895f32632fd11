//! The cases of x509-limbo, through webpki alone and through our rules on top of it.
//!
//! They are certificates for web servers. So three verdicts are taken: webpki's; that of our rules for leaf, path and root,
//! with webpki's check of the server's name; and that of the verifier as it is used, which wants a SPIFFE id and must
//! accept none of them. Deviations from the suite's own verdict stand in `tests/limbo/expected.txt`, each with its reason.
#![allow(clippy::print_stdout, reason = "a table of scores for whoever asks for it")]

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::{EndEntityCert, KeyUsage};

use super::bundle::{Bundle, Bundles};
use super::cert::Facts;
use super::verify::{path, verify};
use super::{Role, VerifyError, lint};
use crate::TrustDomain;

const CASES: &str = include_str!("../../tests/limbo/x509-limbo.json");
const EXPECTED: &str = include_str!("../../tests/limbo/expected.txt");

/// For cases without a time of their own: their certificates are valid from 1970 to 2969.
const NOW: u64 = 1_800_000_000;

/// What no verifier here has an interface for, so that a verdict would be by chance.
const OUT_OF_SCOPE: &[(&str, &str)] = &[
    ("has-crl", "no CRLs here: taint and deny lists instead"),
    ("max-chain-depth", "the depth is fixed: six issuing CAs"),
];

struct Case {
    id: String,
    role: Role,
    now: SystemTime,
    /// Leaf first.
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    name: Option<String>,
    good: bool,
    features: Vec<String>,
}

impl Case {
    fn read(value: &Value) -> Self {
        let pems = |key: &str| -> Vec<CertificateDer<'static>> {
            let all = value[key].as_array().unwrap().iter();
            all.map(|pem| CertificateDer::from_pem_slice(pem.as_str().unwrap().as_bytes()).unwrap()).collect()
        };
        let leaf =
            CertificateDer::from_pem_slice(value["peer_certificate"].as_str().unwrap().as_bytes()).unwrap();
        let seconds = value["validation_time"].as_str().map_or(NOW, |time| {
            u64::try_from(OffsetDateTime::parse(time, &Rfc3339).unwrap().unix_timestamp()).unwrap()
        });
        let features = value["features"].as_array().unwrap().iter();
        Self {
            id: value["id"].as_str().unwrap().to_owned(),
            role: if value["validation_kind"] == "CLIENT" { Role::Client } else { Role::Server },
            now: UNIX_EPOCH + Duration::from_secs(seconds),
            chain: [vec![leaf], pems("untrusted_intermediates")].concat(),
            roots: pems("trusted_certs"),
            name: value["expected_peer_name"]["value"].as_str().map(str::to_owned),
            good: value["expected_result"] == "SUCCESS",
            features: features.map(|one| one.as_str().unwrap().to_owned()).collect(),
        }
    }

    /// As the suite's own harnesses for webpki do it.
    fn by_webpki(&self) -> Result<(), String> {
        let text = |error: webpki::Error| format!("{error:?}");
        let anchors: Result<Vec<_>, _> = self.roots.iter().map(webpki::anchor_from_trusted_cert).collect();
        let leaf = EndEntityCert::try_from(&self.chain[0]).map_err(text)?;
        let usage = match self.role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let now = UnixTime::since_unix_epoch(self.now.duration_since(UNIX_EPOCH).unwrap());
        let anchors = anchors.map_err(text)?;
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &self.chain[1..],
            now,
            usage,
            None,
            None,
        )
        .map_err(text)?;
        self.name_fits(&leaf)
    }

    /// Everything that we hold against a chain but its id, which none of these has, and what [`read`] sets aside.
    fn by_our_rules(&self) -> Result<(), String> {
        let bundle = Bundle::read_by(read, TrustDomain::parse("limbo").unwrap(), 1, self.roots.clone());
        let bundle = bundle.map_err(|error| error.to_string())?;
        let facts = read(&self.chain[0]).map_err(|error| error.to_string())?;
        lint::leaf(&facts, &[self.role]).map_err(|error| error.to_string())?;
        path(read, &self.chain, &facts, &bundle, &[self.role], self.now)
            .map_err(|error| error.to_string())?;
        self.name_fits(&EndEntityCert::try_from(&self.chain[0]).unwrap())
    }

    fn by_verify(&self) -> Result<(), String> {
        let bundle = Bundle::new(TrustDomain::parse("limbo").unwrap(), 1, self.roots.clone());
        let bundles = bundle.map(Bundles::of).map_err(|error| error.to_string())?;
        verify(&self.chain, &bundles, self.role, self.now).map(drop).map_err(|error| error.to_string())
    }

    fn name_fits(&self, leaf: &EndEntityCert<'_>) -> Result<(), String> {
        let Some(name) = &self.name else { return Ok(()) };
        let name = ServerName::try_from(name.as_str()).map_err(|error| error.to_string())?;
        leaf.verify_is_valid_for_subject_name(&name).map_err(|error| format!("{error:?}"))
    }
}

/// SPIFFE wants key usage to be critical (X.509-SVID, 4.3) and RFC 5280 only recommends it. The suite never marks it, so that
/// rule alone would refuse everything and show nothing of the others.
fn read(certificate: &CertificateDer<'_>) -> Result<Facts, VerifyError> {
    let mut facts = Facts::parse(certificate)?;
    facts.key_usage = facts.key_usage.map(|(usage, _)| (usage, true));
    Ok(facts)
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Score {
    agreed: usize,
    false_accepts: usize,
    false_rejects: usize,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} | {:>13} | {:>13}", self.agreed, self.false_accepts, self.false_rejects)
    }
}

/// `verdict verifier case: reason`, where the verdict is the deviating one. Empty lines and comments aside.
fn expected() -> BTreeMap<(String, String), (bool, String)> {
    let lines = EXPECTED.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (what, reason) = line.split_once(": ").unwrap_or_else(|| panic!("no reason in {line:?}"));
            let words: Vec<&str> = what.split(' ').collect();
            let [verdict @ ("accepts" | "rejects"), verifier @ ("webpki" | "ours"), id] = words[..] else {
                panic!("{line:?} is not `accepts|rejects webpki|ours CASE: reason`")
            };
            ((verifier.to_owned(), id.to_owned()), (verdict == "accepts", reason.to_owned()))
        })
        .collect()
}

/// `cargo test -p postern-svid --features x509 limbo -- --nocapture` prints the table.
#[test]
fn scores_are_as_expected_and_each_deviation_has_its_reason() {
    let suite: Value = serde_json::from_str(CASES).unwrap();
    let mut expected = expected();
    let mut wrong = Vec::new();
    let mut scores = [Score::default(); 2];
    let (mut run, mut skipped) = (0, 0);
    let mut accepted = String::new();
    for case in suite["testcases"].as_array().unwrap().iter().map(Case::read) {
        let whole = case.by_verify();
        if whole.is_ok() {
            wrong.push(format!("{}: taken for an SVID", case.id));
        }
        if OUT_OF_SCOPE.iter().any(|(feature, _)| case.features.iter().any(|one| one == feature)) {
            skipped += 1;
            continue;
        }
        run += 1;
        let verdicts = [("webpki", case.by_webpki()), ("ours", case.by_our_rules())];
        for ((verifier, verdict), score) in verdicts.into_iter().zip(&mut scores) {
            match (verdict.is_ok(), case.good) {
                (true, false) => score.false_accepts += 1,
                (false, true) => score.false_rejects += 1,
                _ => score.agreed += 1,
            }
            let known = expected.remove(&(verifier.to_owned(), case.id.clone()));
            match (verdict.is_ok() == case.good, known) {
                (true, None) => {}
                (false, Some((accepts, reason))) if accepts == verdict.is_ok() => {
                    if verifier == "ours" && accepts {
                        let _ = writeln!(accepted, "  {}: {reason}", case.id);
                    }
                }
                (agrees, known) => wrong.push(format!(
                    "{} {verifier} {}: {} ({known:?}; agrees: {agrees})",
                    if verdict.is_ok() { "accepts" } else { "rejects" },
                    case.id,
                    verdict.err().unwrap_or_default()
                )),
            }
        }
    }
    for ((verifier, id), _) in expected {
        wrong.push(format!("{verifier} {id} is in expected.txt, but no such case was run"));
    }
    println!("x509-limbo, {run} cases ({skipped} more out of scope)");
    println!("verifier     | agrees | false accepts | false rejects");
    println!("webpki alone | {}", scores[0]);
    println!("ours         | {}", scores[1]);
    println!("as used      | takes none of them for an SVID");
    println!("Falsely accepted by ours, and why no SVID gets in by it:\n{accepted}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(run >= 98 && !scores.contains(&Score::default()), "{run} cases, {scores:?}");
}
