//! A set that is loaded again, file by file, is what it would be if it were loaded for the first time.

use std::collections::BTreeMap;

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{Diagnostics, Generation, Loader, Operation, Scope, Source, SourceFile, Workload, load};
use postern_svid::{SpiffeId, TrustDomain};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn scope(root: &str) -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: root.into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::from([("app".to_owned(), "orders".to_owned())]),
        }),
    }
}

fn document(kind: &str, name: &str, spec: &str) -> String {
    let namespace = if kind == "MeshDefaults" { "root" } else { "shop" };
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// What a file may hold: everything that concerns other files stands here more than once.
fn contents() -> Vec<String> {
    let policy = |name: &str, spec: &str| document("AccessPolicy", name, spec);
    let allow =
        |name: &str, rule: &str| policy(name, &format!("{{action: Allow, rules: [{{name: r, {rule}}}]}}"));
    let deny =
        |name: &str, rule: &str| policy(name, &format!("{{action: Deny, rules: [{{name: r, {rule}}}]}}"));
    let port = |paths: &str| {
        format!(
            "{{identity: spiffe://td/ns/shop/sa/orders, ports: [{{port: 80, protocol: http{paths}}}], endpoints: [{{address: 10.0.0.1}}]}}"
        )
    };
    let test = |rule: &str| {
        format!(
            "{{workload: {{labels: {{app: orders}}, port: 80}}, cases: [{{name: c, request: {{from: web, path: /a}}, expect: {{allow: {rule}}}}}]}}"
        )
    };
    vec![
        allow("a", "from: [{serviceAccounts: [web]}], to: [{paths: [/a]}]"),
        allow("a", "from: [{serviceAccounts: [web]}], to: [{paths: [/a, /b]}]"),
        allow("a", "from: [{namespaces: [shop]}], to: [{pathPrefix: [/b]}]") + "# a remark\n",
        allow("b", "from: [{namespaces: [shop]}], to: [{pathPrefix: [/b]}]"),
        allow("kept", "to: [{paths: [/a%2Fb]}]"),
        deny("c", "to: [{paths: [/b/secret], ports: [80]}]"),
        deny("c", "from: [{not: {namespaces: [shop]}}]"),
        format!(
            "{}---\n{}",
            allow("d", "from: [{namespaces: [aliased]}]"),
            deny("e", "to: [{paths: [/a/d], ports: [80]}]")
        ),
        policy("s", "{enforcement: Shadow, action: Deny, rules: [{name: r, to: [{paths: [/a]}]}]}"),
        policy(
            "t",
            "{tier: Baseline, target: {selector: {app: orders}}, action: Allow, rules: [{name: r}, {name: q}]}",
        ),
        policy("t", "{target: {selector: {app: other}}, action: Allow, rules: [{name: r}]}"),
        policy("bad", "{action: Allow, rules: []}"),
        policy("bad", "{action: Alow, rules: [{nam: r}]}"),
        allow("root-only", "from: [{namespaces: [shop]}]").replace("namespace: shop", "namespace: root"),
        policy(
            "platform",
            "{tier: Platform, action: Deny, rules: [{name: r, to: [{pathPrefix: [/admin]}]}]}",
        )
        .replace("namespace: shop", "namespace: root"),
        document("MeshDefaults", "default", "{}"),
        document("MeshDefaults", "default", "{http: {escapedSlashes: Keep}}"),
        document(
            "MeshDefaults",
            "default",
            "{http: {escapedSlashes: Decode}, trustDomains: {aliases: [old]}}",
        ),
        document("MeshDefaults", "other", "{trustDomains: {aliases: [td]}}"),
        document("Service", "orders", &port("")),
        document("Service", "orders", &port(", escapedSlashes: Keep")),
        document("Service", "orders", &port(", escapedSlashes: Sometimes")),
        document("Service", "web", &port("").replace("sa/orders", "sa/web")),
        document("PolicyTest", "t", &test("a/r")),
        document("PolicyTest", "t", &test("nowhere/r")),
        String::new(),
        "# nothing\n".to_owned(),
        "kind: [\n".to_owned(),
        "\u{0}".to_owned(),
    ]
}

/// Everything that can be asked of a loaded set, as text.
fn answers(loaded: &Result<Generation, Diagnostics>) -> String {
    let generation = match loaded {
        Ok(generation) => generation,
        Err(errors) => return format!("{errors}\n{}", serde_json::to_string(errors).expect("it is JSON")),
    };
    let mut out = format!(
        "{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{}\n{}\n",
        generation.defaults(),
        generation.documents(),
        generation.ports_named(),
        generation.services().iter().collect::<Vec<_>>(),
        generation.rules().collect::<Vec<_>>(),
        generation.warnings(),
        serde_json::to_string(generation.warnings()).expect("it is JSON"),
    );
    let get = CanonMethod::get();
    for id in ["td/ns/shop/sa/web", "td/ns/aliased/sa/x", "old/ns/shop/sa/web", "old/ns/aliased/sa/x"] {
        let id = SpiffeId::parse(&format!("spiffe://{id}")).expect("a literal");
        let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
        let connection = generation.connection(source);
        for path in ["/", "/a", "/a/d", "/b", "/b/secret", "/admin/x", "/a%2Fb"] {
            let Ok(path) = CanonPath::parse(path, &generation.defaults().path) else { continue };
            let operation = Operation::http(&get, &path);
            let verdict = generation.decide(&connection, 80, operation);
            assert_eq!(verdict, generation.decide_by_reference(source, 80, operation));
            out.push_str(&format!("{verdict:?}\n"));
        }
    }
    out
}

#[test]
fn a_set_that_is_loaded_again_is_what_it_would_be_at_first() {
    let contents = contents();
    // A file's place, what it holds from now on (beyond the end: nothing, it is gone), and whose root namespace.
    let edit = (0..6_usize, 0..contents.len() + 8, prop::bool::weighted(0.05));
    let edits = prop::collection::vec(edit, 1..40);
    let cases = if std::env::var_os("POSTERN_TEST_LONG").is_some() { 4_000 } else { 40 };
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let loads = std::cell::Cell::new((0, 0));
    let result = runner.run(&edits, |edits| {
        let mut loader = Loader::new();
        let mut files: BTreeMap<usize, SourceFile> = BTreeMap::new();
        for (number, (place, content, is_other)) in (1..).zip(edits) {
            match contents.get(content) {
                Some(text) => {
                    let file = SourceFile { name: format!("{place}.yaml"), text: text.clone().into_bytes() };
                    files.insert(place, file);
                }
                None => {
                    files.remove(&place);
                }
            }
            let scope = scope(if is_other { "shop" } else { "root" });
            let set: Vec<SourceFile> = files.values().cloned().collect();
            let again = loader.load(&set, &scope, number);
            let (all, good) = loads.get();
            loads.set((all + 1, good + usize::from(again.is_ok())));
            prop_assert_eq!(answers(&again), answers(&load(&set, &scope, number)));
        }
        Ok(())
    });
    let (all, good) = loads.get();
    println!("{all} sets loaded twice, {good} of them good");
    assert_eq!(result, Ok(()));
    assert!(good * 20 > all, "sets that are all refused prove little");
}

#[test]
fn findings_do_not_depend_on_how_many_files_are_read_at_once() {
    // Enough bytes for every thread, and mistakes in all parts.
    let file = |n: usize| {
        let rule = if n % 97 == 5 { "{name: r, form: []}" } else { "{name: r, to: [{paths: [/a]}]}" };
        let text = document("AccessPolicy", &format!("p{n}"), &format!("{{action: Deny, rules: [{rule}]}}"));
        SourceFile { name: format!("{n:04}.yaml"), text: (text + &"# padding\n".repeat(50)).into_bytes() }
    };
    let files: Vec<SourceFile> = (0..1_000).map(file).collect();
    let errors = load(&files, &scope("root"), 1).expect_err("there are mistakes");
    let places: Vec<&str> = errors.iter().map(|error| &*error.file).collect();
    assert_eq!(places.len(), 11);
    assert!(places.is_sorted(), "{places:?}");
    let good: Vec<SourceFile> =
        files.into_iter().enumerate().filter(|(n, _)| n % 97 != 5).map(|(_, file)| file).collect();
    let generation = load(&good, &scope("root"), 1).unwrap_or_else(|errors| panic!("{errors}"));
    let names: Vec<String> =
        generation.documents().iter().map(|document| document.place.file.to_string()).collect();
    assert!(names.len() == 989 && names.is_sorted());
    assert_eq!(generation.warnings().total(), 989 * 2);
}

/// Each load is what it would be at first, and keeps no more than the files that are there.
fn loaded(loader: &mut Loader, files: &[(&str, &str)]) -> Generation {
    let files: Vec<SourceFile> = files
        .iter()
        .map(|(name, text)| SourceFile { name: (*name).to_owned(), text: text.as_bytes().to_vec() })
        .collect();
    let again = loader.load(&files, &scope("root"), 7);
    assert_eq!(answers(&again), answers(&load(&files, &scope("root"), 7)));
    assert_eq!(format!("{loader:?}"), format!("Loader {{ files: {} }}", files.len()));
    again.unwrap_or_else(|errors| panic!("{errors}"))
}

/// What the loader must notice, one thing after the other.
#[test]
fn files_change_move_and_go() {
    let rule = |action: &str, name: &str, path: &str| {
        document(
            "AccessPolicy",
            name,
            &format!("{{action: {action}, rules: [{{name: r, to: [{{paths: [{path}]}}]}}]}}"),
        )
    };
    let (a, b, denied) = (rule("Allow", "p", "/a"), rule("Allow", "p", "/b"), rule("Deny", "q", "/b"));
    assert_eq!(a.len(), b.len());
    let is_allowed = |generation: &Generation, path: &str| {
        let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
        let source = Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
        let path = CanonPath::parse(path, &generation.defaults().path).expect("a literal");
        let method = CanonMethod::get();
        generation.decide(&generation.connection(source), 80, Operation::http(&method, &path)).is_allowed()
    };
    let places = |generation: &Generation| {
        let documents = generation.documents().iter();
        documents.map(|document| format!("{} {}", document.place.file, document.name)).collect::<Vec<_>>()
    };
    let mut loader = Loader::new();
    let first = loaded(&mut loader, &[("0.yaml", &a), ("1.yaml", &denied)]);
    assert!(is_allowed(&first, "/a") && !is_allowed(&first, "/b"));
    // Other bytes, and as many.
    let edited = loaded(&mut loader, &[("0.yaml", &b), ("1.yaml", &denied)]);
    assert!(!is_allowed(&edited, "/a") && !is_allowed(&edited, "/b"));
    // Moved: the same bytes under another name, which findings and places name.
    let moved = loaded(&mut loader, &[("1.yaml", &denied), ("2.yaml", &b)]);
    assert_eq!(places(&moved), ["1.yaml q", "2.yaml p"]);
    // Two files that change places.
    let swapped = loaded(&mut loader, &[("1.yaml", &b), ("2.yaml", &denied)]);
    assert_eq!(places(&swapped), ["1.yaml p", "2.yaml q"]);
    // Gone: what it denied is denied no more.
    let without = loaded(&mut loader, &[("1.yaml", &b)]);
    assert!(is_allowed(&without, "/b"));
    // Back with other bytes, and then with those of before.
    let other = loaded(&mut loader, &[("1.yaml", &b), ("2.yaml", &denied.replace("/b", "/c"))]);
    assert!(is_allowed(&other, "/b"));
    let back = loaded(&mut loader, &[("1.yaml", &b), ("2.yaml", &denied)]);
    assert!(!is_allowed(&back, "/b"));
    // A file that is read as it was means something else where the set around it says so.
    let alias = document("MeshDefaults", "default", "{trustDomains: {aliases: [old]}}");
    let aliased = loaded(&mut loader, &[("1.yaml", &b), ("9.yaml", &alias)]);
    assert_eq!(aliased.defaults().aliases.len(), 1);
    let port = document(
        "Service",
        "orders",
        "{identity: spiffe://td/ns/shop/sa/orders, ports: [{port: 80, protocol: http, escapedSlashes: Keep}], endpoints: [{address: 10.0.0.1}]}",
    );
    let kept = rule("Allow", "p", "/a%2Fb");
    let _ = loaded(&mut loader, &[("1.yaml", &kept), ("9.yaml", &port)]);
    let files = [SourceFile { name: "1.yaml".into(), text: kept.into_bytes() }];
    assert!(loader.load(&files, &scope("root"), 8).is_err(), "no port keeps slashes any more");
}

/// A finding about a file stands with it, whether the file was read now or before.
#[test]
fn warnings_of_files_that_stay_are_told_again() {
    let deny = document("AccessPolicy", "p", "{action: Deny, rules: [{name: r, to: [{paths: [/a]}]}]}");
    let other = |n: usize| document("AccessPolicy", &format!("q{n}"), "{action: Audit, rules: [{name: r}]}");
    let mut loader = Loader::new();
    for n in 0..3 {
        let generation = loaded(&mut loader, &[("0.yaml", &deny), ("1.yaml", &other(n))]);
        assert_eq!(generation.warnings().total(), 2, "{}", generation.warnings());
    }
}

/// Generated documents are large. What bounds a set is its bytes and its rules.
#[test]
fn a_document_may_hold_twenty_thousand_rules() {
    let rule = |n: usize| {
        format!(
            "{{name: r{n}, from: [{{serviceAccounts: [a{n}]}}], to: [{{methods: [GET], paths: [/a{n}]}}]}}"
        )
    };
    let rules: Vec<String> = (0..20_000).map(rule).collect();
    let text = document("AccessPolicy", "p", &format!("{{action: Allow, rules: [{}]}}", rules.join(",\n")));
    let file = SourceFile { name: "a.yaml".into(), text: text.into_bytes() };
    let generation = load(&[file], &scope("root"), 1).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(generation.documents()[0].rules, 20_000);
}
