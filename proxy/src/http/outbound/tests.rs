use std::time::Duration;

use super::*;
use crate::connections::Direction;
use crate::testing;

/// `shop/store`, at two endpoints of these accounts.
fn documents(first: &str, second: &str) -> String {
    let id = |account: &str| format!("spiffe://demo.postern/ns/shop/sa/{account}");
    format!(
        "
apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {{name: store, namespace: shop}}
spec:
  identity: {}
  ports: [{{port: 80, targetPort: 8080, protocol: http}}]
  endpoints:
  - {{address: 127.0.0.3, identity: {}}}
  - {{address: 127.0.0.4, identity: {}}}
",
        id("store"),
        id(first),
        id(second)
    )
}

fn publish(sidecar: &Sidecar, number: u64, first: &str, second: &str) {
    let generation = testing::generation(sidecar, number, &documents(first, second));
    sidecar.snapshots.publish(|snapshot| snapshot.policy = Some(generation));
}

fn endpoints(sidecar: &Sidecar) -> Vec<Endpoint> {
    let snapshot = sidecar.snapshots.load();
    let host = CanonHost::parse("store.shop").unwrap();
    let services = snapshot.policy.as_ref().unwrap().services();
    services.find(&host, 80, "shop").unwrap().endpoints.to_vec()
}

fn call(sidecar: &Arc<Sidecar>, connection: &Arc<Connection>) -> Stream {
    let host = CanonHost::parse("store.shop").unwrap();
    let asked = Some(Asked { host, port: 80, external: false, addresses: Vec::new() });
    let facts = Facts { port: 8080, operation: Operation::Tcp, destination: None, asked };
    Stream::open(sidecar, connection, facts)
}

fn rejudge(sidecar: &Sidecar) -> usize {
    let generation = sidecar.snapshots.load().policy.clone().unwrap();
    sidecar.registry.rejudge(&generation, &sidecar.config, Duration::ZERO, sidecar.clock.wall())
}

#[test]
fn documents_that_changed_while_an_endpoint_was_dialled_are_held_against_it() {
    let sidecar = testing::sidecar("");
    publish(&sidecar, 1, "store", "store");
    let registered = testing::connection(&sidecar, Direction::Outbound);
    let stream = call(&sidecar, registered.connection());
    let dialled = endpoints(&sidecar);
    ask(&sidecar, &stream, &dialled[0]).unwrap();
    let stream = call(&sidecar, registered.connection());
    publish(&sidecar, 2, "other", "store");
    assert_eq!(rejudge(&sidecar), 1, "only the one whose endpoint is known");
    assert_eq!(ask(&sidecar, &stream, &dialled[0]).unwrap_err().reason, Reason::Revoked);
    ask(&sidecar, &stream, &dialled[1]).unwrap();
}

#[test]
fn the_endpoint_that_counts_is_the_one_asked_last() {
    let sidecar = testing::sidecar("");
    publish(&sidecar, 1, "store", "store");
    let registered = testing::connection(&sidecar, Direction::Outbound);
    let stream = call(&sidecar, registered.connection());
    let dialled = endpoints(&sidecar);
    ask(&sidecar, &stream, &dialled[0]).unwrap();
    ask(&sidecar, &stream, &dialled[1]).unwrap();
    publish(&sidecar, 2, "other", "store");
    assert_eq!(rejudge(&sidecar), 0, "it runs elsewhere by now");
    publish(&sidecar, 3, "other", "other");
    assert_eq!(rejudge(&sidecar), 1);
}

const PARTNER: &str = "apiVersion: postern.dev/v1alpha1
kind: Service
metadata: {name: partner, namespace: shop}
spec: {external: true, hosts: [api.partner.example], ports: [{port: 80, protocol: http}]}
---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: out, namespace: shop}
spec:
  action: Allow
  rules:
  - {name: partner, to: [{services: [partner]}]}
---
apiVersion: postern.dev/v1alpha1
kind: EgressPolicy
metadata: {name: not, namespace: shop}
spec:
  action: Deny
  rules:
  - {name: lab, to: [{cidrs: [198.51.100.0/24]}]}
";

/// Rules, and what is never dialled, are about every address that a name has, not about the name.
#[test]
fn every_address_of_a_name_is_judged() {
    let sidecar = testing::sidecar("");
    let generation = testing::generation(&sidecar, 1, PARTNER);
    sidecar.snapshots.publish(|snapshot| snapshot.policy = Some(generation));
    let registered = testing::connection(&sidecar, Direction::Outbound);
    let host = CanonHost::parse("api.partner.example").unwrap();
    for (addresses, refused) in [
        (&["192.0.2.1", "2001:db8::1"][..], None),
        (&["192.0.2.1", "127.0.0.1"], Some(Reason::EgressDenied)),
        (&["192.0.2.1", "169.254.169.254"], Some(Reason::EgressDenied)),
        (&["::ffff:198.51.100.7"], Some(Reason::EgressDenied)),
        // A Deny by address fires where nobody knows the address.
        (&[], Some(Reason::EgressDenied)),
    ] {
        let parsed: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let resolved = Resolved::known("api.partner.example", &parsed);
        let request = Request::get("http://api.partner.example/").body(Body::empty()).unwrap();
        let mut snapshot = sidecar.snapshots.held();
        let (stream, ()) =
            authorize::register(&sidecar, registered.connection(), &mut snapshot, |snapshot| {
                let target = Target::find(&sidecar, snapshot, &request, (&host, 80), Some(&resolved), false)?;
                assert_eq!(target.addresses, parsed, "what is judged is what is dialled");
                Ok((target.facts(&request, None, false)?, ()))
            })
            .unwrap();
        let judgement = authorize::call(&sidecar, &stream, &snapshot).unwrap();
        assert_eq!(judgement.refused, refused, "{addresses:?}");
    }
}

/// Whatever a workload asks for, `/metrics` has as many series as before: names are its callers', and they have many.
#[tokio::test]
async fn names_of_requests_become_no_series() {
    let sidecar = testing::sidecar("");
    publish(&sidecar, 1, "store", "store");
    let registered = testing::connection(&sidecar, Direction::Outbound);
    let worker = Worker::new(Arc::clone(&sidecar));
    let ask = |number: usize| {
        let builder = match number % 3 {
            0 => Request::get(format!("http://h{number}.example/")),
            1 => Request::get(format!("http://store.shop:{}/", 1_000 + number)),
            _ => Request::builder().method(&*format!("M{number}")).uri(format!("http://{number}/p{number}")),
        };
        let asked = builder.body(Body::empty()).unwrap();
        super::request(Arc::clone(&worker), Arc::clone(registered.connection()), None, asked, None)
    };
    let series = || sidecar.metrics.render().lines().filter(|line| !line.starts_with('#')).count();
    for number in 0..6 {
        assert!(ask(number).await.status().is_client_error());
    }
    let before = series();
    for number in 6..600 {
        assert!(ask(number).await.status().is_client_error());
    }
    assert_eq!(series(), before);
}
