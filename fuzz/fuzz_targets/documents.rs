//! Arbitrary bytes as a set of documents: never a panic, never a set that loads with errors, and what loads decides
//! like its specification.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use postern_policy::{Operation, Scope, Severity, Source, SourceFile, Workload, load, trust_domain_of};
use postern_svid::{SpiffeId, TrustDomain};

static SCOPE: LazyLock<Scope> = LazyLock::new(|| Scope {
    trust_domain: TrustDomain::parse("td").expect("a literal"),
    root_namespace: "root".into(),
    workload: Some(Workload {
        namespace: "a".into(),
        service_account: "a".into(),
        labels: Default::default(),
    }),
});

fuzz_target!(|data: &[u8]| {
    // A byte that no YAML holds cuts the input into files.
    let files: Vec<SourceFile> = data
        .split(|byte| *byte == 0)
        .enumerate()
        .map(|(n, text)| SourceFile { name: format!("{n}.yaml"), text: text.to_vec() })
        .collect();
    let _ = trust_domain_of(&files);
    match load(&files, &SCOPE, 1) {
        Ok(generation) => {
            assert!(generation.warnings().iter().all(|finding| finding.severity == Severity::Warning));
            let _ = generation.warnings().to_string();
            let id = SpiffeId::parse("spiffe://td/ns/a/sa/b").expect("a literal");
            for identity in [None, Some(&id)] {
                let source = Source { identity, address: IpAddr::V4(Ipv4Addr::LOCALHOST) };
                let connection = generation.connection(source);
                let verdict = generation.decide(&connection, 80, Operation::Tcp);
                assert_eq!(verdict, generation.decide_by_reference(source, 80, Operation::Tcp));
                let _ = generation.explain(source, 80, Operation::Tcp).to_string();
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            let text = errors.to_string();
            assert!(!text.contains('\u{1b}'), "an escape would reach the reader's terminal");
        }
    }
});
