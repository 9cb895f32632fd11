use postern_ca::attest::Facts;
use postern_svid::SpiffeId;

use super::*;

const GOOD: &str = "apiVersion: postern.dev/v1alpha1
kind: Registration
metadata: {name: shop}
spec:
  id: spiffe://td/ns/{k8s.namespace}/sa/{k8s.serviceAccount}
  from:
  - k8s: {cluster: eu, namespaces: [shop, shop-*], serviceAccounts: [\"*\"]}
  ttl: 15m
---
apiVersion: postern.dev/v1alpha1
kind: Registration
metadata: {name: deploy}
spec:
  id: spiffe://td/ci/deploy
  from:
  - oidc:
      provider: ci
      subjects: [\"repo:acme/shop:*\"]
      claims: {environment: [production]}
---
apiVersion: postern.dev/v1alpha1
kind: Registration
metadata: {name: machines}
spec:
  id: spiffe://td/vm/{x509pop.commonName}
  from:
  - x509pop: {ca: hall, commonNames: [db-*]}
";

fn terms() -> Terms {
    Terms {
        trust_domain: TrustDomain::parse("td").unwrap(),
        names: Some(Names {
            clusters: vec!["eu".into()],
            providers: vec!["ci".into()],
            roots: vec!["hall".into()],
        }),
        least: Duration::from_secs(300),
    }
}

fn parse(text: &str) -> Result<Registrations, String> {
    let file = SourceFile { name: "shop.yaml".to_owned(), text: text.as_bytes().to_vec() };
    check(&[file], &terms()).map_err(|found| found.to_string())
}

#[test]
fn the_documented_documents() {
    let all = parse(GOOD).unwrap();
    assert_eq!(all.len(), 3);
    let pod = Facts::new(Attestor::Kubernetes)
        .with(FactName::KubernetesCluster, "eu")
        .with(FactName::KubernetesNamespace, "shop")
        .with(FactName::KubernetesServiceAccount, "orders");
    let asked = SpiffeId::parse("spiffe://td/ns/shop/sa/orders").unwrap();
    let granted = all.grant(&terms().trust_domain, &pod, &asked).unwrap();
    assert_eq!((granted.registration.as_str(), granted.ttl), ("shop", Some(Duration::from_secs(900))));
    let token = Facts::new(Attestor::Oidc)
        .with(FactName::OidcProvider, "ci")
        .with(FactName::OidcSubject, "repo:acme/shop:ref:refs/heads/main");
    let asked = SpiffeId::parse("spiffe://td/ci/deploy").unwrap();
    assert!(all.grant(&terms().trust_domain, &token, &asked).is_none());
    let token = token.with(FactName::OidcClaim("environment".into()), "production");
    assert!(all.grant(&terms().trust_domain, &token, &asked).is_some());
}

#[test]
fn mistakes_have_a_place_and_a_way_out() {
    for (from, to, place, says) in [
        (
            "postern.dev/v1alpha1\nkind: Registration\nmetadata: {name: deploy}",
            "v1\nkind: Registration\nmetadata: {name: deploy}",
            "shop.yaml:10:13",
            "write `postern.dev/v1alpha1`",
        ),
        (
            "kind: Registration\nmetadata: {name: shop}",
            "kind: Service\nmetadata: {name: shop}",
            "shop.yaml:2:7",
            "known: Registration",
        ),
        ("name: shop", "name: Shop", "shop.yaml:3:", "lower-case"),
        ("name: deploy", "name: shop", "shop.yaml:12:", "stands twice, first at shop.yaml:3:18"),
        ("spiffe://td/ns", "spiffe://other/ns", "shop.yaml:5:7", "begin it with spiffe://td/"),
        ("td/ns", "td/postern", "shop.yaml:5:7", "/postern/"),
        ("{k8s.namespace}", "{k8s.namespaces}", "shop.yaml:5:7", "known: {k8s.cluster}"),
        ("{k8s.namespace}/sa/", "{k8s.namespace}-", "shop.yaml:5:7", "part them by `/`"),
        ("{k8s.namespace}", "{oidc.subject}", "shop.yaml:7:5", "the id holds {oidc.subject}"),
        ("cluster: eu", "cluster: eo", "shop.yaml:7:", "did you mean `eu`"),
        ("namespaces: [shop, shop-*]", "namespaces: []", "shop.yaml:7:", "[\"*\"]"),
        ("shop-*", "\"shop-*-*\"", "shop.yaml:7:", "at the end alone"),
        ("namespaces: [shop, shop-*], ", "", "shop.yaml:7:", "`namespaces` is missing"),
        ("serviceAccounts", "serviceAccount", "shop.yaml:7:", "did you mean `serviceAccounts`"),
        ("ttl: 15m", "ttl: 1m", "shop.yaml:8:", "300 s at least"),
        ("- k8s:", "- oidc: {provider: ci, subjects: [a]}\n    k8s:", "shop.yaml:7:5", "of one attestor"),
        ("ca: hall", "ca: hull", "shop.yaml:27:", "did you mean `hall`"),
        (", commonNames: [db-*]", "", "shop.yaml:27:", "whoever has a certificate"),
        ("provider: ci", "provider: cl", "shop.yaml:17:", "did you mean `ci`"),
        (
            "      subjects: [\"repo:acme/shop:*\"]\n      claims: {environment: [production]}\n",
            "",
            "shop.yaml:16:",
            "whoever has a token",
        ),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(place) && error.contains(says), "{to}: {error}");
    }
    let empty = GOOD.replace(
        "from:\n  - k8s: {cluster: eu, namespaces: [shop, shop-*], serviceAccounts: [\"*\"]}",
        "from: []",
    );
    assert!(parse(&empty).unwrap_err().contains("fits nobody"));
    assert!(parse("# nothing\n").unwrap_err().contains("no registrations"));
    assert!(check(&[], &terms()).is_err());
    // Without a configuration any name may be one.
    let file = SourceFile { name: "a".into(), text: GOOD.replace("eu", "us").into() };
    assert!(check(std::slice::from_ref(&file), &Terms { names: None, ..terms() }).is_ok());
    assert!(check(&[file], &terms()).is_err());
}

#[test]
fn one_mistake_refuses_all_and_findings_are_bounded() {
    assert!(parse(&format!("{GOOD}---\nkind: 7\n")).is_err());
    let many = "---\nkind: 7\n".repeat(1_000);
    let found = check(&[SourceFile { name: "a".into(), text: many.into() }], &terms()).unwrap_err();
    assert_eq!(found.len(), LISTED);
}
