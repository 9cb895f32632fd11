//! EgressPolicy documents: what they mean, and what is wrong with them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{
    Call, CallTarget, DenyReason, Diagnostics, Effect, Explanation, Generation, Operation, Scope, SourceFile,
    Verdict, Workload, load, run_tests,
};
use postern_svid::TrustDomain;

const SERVICES: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: inventory, namespace: shop}
spec:
  identity: spiffe://td/ns/shop/sa/inventory
  ports: [{port: 80, protocol: http, targetPort: 8080}]
  endpoints: [{address: 10.1.2.3}]
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: pricing, namespace: shop}
spec:
  identity: spiffe://td/ns/shop/sa/pricing
  ports: [{port: 80, protocol: http}]
  endpoints: [{address: 10.1.2.4}]
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: stripe, namespace: shop}
spec:
  external: true
  hosts: [api.stripe.com, files.stripe.com]
  ports: [{port: 443, protocol: tls}, {port: 80, protocol: http}]
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: ledger-db, namespace: shop}
spec:
  external: true
  ports: [{port: 5432, protocol: tcp}]
  endpoints: [{address: 10.40.1.2}]
---
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: metadata, namespace: shop}
spec:
  external: true
  hosts: [metadata.example]
  ports: [{port: 80, protocol: http}]
"#;

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{spec}"
    )
}

fn scope(label: &str) -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: label.into(),
            labels: BTreeMap::from([("app".into(), label.into())]),
        }),
    }
}

fn loaded(text: &str, label: &str) -> Result<Generation, Diagnostics> {
    let file = SourceFile { name: "e.yaml".into(), text: text.into() };
    load(&[file], &scope(label), 1)
}

fn generation(policies: &str) -> Generation {
    loaded(&format!("{SERVICES}{policies}"), "orders").unwrap_or_else(|errors| panic!("{errors}"))
}

