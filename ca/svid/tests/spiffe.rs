//! The SPIFFE suite: every case gets its verdict, and a refusal its reason. `tests/spiffe/README.md` says what it is.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "a score for whoever asks for it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_svid::{Bundle, Bundles, Revocations, Revoked, Role, SpiffeId, TrustDomain, verify};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const SUITE: &str = include_str!("spiffe/spiffe.json");

fn certificates(value: &Value) -> Vec<CertificateDer<'static>> {
    value.as_array().unwrap().iter().map(certificate).collect()
}

fn certificate(value: &Value) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(value.as_str().unwrap().as_bytes()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn revocations(value: &Value) -> Revocations {
    let texts = |key: &str| {
        let all = value[key].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().map(|one| one.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let authorities = texts("authorities").into_iter().map(|hex| Revoked::Authority(bytes(&hex)));
    let keys = texts("keys").into_iter().map(|hex| Revoked::Key(bytes(&hex).try_into().unwrap()));
    let serials = texts("serials").into_iter().map(|hex| Revoked::Serial(bytes(&hex)));
    let ids = texts("ids").into_iter().map(|id| Revoked::Id(SpiffeId::parse(&id).unwrap()));
    Revocations::new(authorities.chain(keys).chain(serials).chain(ids)).unwrap()
}

fn now(case: &Value) -> SystemTime {
    let time = OffsetDateTime::parse(case["validation_time"].as_str().unwrap(), &Rfc3339).unwrap();
    UNIX_EPOCH + Duration::from_secs(time.unix_timestamp().try_into().unwrap())
}

/// The peer's id, or the reason for refusing it.
fn verdict(case: &Value) -> Result<String, String> {
    let spiffe = &case["spiffe"];
    let bundle =
        |td: &str, roots: &Value| Bundle::new(TrustDomain::parse(td).unwrap(), 1, certificates(roots));
    let unfit = |error| format!("unfit_bundle: {error}");
    let own = bundle(spiffe["trust_domain"].as_str().unwrap(), &case["trusted_certs"]).map_err(unfit)?;
    let mut bundles = Bundles::of(own.with_revocations(revocations(&spiffe["revoked"])));
    for (td, roots) in spiffe["federated"].as_object().unwrap() {
        bundles = bundles.with(Arc::new(bundle(td, roots).map_err(unfit)?));
    }
    let role = if case["validation_kind"] == "CLIENT" { Role::Client } else { Role::Server };
    let chain =
        [vec![certificate(&case["peer_certificate"])], certificates(&case["untrusted_intermediates"])];
    match verify(&chain.concat(), &bundles, role, now(case)) {
        Ok(peer) => Ok(peer.id().to_string()),
        Err(error) => Err(format!("{}: {error}", error.reason())),
    }
}

/// `cargo test -p postern-svid --features x509 --test spiffe -- --nocapture` prints the score.
#[test]
fn every_case_gets_its_verdict_and_its_reason() {
    let suite: Value = serde_json::from_str(SUITE).unwrap();
    let mut wrong = Vec::new();
    let mut reasons = BTreeMap::<String, usize>::new();
    let cases = suite["testcases"].as_array().unwrap();
    for case in cases {
        let spiffe = &case["spiffe"];
        let actual = verdict(case);
        let right = match (&actual, spiffe["reason"].as_str()) {
            (Ok(id), None) => case["expected_result"] == "SUCCESS" && spiffe["id"] == **id,
            (Err(error), Some(reason)) => {
                let given = error.split(':').next().unwrap_or_default();
                case["expected_result"] == "FAILURE" && reason.split('|').any(|one| one == given)
            }
            _ => false,
        };
        *reasons.entry(spiffe["reason"].as_str().unwrap_or("accepted").to_owned()).or_default() += 1;
        if !right {
            wrong.push(format!("{}: {actual:?}, not {} {}", case["id"], spiffe["reason"], spiffe["id"]));
        }
    }
    println!(
        "SPIFFE suite: {} cases, {} as they must be; by reason: {reasons:?}",
        cases.len(),
        cases.len() - wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(cases.len() > 300 && reasons["accepted"] > 70, "{reasons:?}");
}
