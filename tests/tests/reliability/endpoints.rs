//! R12: one of two endpoints does not answer any more. It is asked no more than it must be, and again once it is back.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postern_tests::{Mesh, Origin, Paced, Plan, is_long, wait};
use socket2::{Domain, Socket, Type};

use super::{POLICY, allowance, alone, before, expect_alive, expect_as_fast};

/// A Service of two endpoints, each with whom it must prove to be.
pub(crate) fn service(endpoints: [(IpAddr, &str); 2]) -> String {
    let one = |(address, name): (IpAddr, &str)| {
        format!("  - {{address: {address}, identity: spiffe://demo.postern/ns/shop/sa/{name}}}\n")
    };
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: both, namespace: shop}}\nspec:\n  \
         identity: spiffe://demo.postern/ns/shop/sa/orders\n  \
         ports: [{{port: 80, protocol: http, targetPort: 8080}}]\n  endpoints:\n{}",
        endpoints.map(one).concat()
    )
}

struct Three {
    mesh: Mesh,
    spare: Origin,
    _others: [Origin; 2],
}

/// web; orders and spare behind the service `both`; and books, to see whether anybody else feels it.
fn three() -> Three {
    let mut plan = Plan::new();
    plan.sidecar("web")
        .log("warn")
        .limit("pingInterval", "500ms")
        .limit("pingTimeout", "1s")
        .limit("handshake", "500ms");
    for name in ["orders", "spare", "books"] {
        plan.sidecar(name).serves(80, 8080, "http").log("warn");
    }
    plan.document("policy.yaml", POLICY);
    let at = |plan: &Plan, name| plan.address(name);
    let both = service([(at(&plan, "orders"), "orders"), (at(&plan, "spare"), "spare")]);
    plan.document("both.yaml", &both);
    let [orders, spare, books] =
        ["orders", "spare", "books"].map(|name| Origin::http((at(&plan, name), 8080)));
    Three { mesh: plan.start(), spare, _others: [orders, books] }
}

#[test]
fn one_that_hangs_is_left_alone_and_found_again() {
    let _alone = alone();
    let Three { mesh, spare, _others } = three();
    let web = mesh.sidecar("web");
    let process = || mesh.sidecar("spare").process();
    let books = Paced::start(web.outbound(), "books.shop", 50);
    let load = Paced::start(web.outbound(), "both.shop", 100);
    wait::until("both are asked", wait::PATIENCE, || spare.requests().len() > 20);
    let begun = Instant::now();
    wait::pause(before());
    let stopped = Instant::now();
    process().signal(Signal::SIGSTOP);
    wait::pause(Duration::from_secs(if is_long() { 20 } else { 7 }));
    let seen = spare.requests().len();
    let resumed = Instant::now();
    process().signal(Signal::SIGCONT);
    wait::until("it is asked again", Duration::from_secs(10), || spare.requests().len() > seen + 10);
    let (back, held) = (resumed.elapsed(), resumed - stopped);
    let (told, books) = (load.end(), books.end());
    let later = told.between(stopped + Duration::from_secs(3), resumed);
    let (before, during) = (books.between(begun, stopped), books.between(stopped, resumed));
    println!(
        "R12 one of two endpoints hangs for {held:.0?}: {}; the last failure {:.1?} after, the longest wait {:.1?} from then on; \
         asked again {back:.1?} after its return; another service: {}, before: {}",
        told.line(),
        told.recovered(stopped),
        later.longest(),
        during.line(),
        before.line()
    );
    // What was sent to it and not answered cannot be repeated: as many as were under way, each with an answer.
    let failed = told.failed();
    assert!(failed.len() <= 4, "{failed:#?}");
    for one in &failed {
        let wrong = one.wrong.as_deref().unwrap_or_default();
        assert!(wrong.starts_with("502") || wrong.starts_with("503"), "{one:?}");
        // `pingInterval` and `pingTimeout`.
        let most = Duration::from_millis(1_500) + allowance();
        assert!(one.took <= most, "told after {:?}, at most {most:?}: {one:?}", one.took);
    }
    // Until its PING was missed, and a while for a handshake that does not end.
    let most = Duration::from_secs(2) + allowance();
    assert!(told.longest() <= most, "it is waited for, {:?}, at most {most:?}", told.longest());
    let last = told.recovered(stopped);
    assert!(last < Duration::from_secs(5), "others are asked only after {last:?}");
    later.expect_all("while it hangs", 20);
    // Who finds out whether it is back waits for `handshake`, and nobody else.
    let most = Duration::from_millis(500) + allowance();
    assert!(later.longest() <= most, "others are asked late, {:?}, at most {most:?}", later.longest());
    assert!(back < Duration::from_secs(5), "it is asked again after {back:?}");
    let missed = web.metrics().value("postern_limit_hits_total{limit=\"ping\"}");
    assert!(missed >= 1.0, "that it hangs is found out by its PINGs");
    books.expect_all("another service", 20);
    expect_as_fast("another service", &before, &during, 12);
    expect_alive(&mesh);
}

/// An address at which nobody answers a SYN: a listener whose queue is full.
struct BlackHole {
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    fn at(address: SocketAddr) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("sockets can be made");
        listener.bind(&address.into()).expect("the address is spare");
        listener.listen(0).expect("it listens");
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
            assert!(queued.len() < 100, "the queue never fills");
        }
        Self { _listener: listener, _queued: queued }
    }
}

#[test]
fn one_that_swallows_connections_costs_a_wait_now_and_then() {
    let _alone = alone();
    let mut plan = Plan::new();
    plan.sidecar("web").log("warn");
    plan.sidecar("orders").serves(80, 8080, "http").log("warn");
    plan.document("policy.yaml", POLICY);
    let hole = plan.spare_address(0);
    plan.document("both.yaml", &service([(plan.address("orders"), "orders"), (hole, "spare")]));
    let _origin = Origin::http((plan.address("orders"), 8080));
    let _hole = BlackHole::at((hole, 24_143).into());
    let mesh = plan.start();
    let web = mesh.sidecar("web");
    let time = Duration::from_secs(6);
    // Few at once, so that who waits makes few others late.
    let told = Paced::during(web.outbound(), "both.shop", 40, time);
    let dials = web.metrics().value("postern_limit_hits_total{limit=\"connect_mesh\"}");
    println!("R12 one of two endpoints swallows SYNs: {}, {dials} dials in vain in {time:?}", told.line());
    told.expect_all("a black hole", 20);
    // `connectMesh`.
    let most = Duration::from_secs(1) + allowance();
    assert!(told.longest() <= most, "a call waits for {:?}, at most {most:?}", told.longest());
    // 250 ms, 500 ms, 1 s, 2 s after each second's wait.
    assert!((1.0..=4.0).contains(&dials), "{dials} dials in vain in {time:?}: it is asked too often");
    expect_alive(&mesh);
}