/// What is answered to a call: a URL, perhaps with a method in front of it and an address behind it.
fn asked<T>(generation: &Generation, question: &str, ask: impl Fn(&Call<'_>) -> T) -> Option<T> {
    let mut words = question.split(' ').peekable();
    let method = words.next_if(|word| !word.contains("://")).unwrap_or("GET");
    let target = CallTarget::parse(words.next()?).expect("a URL");
    let given: Vec<IpAddr> = words.map(|word| word.parse().expect("an address")).collect();
    let port = generation.called(&target, "shop").ok()?;
    let listed = port.addresses();
    let addresses = if given.is_empty() { &listed } else { &given };
    let method = CanonMethod::parse(method).expect("a method");
    let path =
        CanonPath::parse(target.path.as_deref().unwrap_or("/"), &generation.defaults().path).expect("a path");
    let operation = if target.path.is_some() { Operation::http(&method, &path) } else { Operation::Tcp };
    let own = ["10.1.2.9".parse().expect("an address")];
    let call = Call { port, host: &target.host, addresses, own: &own, operation };
    assert_eq!(generation.decide_egress(&call), generation.decide_egress_by_reference(&call), "{question}");
    Some(ask(&call))
}

fn verdict(generation: &Generation, question: &str) -> Option<Verdict> {
    asked(generation, question, |call| generation.decide_egress(call))
}

/// The rule that decided, or `mesh`, `default`, `address`, `unknown`.
fn by(generation: &Generation, question: &str) -> String {
    let Some(verdict) = verdict(generation, question) else { return "unknown".into() };
    let rule = verdict.rule.map(|rule| generation.rule(rule).to_string());
    match (verdict.effect, rule) {
        (Effect::Allow, Some(rule)) => format!("+{rule}"),
        (Effect::Deny(_), Some(rule)) => format!("-{rule}"),
        (Effect::Allow, None) => "mesh".into(),
        (Effect::Deny(DenyReason::Address), None) => "address".into(),
        (Effect::Deny(_), None) => "default".into(),
    }
}

fn explained(generation: &Generation, question: &str) -> Explanation {
    asked(generation, question, |call| generation.explain_egress(call)).expect("the service is known")
}

fn holds(generation: &Generation, table: &[(&str, &str)]) {
    for (question, expected) in table {
        assert_eq!(by(generation, question), *expected, "{question}");
    }
}

#[test]
fn without_a_policy_the_mesh_is_open_and_the_rest_is_not() {
    let g = generation("");
    holds(
        &g,
        &[
            ("http://inventory", "mesh"),
            ("http://inventory.shop/a", "mesh"),
            ("https://api.stripe.com", "default"),
            ("https://stripe.shop", "default"),
            ("https://api.stripe.com 192.0.2.1", "default"),
            ("tcp://ledger-db.shop:5432", "default"),
            ("https://other.example", "unknown"),
            ("tcp://10.40.1.2:5432", "unknown"),
        ],
    );
    assert!(!g.judges_egress(false) && g.judges_egress(true));
}

const ORDERS: &str = r#"  source: {selector: {app: orders}}
  action: Allow
  rules:
  - name: payments
    to:
    - {hosts: [api.stripe.com], ports: [443], protocol: Tls}
    - {hosts: ["*.stripe.com"], protocol: Http, methods: [GET], pathPrefix: [/v1]}
  - name: mesh
    to: [{services: [inventory]}]
  - name: db
    to: [{cidrs: [10.40.0.0/16, "2001:db8:40::/64"], except: [10.40.9.0/24], ports: [5432], protocol: Tcp}]
"#;

#[test]
fn once_selected_only_what_is_listed() {
    let g = generation(&policy("orders-egress", ORDERS));
    let payments = "+shop/orders-egress/payments";
    holds(
        &g,
        &[
            ("http://inventory", "+shop/orders-egress/mesh"),
            ("http://inventory.shop.svc.cluster.local/x", "+shop/orders-egress/mesh"),
            ("http://pricing", "default"),
            ("https://api.stripe.com 192.0.2.1", payments),
            // Rules by address do not matter, so none has to be known.
            ("https://api.stripe.com", payments),
            ("https://API.STRIPE.COM.:443 192.0.2.1", payments),
            ("https://files.stripe.com 192.0.2.1", "default"),
            // By its name as a service it has another host.
            ("https://stripe.shop 192.0.2.1", "default"),
            ("http://api.stripe.com/v1/x 192.0.2.1", payments),
            ("http://files.stripe.com/v1 192.0.2.1", payments),
            ("POST http://files.stripe.com/v1 192.0.2.1", "default"),
            ("http://files.stripe.com/v1/%2e%2e/v2 192.0.2.1", "default"),
            ("http://files.stripe.com/v1;x 192.0.2.1", "default"),
            ("http://files.stripe.com/v2 192.0.2.1", "default"),
            ("tcp://ledger-db.shop:5432", "+shop/orders-egress/db"),
            ("tcp://ledger-db.shop:5432 ::ffff:10.40.1.2", "+shop/orders-egress/db"),
            ("tcp://ledger-db.shop:5432 10.40.9.1", "default"),
            ("tcp://ledger-db.shop:5432 10.40.1.2 10.41.1.2", "default"),
            ("tcp://ledger-db.shop:5432 2001:db8:40::7", "+shop/orders-egress/db"),
            ("tcp://ledger-db.shop:5432 2001:db8:41::7", "default"),
        ],
    );
    let other = loaded(&format!("{SERVICES}{}", policy("orders-egress", ORDERS)), "edge").expect("it loads");
    holds(&other, &[("http://pricing", "mesh"), ("https://api.stripe.com 192.0.2.1", "default")]);
}

/// Whatever name leads there, and whatever rules say.
#[test]
fn addresses_that_a_name_must_not_lead_to() {
    let open = "  action: Allow\n  tier: Baseline\n  rules:\n  - name: all\n    to: [{hosts: [metadata.example]}, {services: [metadata]}, {cidrs: [0.0.0.0/0, \"::/0\"]}]\n";
    let g = generation(&policy("open", open));
    holds(
        &g,
        &[
            ("http://metadata.example 192.0.2.1", "+shop/open/all"),
            ("http://metadata.example 169.254.169.254", "default"),
            ("http://metadata.example ::ffff:169.254.169.254", "default"),
            ("http://metadata.example ::169.254.169.254", "default"),
            ("http://metadata.example 64:ff9b::a9fe:a9fe", "default"),
            ("http://metadata.example fd00:ec2::254", "default"),
            ("http://metadata.example fe80::1", "default"),
            ("http://metadata.example 192.0.2.1 169.254.169.254", "default"),
            ("http://metadata.example 127.0.0.1", "address"),
            ("http://metadata.example ::1", "address"),
            ("http://metadata.example 0.0.0.0", "address"),
            // The sidecar's own, and a workload of the mesh.
            ("http://metadata.example 10.1.2.9", "address"),
            ("http://metadata.example 192.0.2.1 10.1.2.3", "address"),
        ],
    );
    let named = "  action: Allow\n  rules:\n  - name: imds\n    to: [{cidrs: [169.254.169.254], ports: [80], protocol: Http}]\n";
    let g = generation(&(policy("open", open) + &policy("named", named)));
    holds(
        &g,
        &[
            ("http://metadata.example 169.254.169.254", "+shop/named/imds"),
            ("http://metadata.example ::ffff:169.254.169.254", "+shop/named/imds"),
            ("http://metadata.example 169.254.169.253", "default"),
            ("http://metadata.example 64:ff9b::a9fe:a9fe", "default"),
        ],
    );
}

#[test]
fn tiers_denies_shadows_audits_and_hours() {
    let guard = "---\napiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: guard, namespace: root}\nspec:\n  tier: Platform\n  source: {all: true}\n  action: Deny\n  rules:\n  - {name: db, to: [{cidrs: [10.40.0.0/16]}]}\n  - {name: writes, to: [{hosts: [files.stripe.com], methods: [POST]}]}\n";
    let rest = "  tier: Baseline\n  action: Allow\n  rules: [{name: mesh, to: [{services: [\"*\"]}]}]\n";
    let shadow = "  enforcement: Shadow\n  action: Allow\n  rules: [{name: fewer, to: [{services: [shop/pricing]}]}]\n";
    let audit = "  action: Audit\n  rules: [{name: marks, to: [{services: [shop/*]}]}]\n";
    let night = "  action: Allow\n  rules:\n  - name: night\n    to: [{hosts: [files.stripe.com]}]\n    when: {time: {weekly: [\"Thu 00:00-06:00\"], zone: UTC}}\n";
    let all = [policy("orders-egress", ORDERS), guard.into(), policy("rest", rest), policy("audit", audit)];
    let g = generation(&(all.concat() + &policy("night", night)));
    assert!(g.depends_on_time());
    holds(
        &g,
        &[
            ("tcp://ledger-db.shop:5432", "-root/guard/db"),
            // An address that is not known could be there.
            ("https://api.stripe.com", "-root/guard/db"),
            ("http://pricing", "+shop/rest/mesh"),
            ("http://inventory", "+shop/orders-egress/mesh"),
            // What is inside a tunnel is never known.
            ("https://files.stripe.com 192.0.2.1", "-root/guard/writes"),
            ("POST http://files.stripe.com/v1 192.0.2.1", "-root/guard/writes"),
            ("http://files.stripe.com/x 192.0.2.1", "default"),
        ],
    );
    assert!(g.tell_time(UNIX_EPOCH + Duration::from_secs(60)), "the night begins");
    holds(&g, &[("http://files.stripe.com/x 192.0.2.1", "+shop/night/night")]);
    let marked =
        verdict(&g, "http://pricing").expect("it is known").audit.map(|rule| g.rule(rule).to_string());
    assert_eq!(marked.as_deref(), Some("shop/audit/marks"));

    // A shadow alone selects in its own world only.
    let g = generation(&policy("trial", shadow));
    let would = |question: &str| {
        let verdict = verdict(&g, question).expect("it is known");
        let would =
            verdict.shadow.map(|would| (would.effect, would.rule.map(|rule| g.rule(rule).to_string())));
        (verdict.effect, would)
    };
    let denied = Effect::Deny(DenyReason::NoRule);
    assert_eq!(would("http://inventory"), (Effect::Allow, Some((denied, None))));
    let allowed = Some((Effect::Allow, Some("shop/trial/fewer".to_owned())));
    assert_eq!(would("http://pricing"), (Effect::Allow, allowed));
    assert_eq!(would("https://api.stripe.com"), (denied, None));
    let shown = explained(&g, "http://inventory").to_string();
    assert!(shown.contains("in the shadow: no Allow rule lists it, which would deny it"), "{shown}");
}

#[test]
fn explanations_are_advice_that_works() {
    let g = generation(&policy("orders-egress", ORDERS));
    for (question, words) in [
        (
            "https://files.stripe.com 192.0.2.1",
            &["the host files.stripe.com is not api.stripe.com", "add files.stripe.com to `hosts`"][..],
        ),
        (
            "http://pricing",
            &[
                "the service shop/pricing is not shop/inventory",
                "add shop/pricing to `services`",
                "selects this workload",
            ],
        ),
        (
            "tcp://ledger-db.shop:5432 10.41.0.1",
            &["the address 10.41.0.1 is in none of 10.40.0.0/16", "add 10.41.0.1 to `cidrs`"],
        ),
        (
            "tcp://ledger-db.shop:5432 10.40.9.1",
            &[
                "excepted by 10.40.9.0/24",
                "add an alternative `{hosts: [ledger-db.shop], ports: [5432], protocol: Tcp}`",
            ],
        ),
        (
            "POST http://files.stripe.com/v1 192.0.2.1",
            &["the method POST is not GET", "add POST to `methods`"],
        ),
        (
            "http://metadata.example 169.254.169.254",
            &[
                "only if `cidrs` of an Allow name exactly it",
                "cidrs: [\"169.254.169.254\"], ports: [80], protocol: Http",
            ],
        ),
        (
            "http://metadata.example 127.0.0.1",
            &["nobody outside of the mesh is called at this address", "never dialled"],
        ),
    ] {
        let shown = explained(&g, question).to_string();
        assert!(words.iter().all(|word| shown.contains(word)), "{question}:\n{shown}");
    }
    let shown = explained(&generation(""), "https://api.stripe.com 192.0.2.1").to_string();
    assert!(shown.contains("is outside of the mesh") && shown.contains("no Allow rule concerns"), "{shown}");
    // To the letter.
    let mended = ORDERS.replace("hosts: [api.stripe.com]", "hosts: [api.stripe.com, files.stripe.com]");
    let g = generation(&policy("orders-egress", &mended));
    holds(&g, &[("https://files.stripe.com 192.0.2.1", "+shop/orders-egress/payments")]);
}

#[test]
fn hosts_speak_for_their_own_namespace_and_the_root_for_all() {
    let external = |namespace: &str, address: &str| {
        format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: partner, namespace: {namespace}}}\nspec:\n  external: true\n  hosts: [api.partner.example]\n  ports: [{{port: 443, protocol: tls}}]\n  endpoints: [{{address: {address}}}]\n"
        )
    };
    let found = |text: &str| {
        let g = loaded(text, "orders").unwrap_or_else(|errors| panic!("{errors}"));
        let target = CallTarget::parse("https://api.partner.example").expect("a URL");
        g.called(&target, "shop").ok().map(|port| port.addresses()[0].to_string())
    };
    let (other, root, own) =
        (external("other", "192.0.2.1"), external("root", "192.0.2.2"), external("shop", "192.0.2.3"));
    assert_eq!(found(&other), None, "a neighbour must not catch this namespace's calls");
    assert_eq!(found(&(other.clone() + &root)).as_deref(), Some("192.0.2.2"));
    assert_eq!(found(&(other + &root + &own)).as_deref(), Some("192.0.2.3"));
}

