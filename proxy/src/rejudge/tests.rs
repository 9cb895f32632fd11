use std::time::Instant;

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{HeaderFields, TokenSet};

use super::*;
use crate::connections::{Asked, Direction, Facts, Operation, Registered, Stream};
use crate::testing;

fn documents(rules: &[String]) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  action: Allow\n  rules:\n{}",
        rules.concat()
    )
}

/// `/n/{n}` for everybody of the namespace.
fn rule(n: usize, port: u16) -> String {
    format!(
        "  - {{name: r{n}, from: [{{namespaces: [shop]}}], to: [{{paths: [/n/{n}], ports: [{port}]}}]}}\n"
    )
}

fn stream(sidecar: &Arc<Sidecar>, registered: &Registered, n: usize) -> Stream {
    let operation = Operation::Http {
        method: CanonMethod::get(),
        path: CanonPath::parse(format!("/n/{n}"), &Default::default()).expect("a path"),
        host: CanonHost::parse("orders.shop").expect("a host"),
        headers: HeaderFields::new(),
        upgrade: None,
        tokens: TokenSet::absent(),
    };
    let facts = Facts { port: 8080, operation, destination: None, asked: None };
    Stream::open(sidecar, registered.connection(), facts)
}

#[test]
fn those_that_a_change_may_concern_are_all_that_lose_permission() {
    const RULES: usize = 2_000;
    let long = std::env::var_os("POSTERN_TEST_LONG").is_some();
    let count = if long { 100_000 } else { 10_000 };
    let sidecar = testing::sidecar("");
    let connections: Vec<Registered> =
        (0..count).map(|_| testing::connection(&sidecar, Direction::Inbound)).collect();
    let streams: Vec<Stream> = connections
        .iter()
        .enumerate()
        .map(|(n, registered)| stream(&sidecar, registered, n % RULES))
        .collect();
    let rules: Vec<String> = (0..RULES).map(|n| rule(n, 8080)).collect();
    let before = testing::generation(&sidecar, 1, &documents(&rules));
    assert_eq!(sidecar.registry.rejudge(&before, &sidecar.config, Duration::ZERO, sidecar.clock.wall()), 0);

    // The same again, with a remark: nobody is asked.
    let same = testing::generation(&sidecar, 2, &(documents(&rules) + "# a remark\n"));
    assert!(Changes::between(&before, &same).are_none());

    // Three rules go, one is another one now, one comes.
    let mut changed = rules;
    changed[7] = rule(7, 8081);
    changed[9] = rule(RULES, 8080);
    changed.truncate(RULES - 2);
    changed.insert(0, "  - {name: first, to: [{ports: [8081]}]}\n".to_owned());
    // Both name 8081, or everybody is asked, because a port that is not named is not reached.
    let before = testing::generation(
        &sidecar,
        3,
        &documents(&(0..RULES).map(|n| rule(n, 8080)).chain([rule(RULES + 1, 8081)]).collect::<Vec<_>>()),
    );
    let after = testing::generation(&sidecar, 4, &documents(&changed));
    let start = Instant::now();
    let changes = Changes::between(&before, &after);
    let compared = start.elapsed();
    let lost = |n: usize| [7, 9, RULES - 1, RULES - 2].contains(&(n % RULES));
    let concerned = sidecar.registry.rejudge_concerned(
        &changes,
        &after,
        &sidecar.config,
        Duration::ZERO,
        sidecar.clock.wall(),
    );
    let asked = start.elapsed() - compared;
    for (n, stream) in streams.iter().enumerate() {
        assert_eq!(stream.entry().is_revoked(), lost(n), "{n}");
    }
    let start = Instant::now();
    assert_eq!(
        sidecar.registry.rejudge(&after, &sidecar.config, Duration::ZERO, sidecar.clock.wall()),
        concerned
    );
    println!(
        "{count} streams on as many connections: compared in {compared:?}, those concerned asked in {asked:?}, all in {:?}",
        start.elapsed()
    );
}

/// Calls to `outside.shop`, port by port, each of which one rule allows.
fn calls_out(ports: &[u16]) -> String {
    let listed: Vec<String> =
        PORTS.map(|port| format!("{{port: {port}, protocol: tcp}}")).into_iter().collect();
    let rules: String = ports
        .iter()
        .map(|port| format!("  - {{name: p{port}, to: [{{services: [outside], ports: [{port}]}}]}}\n"))
        .collect();
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: outside, namespace: shop}}\nspec: \
         {{external: true, ports: [{}], endpoints: [{{address: 192.0.2.1}}]}}\n---\n\
         apiVersion: postern.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: out, namespace: shop}}\n\
         spec:\n  action: Allow\n  rules:\n{rules}",
        listed.join(", ")
    )
}

const PORTS: [u16; 4] = [1001, 1002, 1003, 1004];

#[test]
fn a_change_of_egress_asks_only_the_calls_that_it_may_concern() {
    let sidecar = testing::sidecar("");
    let registered = testing::connection(&sidecar, Direction::Outbound);
    let call = |port: u16| {
        let asked = Asked {
            host: CanonHost::parse("outside.shop").expect("a host"),
            port,
            external: true,
            addresses: vec![[192, 0, 2, 1].into()],
        };
        let facts = Facts {
            port,
            operation: Operation::Tcp,
            destination: Some("shop/outside".to_owned()),
            asked: Some(asked),
        };
        Stream::open(&sidecar, registered.connection(), facts)
    };
    let streams = PORTS.map(call);
    let revoked = || PORTS.iter().zip(&streams).filter(|(_, stream)| stream.entry().is_revoked());
    let changed = |from: &[u16], to: &[u16]| {
        let before = testing::generation(&sidecar, 1, &calls_out(from));
        let after = testing::generation(&sidecar, 2, &calls_out(to));
        let changes = Changes::between(&before, &after);
        let now = sidecar.clock.wall();
        sidecar.registry.rejudge_concerned(&changes, &after, &sidecar.config, Duration::ZERO, now)
    };
    // No rule allows 1004, before or after. Whoever asked it again would reset it: so it was not asked.
    assert_eq!(changed(&PORTS[..3], &PORTS[1..3]), 1);
    assert_eq!(revoked().map(|(port, _)| *port).collect::<Vec<_>>(), [1001]);
    assert_eq!(changed(&PORTS[1..3], &PORTS[1..3]), 0, "the same again concerns nobody");
    // What lost permission is asked, and the last rule that goes asks everybody.
    assert_eq!(changed(&PORTS[1..3], &PORTS[2..3]), 1);
    assert_eq!(revoked().map(|(port, _)| *port).collect::<Vec<_>>(), [1001, 1002]);
    let some = testing::generation(&sidecar, 3, &calls_out(&PORTS[..3]));
    let none = testing::generation(&sidecar, 4, calls_out(&[]).split("---").next().expect("one is first"));
    assert!(Changes::between(&some, &none).concern_every_call());
}
