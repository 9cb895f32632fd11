use std::collections::BTreeMap;

use postern_svid::{SpiffeId, TrustDomain};

use super::*;
use crate::norm::{CanonMethod, CanonPath};
use crate::{Generation, HeaderFields, Scope, SourceFile, Workload, load};

fn generation(spec: &str) -> Generation {
    numbered(spec, 1)
}

fn numbered(spec: &str, number: u64) -> Generation {
    let text = format!(
        "apiVersion: postern.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    );
    let file = SourceFile { name: "p".into(), text: text.into_bytes() };
    load(&[file], &scope(), number).unwrap_or_else(|errors| panic!("{errors}"))
}

fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("td").unwrap(),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    }
}

/// A caller's account in namespace shop (`-`: none), a path, and the value of `x-tenant`.
#[derive(Clone, Copy)]
struct Call<'a>(&'a str, &'a str, Option<&'a str>);

fn ask<T>(call: Call<'_>, then: impl FnOnce(Source<'_>, Operation<'_>) -> T) -> T {
    let Call(account, path, tenant) = call;
    let id = SpiffeId::parse(&format!("spiffe://td/ns/shop/sa/{account}")).ok();
    let source = Source { identity: id.as_ref().filter(|_| account != "-"), address: [10, 0, 0, 1].into() };
    let method = CanonMethod::get();
    let path = CanonPath::parse(path, &Default::default()).unwrap();
    let mut fields = HeaderFields::new();
    if let Some(tenant) = tenant {
        fields.push("x-tenant", tenant).unwrap();
    }
    let operation = Operation::Http {
        method: &method,
        path: &path,
        host: None,
        headers: Some(&fields),
        upgrade: None,
        tokens: crate::Tokens::Absent,
    };
    then(source, operation)
}

/// The limit that refuses, and after how many milliseconds it would not.
fn admit(generation: &Generation, call: Call<'_>, millis: u64) -> Option<(String, u128)> {
    ask(call, |source, operation| {
        let connection = generation.connection(source);
        let named = generation.limits_of(&connection, source, 80, operation);
        assert_eq!(named, generation.limits_by_reference(source, 80, operation));
        let refused = generation.admit(&connection, source, 80, operation, Duration::from_millis(millis))?;
        Some((generation.limit(refused.limit).limit.to_string(), refused.wait.as_millis()))
    })
}

fn counts(generation: &Generation) -> Vec<(u64, u64, u64)> {
    let counts = generation.limits().map(Limit::counts);
    counts.map(|counts| (counts.admitted, counts.refused, counts.shadow_refused)).collect()
}

const WEB: Call<'_> = Call("web", "/", None);

#[test]
fn the_strictest_of_all_limits_answers_and_the_others_lose_nothing() {
    let generation = generation(
        "{limits: [{name: total, rate: 10/s, burst: 3}, {name: each, rate: 1/s, burst: 2, key: [source.identity]}, {name: slow, match: {paths: [/slow]}, rate: 1/m, burst: 1}]}",
    );
    let admit = |call, millis| admit(&generation, call, millis);
    assert_eq!(admit(WEB, 0), None);
    assert_eq!(admit(Call("web", "/slow", None), 0), None);
    // Each and slow refuse; the longer wait is named.
    assert_eq!(admit(Call("web", "/slow", None), 0), Some(("slow".into(), 60_000)));
    for _ in 0..50 {
        assert_eq!(admit(WEB, 0), Some(("each".into(), 1_000)));
    }
    // Had a refused request cost the total anything, nobody else would pass.
    assert_eq!(admit(Call("cart", "/", None), 0), None);
    assert_eq!(admit(Call("cart", "/", None), 0), Some(("total".into(), 100)));
    assert_eq!(admit(Call("cart", "/", None), 100), None);
    assert_eq!(counts(&generation), [(4, 1, 0), (4, 51, 0), (1, 1, 0)]);
}