#[test]
fn mistakes() {
    let rule = |to: &str| policy("p", &format!("  action: Allow\n  rules:\n  - name: r\n    to: [{to}]\n"));
    let service = |spec: &str| {
        format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: s, namespace: shop}}\nspec:\n{spec}"
        )
    };
    for (text, words) in [
        (policy("p", "  action: Allow\n  rules: []\n"), &["e.yaml:7:10", "`rules` is empty"][..]),
        (
            policy("p", "  action: Allow\n  rules: [{name: r}]\n"),
            &["7:11", "an Allow without `to`", "services: [\"*\"]"],
        ),
        (policy("p", "  action: alow\n  rules: [{name: r}]\n"), &["6:11", "did you mean `Allow`"]),
        (policy("p", "  action: Deny\n  source: {}\n  rules: [{name: r}]\n"), &["7:11", "`source` is empty"]),
        (
            policy("p", "  action: Deny\n  source: {selector: {}}\n  rules: [{name: r}]\n"),
            &["`selector` is empty"],
        ),
        (
            policy("p", "  action: Deny\n  source: {all: true}\n  rules: [{name: r}]\n"),
            &["7:17", "only documents of the root"],
        ),
        (
            policy("p", "  action: Deny\n  tier: Platform\n  rules: [{name: r}]\n"),
            &["stand in the tier Platform"],
        ),
        (policy("p", "  action: Audit\n  enforcement: Shadow\n  rules: [{name: r}]\n"), &["nothing to try"]),
        (
            policy("p", "  action: Deny\n  target: {}\n  rules: [{name: r}]\n"),
            &["unknown field `target`", "source"],
        ),
        (policy("p", "  action: Deny\n  rules: [{name: r}, {name: r}]\n"), &["stands here twice"]),
        (rule("{}"), &["9:10", "does not say where to", "`services`, `hosts` or `cidrs`"]),
        (rule("{ports: [443]}"), &["does not say where to"]),
        (rule("{host: [a.b]}"), &["unknown field `host`", "did you mean `hosts`"]),
        (rule("{hosts: []}"), &["`hosts` is empty"]),
        (rule("{services: []}"), &["`services` is empty"]),
        (rule("{cidrs: []}"), &["`cidrs` is empty"]),
        (rule("{cidrs: [10.0.0.0/8], except: []}"), &["`except` is empty"]),
        (rule("{hosts: [a.b], ports: []}"), &["`ports` is empty"]),
        (rule("{hosts: [a.b], ports: [0]}"), &["0 is no port"]),
        (rule("{hosts: [a.b], cidrs: [10.0.0.0/8]}"), &["only one of", "two alternatives"]),
        (rule("{hosts: [a.b], except: [10.0.0.0/8]}"), &["`except` says which addresses of `cidrs`"]),
        (rule("{cidrs: [10.40.0.1/16]}"), &["9:19", "bits behind its mask", "10.40.0.0/16"]),
        (rule("{cidrs: [010.0.0.0/8]}"), &["not a network"]),
        (rule("{cidrs: [127.0.0.1]}"), &["no rule opens it"]),
        (rule("{cidrs: ['::ffff:127.0.0.1']}"), &["no rule opens it"]),
        (rule("{hosts: ['a.b:443']}"), &["without its port"]),
        (rule("{hosts: [A.b]}"), &["write `a.b`"]),
        (rule("{hosts: ['0x7f.1']}"), &["9:19"]),
        (rule("{services: [a/b/c]}"), &["names no service"]),
        (rule("{services: [Shop/x]}"), &["names no service", "namespace/*"]),
        (rule("{services: ['*/x']}"), &["names no service"]),
        (rule("{hosts: [a.b], protocol: tls}"), &["did you mean `Tls`"]),
        (rule("{hosts: [a.b], protocol: Tls, methods: [GET]}"), &["never known of opaque bytes"]),
        (rule("{hosts: [a.b], protocol: Tcp, paths: [/a]}"), &["never known of opaque bytes"]),
        (rule("{hosts: [a.b], paths: [/a/../b]}"), &["write"]),
        (rule("{hosts: [a.b], methods: [get]}"), &["write `GET`"]),
        (
            policy(
                "p",
                "  action: Allow\n  rules:\n  - name: r\n    to: [{services: [pricing]}]\n    when: {cel: 'true'}\n",
            ),
            &["know no conditions", "leave `cel` out"],
        ),
        (policy("", "").replace("EgressPolicy", "EgresPolicy"), &["did you mean `EgressPolicy`"]),
        (policy("p", ORDERS).replace("EgressPolicy", "AccessPolicy"), &["unknown field `source`", "target"]),
        (
            service("  external: true\n  ports: [{port: 443, protocol: tls}]\n"),
            &["`endpoints` is missing", "hosts"],
        ),
        (
            service(
                "  hosts: [a.b]\n  identity: spiffe://td/ns/a/sa/b\n  ports: [{port: 443, protocol: tls}]\n",
            ),
            &["external: true"],
        ),
        (
            service("  external: true\n  hosts: ['*.b']\n  ports: [{port: 443, protocol: tls}]\n"),
            &["everything below a top-level domain"],
        ),
        (
            service("  external: true\n  hosts: ['*.A.b']\n  ports: [{port: 443, protocol: tls}]\n"),
            &["write `*.a.b`"],
        ),
        (service("  external: true\n  hosts: ['a.*.b']\n  ports: [{port: 443, protocol: tls}]\n"), &["host"]),
        (
            service(
                "  external: true\n  hosts: [a.b]\n  ports: [{port: 443, protocol: tls, tls: {originate: true}}]\n",
            ),
            &["brings its own TLS"],
        ),
        (
            service(
                "  external: true\n  hosts: [a.b]\n  ports: [{port: 80, protocol: http, tls: {originate: false, caFile: /a}}]\n",
            ),
            &["no TLS is opened"],
        ),
        (
            service(
                "  external: true\n  hosts: [a.b]\n  ports: [{port: 80, protocol: http, tls: {originate: true, caFile: a.pem}}]\n",
            ),
            &["not absolute"],
        ),
        (
            service(
                "  external: true\n  hosts: [a.b]\n  ports: [{port: 80, protocol: http, tls: {originate: true, serverName: 10.0.0.1}}]\n",
            ),
            &["no name that a certificate could be for"],
        ),
        (
            service("  external: true\n  hosts: [a.b]\n  ports: [{port: 80, protocol: http, tls: {}}]\n"),
            &["originate"],
        ),
        (
            service(
                "  external: true\n  endpoints: [{address: 10.9.9.9}]\n  ports: [{port: 80, protocol: http, tls: {originate: true}}]\n",
            ),
            &["whom the certificate must be for"],
        ),
        (
            service(
                "  identity: spiffe://td/ns/a/sa/b\n  endpoints: [{address: 10.9.9.9}]\n  ports: [{port: 80, protocol: http, tls: {originate: true}}]\n",
            ),
            &["mutual TLS always"],
        ),
        (
            service("  external: true\n  hosts: [10.0.0.1]\n  ports: [{port: 443, protocol: tls}]\n"),
            &["write it under `endpoints`"],
        ),
        (
            service("  external: true\n  hosts: [a]\n  ports: [{port: 443, protocol: tls}]\n"),
            &["without a dot"],
        ),
        (
            service("  external: true\n  hosts: [A.b]\n  ports: [{port: 443, protocol: tls}]\n"),
            &["write `a.b`"],
        ),
        (
            service("  external: true\n  hosts: [a.b, a.b]\n  ports: [{port: 443, protocol: tls}]\n"),
            &["twice"],
        ),
        (
            SERVICES.to_owned()
                + &service(
                    "  external: true\n  hosts: [api.stripe.com]\n  ports: [{port: 1, protocol: tls}]\n",
                ),
            &["another Service of this namespace has the host `api.stripe.com`"],
        ),
        (
            policy("p", ORDERS)
                + "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: shop}\nspec: {action: Allow, rules: [{name: r}]}\n",
            &["another policy has this name"],
        ),
    ] {
        let errors = loaded(&text, "orders").err().unwrap_or_else(|| panic!("it loads:\n{text}")).to_string();
        assert!(words.iter().all(|word| errors.contains(word)), "expected {words:?} for\n{text}\n{errors}");
        assert!(errors.contains('^'), "{errors}");
    }
}

