//! R21: documents that change a hundred times a second.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Paced, Plan, is_long, resident, wait};

use super::{POLICY, alone, call, expect_alive};

/// How many times slower a build without optimisation compiles.
const UNOPTIMISED: u64 = if cfg!(debug_assertions) { 10 } else { 1 };

/// Rules and endpoints that are of no concern to anybody here.
fn ballast(plan: &mut Plan, policies: usize, endpoints: usize) {
    let mut text = String::new();
    for number in 0..policies {
        let _ = write!(
            text,
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{number}, namespace: shop}}\n\
             spec:\n  target: {{selector: {{app: orders}}}}\n  action: Allow\n  rules:\n  - name: one\n    \
             from: [{{serviceAccounts: [s{number}]}}]\n    to: [{{paths: [/p{number}]}}]\n"
        );
    }
    plan.document("ballast.yaml", &text);
    let mut text = String::new();
    for number in 0..endpoints / 10 {
        let _ = write!(
            text,
            "---\napiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: s{number}, namespace: shop}}\nspec:\n  \
             identity: spiffe://demo.postern/ns/shop/sa/s{number}\n  ports: [{{port: 80, protocol: http}}]\n  endpoints:\n"
        );
        for at in 0..10 {
            let _ = writeln!(text, "  - {{address: 10.{}.{}.{}}}", number / 200, number % 200, at + 1);
        }
    }
    plan.document("endpoints.yaml", &text);
}

/// The same set but for one rule, which `number` names and which lets web call `/flip` or not.
fn flip(number: usize, opens: bool) -> String {
    let who = if opens { "web" } else { "nobody" };
    POLICY.replace("kind: AccessPolicy", "kind: AccessPolicy\n# flap")
        + &format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: flip, namespace: shop}}\nspec:\n  \
             target: {{selector: {{app: orders}}}}\n  action: Allow\n  rules:\n  - name: n{number}\n    \
             from: [{{serviceAccounts: [{who}]}}]\n    to: [{{paths: [/flip]}}]\n"
        )
}

/// From a change to its being in force at orders, by its generation.
fn reload(mesh: &Mesh, number: usize) -> Duration {
    let orders = mesh.sidecar("orders");
    let before = orders.generation();
    let begun = Instant::now();
    mesh.documents.write("policy.yaml", &flip(number, true));
    wait::until("the change is in force", wait::PATIENCE, || orders.generation() > before);
    begun.elapsed()
}

#[test]
fn documents_that_change_all_the_time() {
    let _alone = alone();
    // A build without optimisation compiles a tenth of what one with it does.
    let (policies, endpoints, time) = if is_long() { (10_000, 5_000, 30) } else { (200, 100, 3) };
    let mut plan = Plan::new();
    plan.sidecar("web").log("warn");
    plan.sidecar("orders").serves(80, 8080, "http").log("warn");
    plan.document("policy.yaml", &flip(0, true));
    ballast(&mut plan, policies, endpoints);
    let _origin = postern_tests::Origin::http((plan.address("orders"), 8080));
    let mesh = plan.start();
    assert_eq!(call(&mesh, "orders.shop"), 200);
    let orders = mesh.sidecar("orders");
    // As much as it keeps of the past.
    for number in 1..=20 {
        reload(&mesh, number);
    }
    let (start, generation) = (resident(orders.process().id()), orders.generation());

    let load = Paced::start(mesh.sidecar("web").outbound(), "orders.shop", 100);
    let begun = Instant::now();
    let mut written: u32 = 0;
    while begun.elapsed() < Duration::from_secs(time) {
        mesh.documents.write("policy.yaml", &flip(1_000 + written as usize, written.is_multiple_of(2)));
        written += 1;
        wait::pause((Duration::from_millis(10) * written).saturating_sub(begun.elapsed()));
    }
    let told = load.end();
    let generations = orders.generation() - generation;
    let mut times: Vec<Duration> =
        (0..if is_long() { 50 } else { 20 }).map(|n| reload(&mesh, 10_000 + n)).collect();
    times.sort();
    let slowest = times.last().copied().unwrap_or_default();
    // 200 ms are for a build with optimisation.
    let most = Duration::from_millis(if is_long() { 200 * UNOPTIMISED } else { 1_000 });
    let settled = Instant::now();
    let mut after = resident(orders.process().id());
    while after > start + start / 5 && settled.elapsed() < Duration::from_secs(15) {
        wait::pause(Duration::from_millis(250));
        after = resident(orders.process().id());
    }
    println!(
        "R21 {written} edits in {time} s of {policies} policies and {endpoints} endpoints: {generations} generations, {}; \
         then a change is in force within {slowest:.0?}; {start} -> {after} MiB",
        told.line()
    );
    told.expect_all("while documents flap", 20);
    assert!(generations >= 1, "not one of {written} edits came into force");
    assert!(slowest <= most, "a change is in force after {slowest:?}, at most {most:?}");
    assert!(after <= start + start / 5, "memory does not return: {start} -> {after} MiB");
    expect_alive(&mesh);
}
