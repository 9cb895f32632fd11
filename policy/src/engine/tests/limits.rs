//! Limits are matched as the interpreter matches them: all of them, in any reading.

use super::*;
use crate::SourceFile;
use crate::limits::{LimitName, LimitRule, Override, Quota, Rate};

fn limit(written: &Written, n: usize) -> LimitRule {
    let rule = Rule { action: Action::Audit, window: None, condition: None, ..rule(written) };
    let place = crate::Place { file: "p".into(), line: n, column: 1 };
    let name = LimitName {
        namespace: "a".into(),
        document: "b".into(),
        limit: n.to_string().into(),
        enforcement: Enforcement::Enforce,
        place,
    };
    let quota = Quota::new(Rate::parse("1/s").unwrap(), None).unwrap();
    let overrides = rule.from.iter().map(|from| Override { from: from.clone(), quota }).collect();
    LimitRule { name, rule: rule.into(), quota, key: Vec::new(), max_keys: 1, overrides, tells: true }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn limits_match_as_by_reference(
        rules in prop::collection::vec(written(), 0..6),
        limits in prop::collection::vec(written(), 1..12),
        questions in prop::collection::vec(question(), 1..24),
    ) {
        let limits: Vec<LimitRule> = limits.iter().zip(0..).map(|(written, n)| limit(written, n)).collect();
        let rules = rules.iter().map(|written| rule(written).into()).collect();
        let engine = Engine::with_limits(rules, limits.iter(), domains(), 1);
        for question in questions {
            let (source, port, operation) = (question.source(), question.port, question.operation());
            let connection = engine.connection(source);
            let matched = engine.limits_that_match(&connection, port, operation);
            for (id, limit) in limits.iter().enumerate() {
                let expected =
                    eval_ref::matches_any_view(&limit.rule, &domains(), source, port, operation, None);
                prop_assert_eq!(matched.contains(id), expected, "{:?}", limit.rule);
                let means = |peer: &Peer| {
                    eval_ref::peer(peer, &domains(), source, Action::Allow)
                        && eval_ref::token(peer, Action::Allow, operation) == eval_ref::Truth::True
                };
                let meant = |one: &Override| one.from.iter().any(means);
                let expected = limit.overrides.iter().position(meant);
                prop_assert_eq!(engine.override_of(id, &connection, operation), expected);
            }
        }
    }
}

/// What is written as a limit is counted as it is written.
#[test]
fn documents_become_limits() {
    let text = "apiVersion: postern.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: p, namespace: a}\nspec: {limits: [{name: l, rate: 1/s, match: {from: [{namespaces: [a]}], methods: [GET], pathPrefix: [/a], hosts: ['*.x'], headers: [{name: x-a, exact: [v]}], ports: [80], not: {paths: [/a/b]}}}]}\n";
    let file = SourceFile { name: "p".into(), text: text.into() };
    let generation = load(&[file], &scope(), 1).unwrap_or_else(|errors| panic!("{errors}"));
    let limit = generation.limits.rules().next().unwrap();
    assert!(limit.rule.action.is_wide());
    let [peer] = limit.rule.from.as_deref().unwrap() else { panic!("{:?}", limit.rule) };
    assert_eq!(peer.namespaces.as_deref(), Some(&["a".into()][..]));
    let [target] = limit.rule.to.as_deref().unwrap() else { panic!("{:?}", limit.rule) };
    let Target { methods, paths, grpc, hosts, headers, upgrade, sni, ports, not } = target;
    assert!(matches!(methods, Some(Methods::Only(named)) if named.len() == 1));
    assert_eq!(paths.as_deref(), Some(&[PathPattern::Prefix("/a".into())][..]));
    assert_eq!((grpc, upgrade.is_some(), sni.is_some()), (&false, false, false));
    assert_eq!(hosts.as_deref(), Some(&[HostPattern::Below("x".into())][..]));
    assert_eq!((headers.len(), ports.as_deref()), (1, Some(&[80][..])));
    assert_eq!(not.as_ref().unwrap().paths, [PathPattern::Exact("/a/b".into())]);
    assert_eq!(generation.headers_named(), &["x-a".into()]);
}