#[test]
fn warnings() {
    let rule = |to: &str| policy("p", &format!("  action: Allow\n  rules:\n  - name: r\n    to: [{to}]\n"));
    for (text, words) in [
        (
            rule("{services: [shop/inventry]}"),
            &["no Service of the set is called shop/inventry", "did you mean `shop/inventory`"][..],
        ),
        (
            rule("{hosts: [inventory.shop]}"),
            &["is the service shop/inventory of the mesh", "services: [shop/inventory]"],
        ),
        (rule("{hosts: ['*.else.example']}"), &["no Service with `external: true` has such a host"]),
        (rule("{cidrs: [169.254.0.0/16]}"), &["one by one only"]),
        (rule("{cidrs: [10.0.0.0/8], except: [11.0.0.0/8]}"), &["takes nothing away"]),
        (
            policy("p", "  action: Deny\n  rules: [{name: r, to: [{services: [pricing]}]}]\n"),
            &["call nothing", "Baseline"],
        ),
    ] {
        let g = generation(&text);
        let shown = g.warnings().to_string();
        assert!(words.iter().all(|word| shown.contains(word)), "expected {words:?} for\n{text}\n{shown}");
    }
    assert!(generation(&policy("p", ORDERS)).warnings().is_empty());
}

#[test]
fn policy_tests_of_calls_out() {
    let tests = r#"---
apiVersion: postern.dev/v1alpha1
kind: PolicyTest
metadata: {name: out, namespace: shop}
spec:
  workload: {serviceAccount: orders, labels: {app: orders}}
  cases:
  - {name: payments, request: {egress: "https://api.stripe.com"}, expect: {allow: orders-egress/payments}}
  - {name: nothing else, request: {egress: "https://files.stripe.com"}, expect: {deny: default}}
  - {name: nor unknown, request: {egress: "https://x.example"}, expect: {deny: default}}
  - {name: reads, request: {egress: "http://files.stripe.com/v1/a"}, expect: {allow: orders-egress/payments}}
  - {name: writes, request: {egress: "http://files.stripe.com/v1/a", method: POST}, expect: {deny: true}}
  - {name: bad, request: {egress: "http://files.stripe.com/%2f"}, expect: {deny: bad_request}}
  - {name: mesh, request: {egress: "http://inventory/"}, expect: {allow: orders-egress/mesh}}
  - {name: db, request: {egress: "tcp://ledger-db:5432"}, expect: {allow: orders-egress/db}}
  - {name: rebound, request: {egress: "tcp://ledger-db:5432", address: 169.254.169.254}, expect: {deny: true}}
"#;
    let run = |tests: &str| {
        let text = format!("{SERVICES}{}{tests}", policy("orders-egress", ORDERS));
        run_tests(&[SourceFile { name: "e.yaml".into(), text: text.into() }], &scope("x"))
    };
    let report = run(tests).unwrap_or_else(|errors| panic!("{errors}"));
    let failed: Vec<_> = report.cases.iter().filter(|case| !case.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!((report.cases.len(), report.covered(), report.percent()), (9, 3, 100));
    let report = run(&tests.replace("deny: default", "allow: true")).expect("it loads");
    let failed: Vec<_> = report.cases.iter().filter(|case| !case.passed).collect();
    assert_eq!(failed.len(), 2, "{failed:#?}");
    assert!(
        failed[0].explanation.as_ref().is_some_and(|why| why.contains("add files.stripe.com")),
        "{failed:#?}"
    );
    assert!(failed[1].got.contains("unknown_service"), "{failed:#?}");
    for (from, to, words) in [
        (
            "egress: \"https://api.stripe.com\"",
            "egress: \"https://api.stripe.com\", from: web",
            "which says all of it",
        ),
        ("egress: \"https://api.stripe.com\"", "egress: api.stripe.com", "this is no URL"),
        (
            "egress: \"https://api.stripe.com\"",
            "egress: \"https://api.stripe.com\", method: GET",
            "no method is known",
        ),
        ("address: 169.254.169.254", "address: here", "is no address"),
    ] {
        let errors = run(&tests.replace(from, to)).expect_err("it is wrong").to_string();
        assert!(errors.contains(words), "{errors}");
    }
}
