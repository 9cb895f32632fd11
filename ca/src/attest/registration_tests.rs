use proptest::prelude::*;

use super::*;

fn td() -> TrustDomain {
    TrustDomain::parse("td").unwrap()
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn pod(cluster: &str, namespace: &str, account: &str) -> Facts {
    Facts::new(Attestor::Kubernetes)
        .with(FactName::KubernetesCluster, cluster)
        .with(FactName::KubernetesNamespace, namespace)
        .with(FactName::KubernetesServiceAccount, account)
}

fn clause(wants: &[(FactName, &[&str])]) -> Clause {
    let patterns = |all: &[&str]| all.iter().map(|text| Pattern::parse(text).unwrap()).collect();
    let wants: Vec<_> = wants.iter().map(|(name, all)| (name.clone(), patterns(all))).collect();
    Clause { attestor: wants[0].0.attestor(), wants }
}

fn registration(name: &str, id: &str, from: Vec<Clause>) -> Registration {
    let id = Template::parse(&td(), id).unwrap();
    Registration { name: name.to_owned(), place: format!("{name}.yaml:1:1"), id, from, ttl: None }
}

fn shop() -> Registrations {
    use FactName::{
        KubernetesCluster, KubernetesNamespace, KubernetesServiceAccount, OidcProvider, OidcSubject,
    };
    let shop = clause(&[
        (KubernetesCluster, &["eu"]),
        (KubernetesNamespace, &["shop", "shop-*"]),
        (KubernetesServiceAccount, &["*"]),
    ]);
    let ci = clause(&[(OidcProvider, &["ci"]), (OidcSubject, &["repo:acme/shop:*"])]);
    Registrations::new(vec![
        registration("shop", "spiffe://td/ns/{k8s.namespace}/sa/{k8s.serviceAccount}", vec![shop]),
        registration("deploy", "spiffe://td/ci/deploy", vec![ci]),
    ])
}

#[test]
fn only_what_is_registered_is_granted() {
    let all = shop();
    let grant = |facts: &Facts, asked: &str| all.grant(&td(), facts, &id(asked)).map(|g| g.registration);
    let orders = "spiffe://td/ns/shop/sa/orders";
    assert_eq!(grant(&pod("eu", "shop", "orders"), orders).as_deref(), Some("shop"));
    assert_eq!(
        grant(&pod("eu", "shop-eu", "orders"), "spiffe://td/ns/shop-eu/sa/orders").as_deref(),
        Some("shop")
    );
    for facts in [
        pod("us", "shop", "orders"),
        pod("eu", "bank", "orders"),
        pod("eu", "shop", "store"),
        pod("eu", "shop", "orders").with(FactName::KubernetesServiceAccount, "store"),
        Facts::new(Attestor::Kubernetes),
        Facts::new(Attestor::Oidc),
    ] {
        assert_eq!(grant(&facts, orders), None, "{facts}");
    }
    let ci = |sub: &str| {
        Facts::new(Attestor::Oidc).with(FactName::OidcProvider, "ci").with(FactName::OidcSubject, sub)
    };
    assert_eq!(grant(&ci("repo:acme/shop:ref:x"), "spiffe://td/ci/deploy").as_deref(), Some("deploy"));
    assert_eq!(grant(&ci("repo:acme/shop2:ref:x"), "spiffe://td/ci/deploy"), None);
    // The same names from another attestor are other facts.
    let mut disguised = Facts::new(Attestor::Oidc);
    for fact in pod("eu", "shop", "orders").iter() {
        disguised = disguised.with(fact.name.clone(), fact.value.clone());
    }
    assert_eq!(grant(&disguised, orders), None);
    assert_eq!(Registrations::default().grant(&td(), &pod("eu", "shop", "orders"), &id(orders)), None);
}

#[test]
fn the_nearest_registration_says_why_not() {
    let all = shop();
    let nearest = |facts: &Facts, asked: &str| {
        let judged = all.explain(&td(), facts, &id(asked));
        assert_eq!(judged.len(), 2);
        judged[0].outcome.to_string()
    };
    let orders = "spiffe://td/ns/shop/sa/orders";
    assert_eq!(nearest(&pod("eu", "shop", "orders"), orders), "grants the id");
    assert!(nearest(&pod("eu", "shop", "store"), orders).contains("grants spiffe://td/ns/shop/sa/store"));
    let other = nearest(&pod("eu", "bank", "orders"), orders);
    assert_eq!(other, "does not fit: k8s:ns:bank, wanted: shop, shop-*");
    assert!(nearest(&pod("eu", "shop", "a b"), orders).contains("makes no id"));
}

#[test]
fn patterns() {
    for bad in ["", "a*b", "**", "*a"] {
        assert!(Pattern::parse(bad).is_err(), "{bad}");
    }
    assert!(Pattern::parse("*").unwrap().fits(""));
    assert!(Pattern::parse("a*").unwrap().fits("a"));
    assert!(!Pattern::parse("a").unwrap().fits("ab"));
}

fn letters() -> impl Strategy<Value = String> {
    // What ids are made of and what would break out of them, often enough to meet.
    prop::collection::vec(
        prop::sample::select(vec![
            "a", "b", "shop", "postern", "control", "/", "..", ".", "%2f", "{", "}", "\0", "ü", "*", "",
        ]),
        0..4,
    )
    .prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Whatever the facts say and whatever the registrations: what is granted is the id asked for, of this trust domain, not the
    /// mesh's own, and tells the facts that stand in it; and one registration grants it by itself, the first whose own conditions
    /// the facts fit and whose own template makes the id, with its own life.
    #[test]
    fn exactly_the_id_or_none(
        facts in prop::collection::vec((0..3_usize, letters()), 0..5),
        templates in prop::collection::vec((0..6_usize, letters(), prop::collection::vec(letters(), 1..3)), 1..4),
        asked in prop::collection::vec(letters(), 1..5),
    ) {
        let names = [FactName::KubernetesCluster, FactName::KubernetesNamespace, FactName::KubernetesServiceAccount];
        let mut found = Facts::new(Attestor::Kubernetes);
        for (name, value) in facts {
            found = found.with(names[name].clone(), value);
        }
        let shapes = [
            "spiffe://td/{k8s.namespace}", "spiffe://td/ns/{k8s.namespace}/sa/{k8s.serviceAccount}", "spiffe://td/x{k8s.cluster}y",
            "spiffe://td/{k8s.namespace}/control", "spiffe://td/fixed", "spiffe://td/",
        ];
        let all: Vec<(Registration, Vec<Pattern>)> = templates
            .iter()
            .enumerate()
            .filter_map(|(number, (shape, more, wanted))| {
                let id = Template::parse(&td(), &format!("{}{more}", shapes[*shape])).ok()?;
                let patterns: Vec<_> = wanted.iter().filter_map(|text| Pattern::parse(text).ok()).collect();
                let from = vec![Clause {
                    attestor: Attestor::Kubernetes,
                    wants: vec![(FactName::KubernetesNamespace, patterns.clone())],
                }];
                let ttl = Some(std::time::Duration::from_secs(number as u64));
                Some((Registration { name: format!("r{number}"), place: String::new(), id, from, ttl }, patterns))
            })
            .collect();
        let ids: Vec<SpiffeId> = all.iter().filter_map(|(one, _)| one.id.render(&td(), &found).ok()).collect();
        let registrations = Registrations::new(all.iter().map(|(one, _)| one.clone()).collect());
        let asked = asked.iter().flat_map(|path| {
            [SpiffeId::parse(&format!("spiffe://td/{path}")), SpiffeId::parse(&format!("spiffe://other/{path}"))]
        });
        for asked in asked.flatten().chain(ids) {
            let granted = registrations.grant(&td(), &found, &asked);
            let says = registrations.explain(&td(), &found, &asked);
            prop_assert_eq!(granted.is_some(), says.iter().any(|judged| judged.outcome == Outcome::Grants));
            let fits = |patterns: &[Pattern]| {
                found.values(&FactName::KubernetesNamespace).any(|v| patterns.iter().any(|p| p.fits(v)))
            };
            let granting = all.iter().find(|(one, patterns)| {
                fits(patterns) && one.id.render(&td(), &found).is_ok_and(|id| id == asked)
            });
            let by = granted.as_ref().map(|granted| (&granted.registration, granted.ttl));
            prop_assert_eq!(by, granting.map(|(one, _)| (&one.name, one.ttl)));
            let Some(granted) = granted else { continue };
            prop_assert_eq!(&granted.id, &asked);
            prop_assert!(asked.is_member_of(&td()) && !asked.is_reserved());
            // As many segments as some template has: no fact made two, or none.
            let segments = asked.path().matches('/').count();
            prop_assert!(all.iter().any(|(one, _)| one.id.as_str().matches('/').count() - 2 == segments));
        }
    }
}
