//! What hostile sets of rules make the engine look at, and that whoever loads them is told. Counts, not times: times are
//! the bench's (`cargo bench -p postern-policy --bench adversarial`).

use std::net::IpAddr;

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath, MAX_READINGS};
use postern_policy::{Generation, HeaderFields, Operation, Scope, Source, Tokens, load};
use postern_svid::SpiffeId;

#[path = "../benches/rules/mod.rs"]
mod rules;

use rules::hostile::{Ask, Shape, shapes};
use rules::{PORT, documents, scope};

/// Above the number from which on a set is warned of.
const RULES: usize = 1_040;

fn generation(shape: &Shape, scope: &Scope) -> Generation {
    load(&shape.files, scope, 1).unwrap_or_else(|errors| panic!("{}: {errors}", shape.name))
}

#[test]
fn every_hostile_set_is_warned_of_with_names_a_reason_and_a_way_out() {
    for (at, shape) in shapes(RULES).into_iter().enumerate() {
        let name = shape.name;
        let generation = generation(&shape, &scope());
        let candidates = generation.most_candidates();
        assert!(candidates > 1_000, "{name}: {candidates} candidates");
        assert!(candidates <= RULES, "{name}: {candidates} candidates of {RULES} rules");
        let said = |generation: &Generation| {
            let mut warnings = generation.warnings().into_iter();
            let found = warnings.find(|warning| warning.message.contains("rules one by one"));
            found.unwrap_or_else(|| panic!("{name}: no warning")).clone()
        };
        let warning = said(&generation);
        let number: usize = warning
            .message
            .split(' ')
            .find_map(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("{warning}"));
        // One more may be found by what few share.
        assert!((candidates - 1..=candidates).contains(&number), "{name}, {candidates}: {warning}");
        let last = RULES - 1;
        let is_named = !name.starts_with("Istio") && !name.starts_with("everything");
        let last = if is_named { format!("/r{last} (") } else { ".yaml:".to_owned() };
        for word in ["shop/p0/", " (0.yaml:", &last, " us each time", "…"] {
            assert!(warning.message.contains(word), "{name}, {word}: {warning}");
        }
        assert!(warning.help.is_some() && warning.line > 0, "{name}: {warning}");
        if at % 4 != 0 {
            continue;
        }
        // A check that is for no workload in particular says it too, and for whom.
        let checked = load(&shape.files, &Scope { workload: None, ..scope() }, 1).expect("it loads");
        assert!(said(&checked).message.contains("(workloads in shop)"), "{name}: {}", said(&checked));
        let count = |generation: &Generation| {
            generation
                .warnings()
                .iter()
                .filter(|warning| warning.message.contains("rules one by one"))
                .count()
        };
        assert_eq!(count(&checked), count(&generation), "{name}");
    }
}

#[test]
fn rules_that_people_write_are_not() {
    let generation = load(&documents(4_000), &scope(), 1).expect("it loads");
    assert!(generation.most_candidates() < 60, "{}", generation.most_candidates());
    let mut warnings = generation.warnings().into_iter();
    let crowd = warnings.find(|warning| warning.message.contains("one by one"));
    assert!(crowd.is_none(), "{crowd:?}");
}

#[test]
fn engine_and_reference_agree_about_the_worst_questions() {
    for shape in shapes(60) {
        let generation = generation(&shape, &scope());
        let Ask { identity, address, path, host, headers } = shape.ask;
        let identity = SpiffeId::parse(identity).expect("a literal");
        let address: IpAddr = address.parse().expect("a literal");
        let source = Source { identity: Some(&identity), address };
        let path = CanonPath::parse(path, &generation.defaults().path).expect("a literal");
        if shape.name.contains("many readings") {
            assert_eq!(path.views().count(), 1 + MAX_READINGS, "{}", shape.name);
        }
        let host = CanonHost::parse(host).expect("a literal");
        let mut fields = HeaderFields::new();
        for (name, value) in headers {
            fields.push(name, value).expect("a literal");
        }
        let operation = Operation::Http {
            method: &CanonMethod::get(),
            path: &path,
            host: Some(&host),
            headers: Some(&fields),
            upgrade: None,
            tokens: Tokens::Absent,
        };
        let verdict = generation.decide(&generation.connection(source), PORT, operation);
        assert_eq!(verdict, generation.decide_by_reference(source, PORT, operation), "{}", shape.name);
        assert_eq!(verdict.rule, None, "{}: a rule fires, so others are not looked at", shape.name);
    }
}
