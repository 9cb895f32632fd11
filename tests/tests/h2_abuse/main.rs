//! Abuse of HTTP/2, frame by frame, at a sidecar's two ports: the workload's way out in the clear, and the mesh listener with
//! a sidecar's own certificate. Each attack runs twice: with the limits as they are, which must stop it, and with the one
//! limit that stops it set out of reach, where it must succeed - or the first would prove nothing.
//!
//! `POSTERN_TEST_LONG=1 cargo test -p postern-tests --test h2_abuse -- --nocapture` prints the table of
//! docs/threat-model.md, with Envoy beside it.

mod attacks;

use std::time::{Duration, Instant};

use postern_tests::frames::{Raw, flag, kind, status};
use postern_tests::{Envoy, Mesh, Origin, Plan, foreign, is_long, resident, wait};

use attacks::{ATTACKS, Attack, Seen, Target};

const POLICY: &str = r#"
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules:
  - name: web
    from: [{serviceAccounts: [web]}]
"#;

/// Clocks that would make the test long. What they bound is the same.
const CLOCKS: [(&str, &str); 3] = [("stall", "1s"), ("pingInterval", "500ms"), ("pingTimeout", "1s")];

/// The limits that stop the attacks below, out of reach.
const OUT_OF_REACH: [(&str, &str); 13] = [
    ("stall", "1h"),
    ("pingInterval", "1h"),
    ("streams", "1000"),
    ("meshStreams", "1000"),
    ("sendBuffer", "16777216"),
    ("clientResetStreams", "1000000"),
    ("clientResetPercent", "100"),
    ("clientResetsPerSecond", "1000000"),
    ("localErrorResets", "1000000"),
    ("meshLocalErrorResets", "1000000"),
    ("headBytes", "16777216"),
    ("headFields", "10000"),
    ("inFlight", "100000"),
];

fn peak(process: u32, run: impl FnOnce() -> (bool, usize)) -> ((bool, usize), u64) {
    let before = resident(process);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = before;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                most = most.max(resident(process));
                wait::pause(Duration::from_millis(50));
            }
            most
        });
        let came_to = run();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (came_to, watching.join().expect("no panic") - before)
    })
}

fn attack(attack: &Attack, target: &Target) -> Seen {
    target.origin.forget();
    let begun = Instant::now();
    let ((cut, sent), grown) = peak(target.process, || (attack.run)(target));
    let took = begun.elapsed();
    let requests = target.origin.requests().len();
    let seen = Seen { cut, sent, requests, grown, took };
    println!(
        "| {} | {} | {} | {} sent, {} at the origin, +{} MiB, {:.1} s |",
        attack.name,
        target.name,
        if seen.cut { "cut" } else { "not cut" },
        seen.sent,
        seen.requests,
        seen.grown,
        seen.took.as_secs_f64()
    );
    seen
}

/// A request by somebody else, on a connection of its own.
fn honest(target: &Target) -> Option<u16> {
    let mut raw = (target.open)();
    raw.hello(&[]);
    let head = raw.head(1, flag::END_STREAM, "GET", "/honest", &[]);
    let _ = raw.send(&head);
    let answer = raw.wait_for(Duration::from_secs(5), |frame| frame.kind == kind::HEADERS)?;
    status(&answer)
}

fn mesh(limits: &[(&str, &str)]) -> (Mesh, Origin) {
    let mut plan = Plan::new();
    for name in ["web", "orders"] {
        let sidecar = plan.sidecar(name);
        for (limit, value) in limits {
            sidecar.limit(limit, value);
        }
        if name == "orders" {
            sidecar.serves(80, 8080, "http");
        }
    }
    plan.document("policy.yaml", POLICY);
    let origin = Origin::http((plan.address("orders"), 8080));
    (plan.start(), origin)
}

fn targets<'a>(mesh: &'a Mesh, origin: &'a Origin) -> [Target<'a>; 2] {
    let (web, orders) = (mesh.sidecar("web"), mesh.sidecar("orders"));
    [
        Target {
            name: "way out",
            open: Box::new(|| Raw::plain(web.outbound(), "orders.shop")),
            origin,
            process: web.process().id(),
        },
        Target {
            name: "mesh",
            open: Box::new(|| Raw::mesh(mesh, "web", "orders")),
            origin,
            process: orders.process().id(),
        },
    ]
}

#[test]
fn attacks_are_cut() {
    let (mesh, origin) = mesh(&CLOCKS);
    for target in &targets(&mesh, &origin) {
        for one in &ATTACKS {
            let seen = attack(one, target);
            assert!(
                (one.held)(&seen),
                "{} at the {}: cut {}, {} sent, {} requests, +{} MiB, {:?}",
                one.name,
                target.name,
                seen.cut,
                seen.sent,
                seen.requests,
                seen.grown,
                seen.took
            );
            let (asked, answer) = (Instant::now(), honest(target));
            assert_eq!(answer, Some(200), "after {} at the {}, {:?}", one.name, target.name, asked.elapsed());
        }
    }
    for name in ["web", "orders"] {
        assert!(mesh.sidecar(name).is_running());
        wait::until("nothing is left of it", wait::PATIENCE, || {
            mesh.sidecar(name).metrics().sum("postern_streams_active") == 0.0
        });
    }
}

#[test]
fn without_their_limits_they_succeed() {
    let (mesh, origin) = mesh(&OUT_OF_REACH);
    // One door is enough: what is taken away stands behind both.
    for target in targets(&mesh, &origin).iter().take(if is_long() { 2 } else { 1 }) {
        for one in &ATTACKS {
            let Some(succeeded) = one.succeeded else { continue };
            let seen = attack(one, target);
            assert!(
                succeeded(&seen),
                "{} at the {}: cut {}, {} sent, {} requests, +{} MiB, {:?}",
                one.name,
                target.name,
                seen.cut,
                seen.sent,
                seen.requests,
                seen.grown,
                seen.took
            );
        }
    }
}

/// The table of docs/threat-model.md: what each attack comes to with the limits as they are (with `CLOCKS`, or the waiting
/// would be long), without them, and at an Envoy that nobody has configured any further.
#[test]
fn the_table_beside_envoy() {
    if !is_long() || !foreign::need(&["envoy"]) {
        return;
    }
    let (with, first) = mesh(&CLOCKS);
    let (without, second) = mesh(&OUT_OF_REACH);
    let third = Origin::http((with.spare_address(0), 8080));
    let at = (with.spare_address(0), 8000).into();
    let envoy = Envoy::new(at, third.address()).start(with.directory());
    let open = || Raw::plain(at, "orders.shop");
    let foreign = Target { name: "Envoy", open: Box::new(open), origin: &third, process: envoy.id() };
    assert_eq!(honest(&foreign), Some(200), "Envoy serves");
    let (with, without) = (targets(&with, &first), targets(&without, &second));
    for one in &ATTACKS {
        for target in [&with[0], &with[1], &without[0], &without[1], &foreign] {
            let stopped =
                if with.iter().any(|own| std::ptr::eq(own, target)) { "limits" } else { "none of ours" };
            print!("{stopped:<14}");
            let seen = attack(one, target);
            if stopped == "limits" {
                assert!((one.held)(&seen), "{} at the {}", one.name, target.name);
            }
        }
    }
}