#[test]
fn what_cannot_be_known_is_counted() {
    let generation = generation(
        "{target: {ports: [80]}, limits: [{name: slow, match: {paths: [/slow]}, rate: 1/s, burst: 1}, {name: tenants, key: [request.header.x-tenant], rate: 1/s, burst: 1}]}",
    );
    let tcp = |millis| {
        ask(WEB, |source, _| {
            let connection = generation.connection(source);
            let of = |port| generation.limits_of(&connection, source, port, Operation::Tcp).len();
            assert_eq!((of(80), of(81)), (2, 0));
            generation.admit(&connection, source, 80, Operation::Tcp, Duration::from_millis(millis))
        })
    };
    assert!(tcp(0).is_none());
    assert!(tcp(0).is_some());
    // An ambiguous path in any of its readings.
    assert!(admit(&generation, Call("web", "/slow;x=1", Some("a")), 500).is_some());
    assert!(admit(&generation, Call("web", "/fast", Some("a")), 500).is_none());
}

#[test]
fn keys_tell_callers_apart_and_those_that_lack_it_share_one() {
    let generation = generation(
        "{limits: [{name: both, rate: 1/s, burst: 1, key: [source.identity, request.header.x-tenant]}]}",
    );
    let passes = |account, tenant| admit(&generation, Call(account, "/", tenant), 0).is_none();
    assert!(passes("web", Some("a")) && passes("web", Some("b")) && passes("cart", Some("a")));
    assert!(!passes("web", Some("a")) && !passes("cart", Some("a")));
    assert!(passes("web", None) && !passes("web", None));
    assert!(passes("web", Some("")) && !passes("web", Some("")), "an empty field is not an absent one");
    assert!(passes("-", None) && !passes("-", None));
    assert_eq!(generation.limits().next().unwrap().counts().keys, 6);
}

#[test]
fn overrides_by_identity() {
    let generation = generation(
        "{limits: [{name: all, rate: 1/s, burst: 1}, {name: each, rate: 1/s, burst: 1, key: [source.namespace], match: {paths: [/x]}}], overrides: [{from: [{serviceAccounts: [gateway]}], limit: all, rate: 100/s, burst: 5}, {from: [{serviceAccounts: [gateway, cart]}], rate: 2/s, burst: 2}]}",
    );
    let count = |account, path| {
        (0..9).take_while(|_| admit(&generation, Call(account, path, None), 0).is_none()).count()
    };
    // Beside the one bucket of the limit itself, which the others share.
    assert_eq!((count("gateway", "/"), count("web", "/"), count("cart", "/")), (5, 1, 0));
    assert_eq!(admit(&generation, Call("gateway", "/", None), 0), Some(("all".into(), 10)));
    let wait = Duration::from_secs(10).as_millis() as u64;
    let count = |account, path| {
        (0..9).take_while(|_| admit(&generation, Call(account, path, None), wait).is_none()).count()
    };
    // The second override says nothing of `all`, which has no key; of `each` it does, for both.
    assert_eq!((count("gateway", "/x"), count("cart", "/x")), (2, 0));
}

/// One key, and two quotas: whoever has more than the others must not use up what they have, nor get it.
#[test]
fn an_override_has_buckets_of_its_own_under_the_same_key() {
    let spec = "{limits: [{name: each, rate: 1/s, burst: 2, key: [source.namespace]}], overrides: [{from: [{serviceAccounts: [gateway]}], rate: 100/s, burst: 5}, {from: [{serviceAccounts: [cart]}], rate: 3/s, burst: 3}]}";
    let accounts = ["gateway", "cart", "web"];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let generation = generation(spec);
        for at in order {
            let passed =
                (0..9).take_while(|_| admit(&generation, Call(accounts[at], "/", None), 0).is_none()).count();
            assert_eq!(passed, [5, 3, 2][at], "{} of {order:?}", accounts[at]);
        }
        // Whom no override means shares one with its namespace, as the key says.
        assert!(admit(&generation, Call("other", "/", None), 0).is_some());
        assert_eq!(generation.limits().next().unwrap().counts().keys, 3);
    }
}

