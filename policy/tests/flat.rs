//! The time of a decision against the number of rules, and against asking rule by rule.
//!
//! `cargo test -p postern-policy --test flat --release -- --ignored --nocapture`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{Generation, Operation, Scope, Source, SourceFile, Workload, load};
use postern_svid::{SpiffeId, TrustDomain};

fn generation(rules: usize) -> Generation {
    let mut text = String::new();
    for n in 0..rules {
        let spec = match n % 10 {
            8 => format!(
                "action: Allow, rules: [{{name: r, from: [{{namespaces: [ns{n}]}}], to: [{{pathPrefix: [/n{n}]}}]}}]"
            ),
            9 => format!(
                "action: Deny, rules: [{{name: r, from: [{{not: {{namespaces: [ops]}}}}], to: [{{pathPrefix: [/admin{n}], ports: [8080]}}]}}]"
            ),
            _ => format!(
                "action: Allow, rules: [{{name: r, from: [{{serviceAccounts: [a{n}, b{}]}}], to: [{{methods: [GET, HEAD], paths: [/v1/p{n}, '/v1/q{n}/{{*}}'], ports: [8080]}}]}}]",
                n % 97
            ),
        };
        let _ = write!(
            text,
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{n}, namespace: shop}}\nspec: {{{spec}}}\n"
        );
    }
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "x".into(),
            labels: BTreeMap::new(),
        }),
    };
    let start = Instant::now();
    let file = SourceFile { name: "rules".into(), text: text.into_bytes() };
    let generation = load(&[file], &scope, 1).unwrap_or_else(|errors| panic!("{errors}"));
    println!("{rules} rules: loaded in {:?}", start.elapsed());
    generation
}

/// Nanoseconds per decision, of the engine and of the reference.
fn measure(generation: &Generation, rules: usize) -> (u128, u128) {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let cases: Vec<(SpiffeId, CanonPath)> = (0..64)
        .map(|n| n * (rules / 64).max(1) % rules)
        .map(|n| {
            let id = SpiffeId::parse(&format!("spiffe://td/ns/shop/sa/a{n}")).expect("a literal");
            (id, CanonPath::parse(format!("/v1/q{n}/7"), &generation.defaults().path).expect("a literal"))
        })
        .collect();
    let get = CanonMethod::get();
    let sources: Vec<Source<'_>> =
        cases.iter().map(|(id, _)| Source { identity: Some(id), address }).collect();
    let connections: Vec<_> = sources.iter().map(|source| generation.connection(*source)).collect();
    let engine = time(&mut |n| {
        let n = n % cases.len();
        let operation = Operation::http(&get, &cases[n].1);
        generation.decide(&connections[n], 8080, operation).is_allowed()
    });
    let reference = time(&mut |n| {
        let n = n % cases.len();
        let operation = Operation::http(&get, &cases[n].1);
        generation.decide_by_reference(sources[n], 8080, operation).is_allowed()
    });
    (engine, reference)
}

fn time(question: &mut dyn FnMut(usize) -> bool) -> u128 {
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(300) {
        for n in 0..64 {
            black_box(question(count + n));
        }
        count += 64;
    }
    start.elapsed().as_nanos() / count as u128
}

#[test]
#[ignore = "a measurement"]
fn a_decision_does_not_grow_with_the_rules() {
    let mut first = None;
    for rules in [10, 1_000, 10_000] {
        let generation = generation(rules);
        let (engine, reference) = measure(&generation, rules);
        println!(
            "{rules} rules: engine {engine} ns, rule by rule {reference} ns, ratio {:.1}",
            reference as f64 / engine as f64
        );
        // Caches get colder; the number of rules itself must not show.
        let first = *first.get_or_insert(engine);
        assert!(engine < first * 8, "{engine} ns at {rules} rules, {first} ns at 10");
    }
}
