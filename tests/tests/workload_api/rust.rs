//! A workload in Rust that uses the crate `spiffe`, as its authors mean it to be used: sources that follow by themselves.

use std::time::Duration;

use postern_svid::Svid;
use postern_tests::{Mesh, Plan};
use spiffe::workload_api::WorkloadApiError;
use spiffe::{BundleSource as _, JwtSource, JwtSvid, TrustDomain, WorkloadApiClient, X509Source, X509Svid};
use tokio::time::timeout;

const REPORTS: &str = "spiffe://demo.postern/ns/shop/sa/reports";
const SOON: Duration = Duration::from_secs(30);

/// The chain, once it is seen to belong to the key.
fn fits(svid: &X509Svid) -> Vec<u8> {
    let chain = svid.cert_chain().iter().map(|one| one.as_bytes().to_vec().into()).collect();
    Svid::from_pkcs8(chain, svid.private_key().as_bytes()).expect("the key is the leaf's");
    svid.leaf().as_bytes().to_vec()
}

#[test]
fn a_workload_with_the_crate_follows_renewals_and_its_sidecars_death() {
    let mut plan = Plan::new();
    plan.ttl("8s").control("jwt: {ttl: 1m}");
    let orders = plan.sidecar("orders").serves(80, 8080, "http").workload_api("");
    orders.limit("drainMin", "0s").limit("drainMax", "1s");
    let own = nix::unistd::geteuid().as_raw();
    plan.sidecar("web").workload_api(&format!(", allow: {{uids: [{}]}}", own + 1));
    // By this thread, for processes end with the thread that started them.
    let mesh = plan.start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads can be had").block_on(follow(&mesh));
}

async fn follow(mesh: &Mesh) {
    let orders = mesh.sidecar("orders");
    let socket = format!("unix:{}", orders.workload_socket().display());
    let td = TrustDomain::new("demo.postern").expect("it is one");

    let source = timeout(SOON, X509Source::builder().endpoint(&socket).build()).await;
    let source = source.expect("it answers").expect("it is synchronized");
    let svid = source.svid().expect("there is one");
    assert_eq!(svid.spiffe_id().to_string(), orders.id());
    let bundle = source.bundle_for_trust_domain(&td).expect("it is there").expect("it is ours");
    assert_eq!(bundle.authorities().len(), 1);

    let mut updates = source.updated();
    let mut leaf = fits(&svid);
    for _ in 0..2 {
        timeout(SOON, updates.changed()).await.expect("it is renewed").expect("the source goes on");
        let next = fits(&source.svid().expect("there is one"));
        assert_ne!(next, leaf);
        leaf = next;
    }
    // What it had stays good without the sidecar, and it finds the next one by itself.
    orders.kill();
    assert_eq!(fits(&source.svid().expect("the last one")), leaf);
    orders.restart();
    timeout(SOON, async {
        while fits(&source.svid().expect("there is one")) == leaf {
            updates.changed().await.expect("the source goes on");
        }
    })
    .await
    .expect("the next one came");

    let tokens = timeout(SOON, JwtSource::builder().endpoint(&socket).build()).await;
    let tokens = tokens.expect("it answers").expect("it is synchronized");
    let token = tokens.fetch_jwt_svid([REPORTS]).await.expect("it is issued");
    assert_eq!(token.spiffe_id().to_string(), orders.id());
    let judged = JwtSvid::parse_and_validate(token.token(), &tokens, &[REPORTS]).expect("it is good");
    assert_eq!(judged.claims().sub(), orders.id());
    JwtSvid::parse_and_validate(token.token(), &tokens, &["spiffe://demo.postern/ns/shop/sa/orders"])
        .expect_err("it is for somebody else");
    let at = token.token().rfind('.').expect("a signature") + 5;
    let mut forged = token.token().to_owned();
    let other = if forged.as_bytes()[at] == b'A' { "B" } else { "A" };
    forged.replace_range(at..=at, other);
    JwtSvid::parse_and_validate(&forged, &tokens, &[REPORTS]).expect_err("its signature is another");

    let web = mesh.sidecar("web").workload_socket();
    let client = WorkloadApiClient::connect_to(format!("unix:{}", web.display())).await.expect("it opens");
    let refused = client.fetch_x509_svid().await.expect_err("it is another user's");
    assert!(matches!(refused, WorkloadApiError::PermissionDenied(_)), "{refused:?}");
}
