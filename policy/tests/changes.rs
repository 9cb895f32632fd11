//! Whom a change may concern: never too few, told of whole generations. What a random set of rules changes is held
//! against the engine elsewhere; here stands everything else that a generation holds.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{Call, Changes, Generation, Operation, Scope, Source, SourceFile, Workload, load};
use postern_svid::{SpiffeId, TrustDomain};

fn document(kind: &str, name: &str, spec: &str) -> String {
    let namespace = if kind == "MeshDefaults" { "root" } else { "shop" };
    format!(
        "---\napiVersion: postern.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn generation(documents: &[String], number: u64) -> Generation {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    let text =
        documents.concat() + &document("AccessPolicy", "always-there", "action: Audit, rules: [{name: r}]");
    let file = SourceFile { name: "p.yaml".into(), text: text.into_bytes() };
    load(&[file], &scope, number).unwrap_or_else(|errors| panic!("{errors}"))
}

/// An AccessPolicy with one rule.
fn rule(name: &str, action: &str, rest: &str) -> String {
    document("AccessPolicy", name, &format!("action: {action}, rules: [{{name: r, {rest}}}]"))
}

const WEB: &str = "spiffe://td/ns/shop/sa/web";
const CART: &str = "spiffe://td/ns/shop/sa/cart";
const OLD: &str = "spiffe://old/ns/shop/sa/web";

/// Somebody's GET of a path at a port, or opaque bytes.
#[derive(Clone, Copy, Debug)]
struct Stream {
    id: Option<&'static str>,
    port: u16,
    path: Option<&'static str>,
}

const fn get(id: &'static str, port: u16, path: &'static str) -> Stream {
    Stream { id: Some(id), port, path: Some(path) }
}

/// What becomes of the stream before and after, and whether it is said to be concerned.
fn asked(before: &Generation, after: &Generation, stream: Stream) -> (bool, bool, bool) {
    let id = stream.id.map(|id| SpiffeId::parse(id).expect("a literal"));
    let source = Source { identity: id.as_ref(), address: [10, 0, 0, 1].into() };
    let method = CanonMethod::get();
    let path = stream.path.map(|path| CanonPath::parse(path, &Default::default()).expect("a literal"));
    let operation = path.as_ref().map_or(Operation::Tcp, |path| Operation::http(&method, path));
    let is_allowed = |generation: &Generation| {
        generation.decide(&generation.connection(source), stream.port, operation).is_allowed()
    };
    let concerned = Changes::between(before, after).may_concern(source, stream.port, operation);
    (is_allowed(before), is_allowed(after), concerned)
}

/// What changes, the documents before and after, who is judged otherwise, and who is not and need not be asked.
type Row = (&'static str, Vec<String>, Vec<String>, Vec<Stream>, Vec<Stream>);

#[test]
fn whoever_is_judged_otherwise_is_concerned() {
    let all = || rule("all", "Allow", "to: [{ports: [80, 81]}]");
    let aliases =
        |names: &str| document("MeshDefaults", "d", &format!("trustDomains: {{aliases: [{names}]}}"));
    let shadow = |text: String| text.replace("action: Deny", "enforcement: Shadow, action: Deny");
    // Elsewhere the first enforced rule about paths, or the last one, changes more than itself.
    let kept = || rule("kept", "Deny", "to: [{paths: [/kept], ports: [80]}]");
    let tcp = Stream { id: Some(WEB), port: 81, path: None };
    let table: Vec<Row> = vec![
        (
            "a rule goes",
            vec![all(), rule("x", "Allow", "to: [{ports: [90]}]")],
            vec![rule("x", "Allow", "to: [{ports: [90]}]"), rule("p", "Audit", "to: [{ports: [80, 81]}]")],
            vec![get(WEB, 80, "/"), get(CART, 81, "/a"), tcp],
            vec![],
        ),
        (
            "a port",
            vec![all(), rule("d", "Deny", "to: [{ports: [80]}]"), rule("e", "Audit", "to: [{ports: [9]}]")],
            vec![all(), rule("d", "Deny", "to: [{ports: [81]}]"), rule("e", "Audit", "to: [{ports: [9]}]")],
            vec![get(WEB, 80, "/"), get(WEB, 81, "/"), tcp],
            vec![get(WEB, 90, "/")],
        ),
        (
            "the ports of a target",
            vec![
                all(),
                document("AccessPolicy", "d", "target: {ports: [80]}, action: Deny, rules: [{name: r}]"),
            ],
            vec![
                all(),
                document("AccessPolicy", "d", "target: {ports: [81]}, action: Deny, rules: [{name: r}]"),
            ],
            vec![get(WEB, 80, "/"), tcp],
            vec![get(WEB, 90, "/")],
        ),
        (
            "a source",
            vec![all(), rule("d", "Deny", "from: [{serviceAccounts: [web]}], to: [{ports: [80]}]")],
            vec![all(), rule("d", "Deny", "from: [{serviceAccounts: [cart]}], to: [{ports: [80]}]")],
            vec![get(WEB, 80, "/"), get(CART, 80, "/a")],
            vec![get(WEB, 81, "/"), get("spiffe://td/ns/ops/sa/x", 80, "/")],
        ),
        (
            "an address",
            vec![all(), rule("d", "Deny", "from: [{cidrs: [10.0.0.0/8]}]")],
            vec![all(), rule("d", "Deny", "from: [{cidrs: [11.0.0.0/8]}]")],
            vec![get(WEB, 80, "/"), tcp],
            vec![],
        ),
        (
            "a path, in all its readings",
            vec![all(), rule("d", "Deny", "to: [{paths: [/a], ports: [80]}]")],
            vec![all(), rule("d", "Deny", "to: [{paths: [/b], ports: [80]}]")],
            vec![get(WEB, 80, "/a"), get(WEB, 80, "/b"), get(WEB, 80, "/a;x")],
            vec![get(WEB, 80, "/c"), get(WEB, 81, "/a"), get(WEB, 80, "/ab")],
        ),
        (
            "a shadow that is meant from now on",
            vec![all(), kept(), shadow(rule("d", "Deny", "to: [{paths: [/a], ports: [80]}]"))],
            vec![all(), kept(), rule("d", "Deny", "to: [{paths: [/a], ports: [80]}]")],
            vec![get(WEB, 80, "/a")],
            vec![get(WEB, 80, "/b")],
        ),
        (
            "and one that is tried again",
            vec![all(), kept(), rule("d", "Deny", "to: [{paths: [/a], ports: [80]}]")],
            vec![all(), kept(), shadow(rule("d", "Deny", "to: [{paths: [/a], ports: [80]}]"))],
            vec![get(WEB, 80, "/a")],
            vec![get(WEB, 80, "/b")],
        ),
        (
            "an action",
            vec![rule("d", "Allow", "to: [{ports: [80]}]"), all()],
            vec![rule("d", "Deny", "to: [{ports: [80]}]"), all()],
            vec![get(WEB, 80, "/")],
            vec![],
        ),
        (
            "a tier",
            vec![all(), rule("d", "Deny", "to: [{paths: [/a], ports: [80]}]")],
            vec![
                all(),
                rule("d", "Deny", "to: [{paths: [/a], ports: [80]}]")
                    .replace("action: Deny", "tier: Baseline, action: Deny"),
            ],
            vec![get(WEB, 80, "/a")],
            vec![get(WEB, 80, "/b")],
        ),
        (
            "an alias that is none any more",
            vec![rule("own", "Allow", "from: [{namespaces: [shop]}]"), aliases("old")],
            vec![rule("own", "Allow", "from: [{namespaces: [shop]}]"), aliases("older")],
            vec![get(OLD, 80, "/")],
            vec![],
        ),
    ];
    for (what, before, after, turned, others) in table {
        let (before, after) = (generation(&before, 1), generation(&after, 2));
        assert!(!Changes::between(&before, &after).are_none(), "{what}");
        for stream in turned {
            let (was, is, concerned) = asked(&before, &after, stream);
            assert!(was != is, "{what}: nothing changes for {stream:?}");
            assert!(concerned, "{what}: {stream:?}");
        }
        for stream in others {
            let (was, is, concerned) = asked(&before, &after, stream);
            assert!(was == is && !concerned, "{what}: {stream:?} is asked for nothing");
        }
    }
}

#[test]
fn what_the_clock_decides_is_asked_whatever_else_stays() {
    let set = |more: &str| {
        let when = "when: {time: {notAfter: \"1970-01-02T00:00:00Z\"}}";
        [
            rule("t", "Allow", &format!("from: [{{serviceAccounts: [web]}}], to: [{{ports: [80]}}], {when}")),
            rule("m", "Audit", more),
        ]
    };
    let (before, after) =
        (generation(&set("to: [{ports: [1]}]"), 1), generation(&set("to: [{ports: [2]}]"), 2));
    let _ = before.tell_time(UNIX_EPOCH + Duration::from_secs(86_399));
    let _ = after.tell_time(UNIX_EPOCH + Duration::from_secs(86_400));
    assert_eq!(asked(&before, &after, get(WEB, 80, "/")), (true, false, true));
    assert_eq!(asked(&before, &after, get(CART, 80, "/")), (false, false, false));
}

/// A port that nobody declares is open because a rule names it; whether a path must be canonical, because a rule speaks of
/// paths there. Neither is a verdict of the rules, so everybody is asked.
#[test]
fn what_rules_make_of_ports_concerns_everybody() {
    let any = || rule("any", "Allow", "from: [{serviceAccounts: [web]}]");
    let other =
        |rest: &str| rule("x", "Allow", &format!("from: [{{serviceAccounts: [cart]}}], to: [{{{rest}}}]"));
    for (what, before, after) in [
        ("a port that no rule names any more", other("ports: [9000]"), other("ports: [9001]")),
        ("a path that a rule speaks of now", other("methods: [GET]"), other("paths: [/a]")),
        (
            "and where none does any more",
            other("paths: [/a], ports: [80]"),
            other("methods: [GET], ports: [80]"),
        ),
    ] {
        let (before, after) = (generation(&[any(), before], 1), generation(&[any(), after], 2));
        for stream in
            [get(WEB, 9000, "/"), get(WEB, 80, "/a//b"), Stream { id: None, port: 9000, path: None }]
        {
            assert!(asked(&before, &after, stream).2, "{what}: {stream:?}");
        }
        assert!(!Changes::between(&before, &after).are_none(), "{what}");
    }
}

#[test]
fn calls_are_asked_where_they_may_lead_elsewhere_or_are_judged() {
    let service = |address: &str| {
        document(
            "Service",
            "db",
            &format!(
                "identity: spiffe://td/ns/shop/sa/db, ports: [{{port: 80, protocol: http}}], endpoints: [{{address: {address}}}]"
            ),
        )
    };
    let to = |service: &str| {
        let rules = format!("action: Allow, rules: [{{name: r, to: [{{services: [{service}]}}]}}]");
        document("EgressPolicy", "e", &rules)
    };
    let egress = || to("db");
    let (one, other) = (|| service("10.0.0.1"), || service("10.0.0.2"));
    for (what, before, after, every) in [
        ("nothing", vec![one()], vec![one()], false),
        ("an endpoint", vec![one()], vec![other()], true),
        ("a Service comes", vec![], vec![one()], true),
        ("a Service goes", vec![one()], vec![], true),
        ("an EgressPolicy comes", vec![one()], vec![one(), egress()], true),
        ("an EgressPolicy goes", vec![one(), egress()], vec![one()], true),
        ("an EgressPolicy stays", vec![one(), egress()], vec![one(), egress()], false),
    ] {
        let changes = Changes::between(&generation(&before, 1), &generation(&after, 2));
        assert_eq!((changes.concern_every_call(), changes.are_none()), (every, !every), "{what}");
    }
    assert!(Changes::everything().concern_every_call() && !Changes::everything().are_none());
    // What one rule lists, and what it lists no more, and nothing else.
    let (before, after) = ([one(), to("db")], [one(), to("other")]);
    let changes = Changes::between(&generation(&before, 1), &generation(&after, 2));
    assert!(!changes.concern_every_call() && !changes.are_none());
    for (name, expected) in [("db", true), ("third", false)] {
        let text = one().replace("name: db", &format!("name: {name}"));
        let host = CanonHost::parse(&format!("{name}.shop")).expect("a literal");
        let generation = generation(&[text], 1);
        let port = generation.services().find(&host, 80, "shop").expect("it is there");
        let call = Call { port, host: &host, addresses: &[], own: &[], operation: Operation::Tcp };
        assert_eq!(changes.may_concern_call(&call), expected, "{name}");
    }
}

/// More than can be looked through is everybody's business; what only counts, marks or is tried, and what only moves, is
/// nobody's.
#[test]
fn many_changes_concern_everybody_and_some_nobody() {
    let many = |count: usize, path: &str| -> Vec<String> {
        let rules: Vec<String> = (0..count)
            .map(|n| format!("{{name: r{n}, from: [{{serviceAccounts: [a{n}]}}], to: [{{paths: [/{path}/{n}], ports: [80]}}]}}"))
            .collect();
        let chunks = rules.chunks(500).enumerate();
        chunks
            .map(|(n, rules)| {
                document(
                    "AccessPolicy",
                    &format!("p{n}"),
                    &format!("action: Allow, rules: [{}]", rules.join(", ")),
                )
            })
            .collect()
    };
    let stranger = get("spiffe://td/ns/else/sa/x", 80, "/");
    for (before, after, expected) in [(10, 20, false), (0, 4_097, true), (4_200, 4_200, true)] {
        // Ports and paths that are spoken of stay the same.
        let keep = rule("keep", "Allow", "from: [{serviceAccounts: [k]}], to: [{paths: [/k], ports: [80]}]");
        let set = |count, path| generation(&[many(count, path), vec![keep.clone()]].concat(), 1);
        let (before, after) = (set(before, "a"), set(after, "b"));
        assert_eq!(asked(&before, &after, stranger).2, expected);
    }
    let all = || rule("all", "Allow", "to: [{ports: [80]}]");
    let limit =
        |rate: &str| document("RateLimitPolicy", "l", &format!("limits: [{{name: l, rate: {rate}}}]"));
    let shadow = |path: &str| {
        rule("s", "Deny", &format!("to: [{{paths: [{path}], ports: [80]}}]"))
            .replace("action: Deny", "enforcement: Shadow, action: Deny")
    };
    for (what, before, after) in [
        (
            "a limit counts requests that come, not streams that live",
            vec![all(), limit("1/s")],
            vec![all(), limit("2/s")],
        ),
        ("a shadow changes nothing", vec![all(), shadow("/a")], vec![all(), shadow("/b")]),
        ("an audit changes nothing", vec![all(), rule("x", "Audit", "to: [{ports: [1]}]")], vec![all()]),
        ("names and places", vec![all()], vec![rule("renamed", "Allow", "to: [{ports: [80]}]")]),
        (
            "order",
            vec![all(), rule("b", "Deny", "to: [{ports: [81]}]")],
            vec![rule("b", "Deny", "to: [{ports: [81]}]"), all()],
        ),
    ] {
        assert!(Changes::between(&generation(&before, 1), &generation(&after, 2)).are_none(), "{what}");
    }
}