#[test]
fn a_limit_in_the_shadow_refuses_nobody_and_says_whom_it_would() {
    let generation = generation("{enforcement: Shadow, limits: [{name: all, rate: 1/s, burst: 2}]}");
    assert!((0..5).all(|_| admit(&generation, WEB, 0).is_none()));
    assert_eq!(counts(&generation), [(2, 0, 3)]);
}

#[test]
fn buckets_outlive_a_reload_that_does_not_change_them() {
    let spec = |rest: &str| {
        format!("{{limits: [{{name: a, rate: 1/h, burst: 1, key: [source.identity]}}, {rest}]}}")
    };
    let first = generation(&spec("{name: b, rate: 1/h, burst: 2, match: {paths: [/b]}}"));
    let b = Call("cart", "/b", None);
    assert!(admit(&first, WEB, 0).is_none() && admit(&first, b, 0).is_none());
    // The same words in another order, another enforcement, another document around them: still the same limit.
    let mut second = numbered(
        "{enforcement: Shadow, onLimit: {retryAfter: false}, limits: [{name: b, match: {paths: [/b]}, rate: 1/h, burst: 3}, {key: [source.identity], burst: 1, name: a, rate: 1/h}]}",
        2,
    );
    second.inherit_limits(&first);
    assert!(admit(&second, WEB, 0).is_none());
    let of = |generation: &Generation| {
        let all = generation.limits().map(|limit| (limit.name().limit.to_string(), limit.counts()));
        all.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(of(&second)["a"], LimitCounts { admitted: 2, refused: 0, shadow_refused: 1, keys: 2 });
    // What changed starts anew, and counts on under its name.
    assert_eq!(of(&second)["b"].admitted, 1);
    let third = {
        let mut third = numbered(&spec("{name: b, rate: 1/h, burst: 3, match: {paths: [/b]}}"), 3);
        third.inherit_limits(&second);
        third
    };
    assert!(admit(&third, WEB, 0).is_some());
    let left = (0..9).take_while(|_| admit(&third, Call("new", "/b", None), 0).is_none()).count();
    assert_eq!(left, 1, "`a` lets one caller in once");
    // What nobody takes over is forgotten, although the generation that had it may be kept for long.
    let mut fourth = numbered("{limits: [{name: c, rate: 1/h}]}", 4);
    assert!(of(&third)["a"].keys > 0);
    fourth.inherit_limits(&third);
    assert_eq!(of(&third)["a"].keys, 0);
}

#[test]
fn a_connection_that_another_generation_resolved_is_counted_by_every_limit() {
    let spec = "{limits: [{name: a, rate: 1/s, match: {from: [{serviceAccounts: [other]}]}}]}";
    let (one, other) = (generation(spec), generation(spec));
    ask(WEB, |source, operation| {
        assert!(one.limits_of(&one.connection(source), source, 80, operation).is_empty());
        assert_eq!(one.limits_of(&other.connection(source), source, 80, operation).len(), 1);
    });
}

#[test]
fn beyond_the_bound_a_limit_matches() {
    let mut matched = Matched::default();
    matched.insert(3);
    matched.insert(MAX_LIMITS + 3);
    assert!(matched.contains(3) && !matched.contains(4) && matched.contains(MAX_LIMITS + 4));
}

fn warnings(spec: &str) -> Vec<String> {
    generation(spec).warnings().iter().map(ToString::to_string).collect()
}

#[test]
fn what_loads_but_does_nothing_is_told() {
    let each = "{name: each, rate: 10/s, burst: 5, key: [source.identity]}";
    for (spec, word, line) in [
        // Always refused by another one first.
        (
            format!("{{limits: [{each}, {{name: b, rate: 9/s, burst: 5}}]}}"),
            "`b` always does so first",
            "each",
        ),
        (
            format!("{{limits: [{each}, {{name: b, rate: 10/s, burst: 5, key: [source.identity]}}]}}"),
            "`each` always",
            "b,",
        ),
        (
            "{limits: [{name: a, rate: 2/s, burst: 2, match: {ports: [80]}}, {name: b, rate: 1/s, burst: 1}]}"
                .to_owned(),
            "`b` always",
            "a,",
        ),
        // On ports that are none of the target's, or whose requests are never seen.
        (
            "{target: {ports: [80]}, limits: [{name: a, rate: 1/s, match: {ports: [81]}}]}".to_owned(),
            "counts nothing",
            "a,",
        ),
        ("{limits: [{name: a, rate: 1/s, match: {paths: [/a]}}]}".to_owned(), "opaque TCP", "a,"),
        ("{limits: [{name: a, rate: 1/s, match: {sni: [a.b]}}]}".to_owned(), "declared `tcp`", "a,"),
        // Overrides of nothing, by nothing, and behind one that means the same callers.
        (
            "{limits: [{name: a, rate: 1/s}], overrides: [{from: [{namespaces: [b]}], rate: 2/s}]}"
                .to_owned(),
            "overrides nothing",
            "namespaces",
        ),
        (
            format!(
                "{{limits: [{each}], overrides: [{{from: [{{namespaces: [b]}}], rate: 10/s, burst: 5}}]}}"
            ),
            "changes nothing",
            "namespaces",
        ),
        (
            format!(
                "{{limits: [{each}], overrides: [{{from: [{{namespaces: [b]}}], rate: 2/s}}, {{from: [{{namespaces: [b]}}], rate: 3/s}}]}}"
            ),
            "never reached",
            "namespaces",
        ),
    ] {
        let told = warnings(&spec);
        let [one] = &told[..] else { panic!("{spec}\n{told:#?}") };
        assert!(one.contains(word) && one.contains(line) && one.contains("help:"), "{spec}\n{one}");
    }
    for spec in [
        format!("{{limits: [{each}, {{name: b, rate: 11/s, burst: 5}}]}}"),
        format!("{{limits: [{each}, {{name: b, rate: 9/s, burst: 6}}]}}"),
        format!("{{limits: [{each}, {{name: b, rate: 9/s, burst: 5, key: [source.address]}}]}}"),
        format!("{{limits: [{each}, {{name: b, rate: 9/s, burst: 5, match: {{ports: [80]}}}}]}}"),
        // For those whom the override means the other one is the stricter.
        format!(
            "{{limits: [{each}, {{name: b, rate: 9/s, burst: 5}}], overrides: [{{from: [{{namespaces: [b]}}], limit: each, rate: 1/s}}]}}"
        ),
        format!(
            "{{limits: [{each}], overrides: [{{from: [{{namespaces: [b]}}], rate: 2/s}}, {{from: [{{namespaces: [c]}}], rate: 2/s}}]}}"
        ),
    ] {
        assert!(warnings(&spec).is_empty(), "{spec}\n{:#?}", warnings(&spec));
    }
}

#[test]
fn more_limits_than_a_request_can_be_asked_about_are_refused() {
    let document = |n: usize| {
        let limits: Vec<String> = (0..32).map(|at| format!("{{name: l{at}, rate: {}/s}}", at + 1)).collect();
        format!(
            "apiVersion: postern.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: p{n}, namespace: shop}}\nspec: {{limits: [{}]}}\n",
            limits.join(", ")
        )
    };
    let set = |count: usize| {
        let text = (0..count).map(document).collect::<Vec<_>>().join("---\n");
        load(&[SourceFile { name: "p".into(), text: text.into_bytes() }], &scope(), 1)
    };
    assert_eq!(set(8).unwrap().limits().count(), MAX_LIMITS);
    let refused = set(9).unwrap_err().to_string();
    assert!(refused.contains("288 rate limits that concern this workload; at most 256"), "{refused}");
}
