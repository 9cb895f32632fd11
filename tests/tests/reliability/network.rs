//! R17: a network that loses, resets, and parts.

use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Origin, Paced, Told, foreign, is_long, namespace, wait};

use super::{alone, expect_alive, pair};

/// Rules for the packets between the two sidecars; each is one chain at the way out, which loopback passes too.
fn rules(rules: &str) {
    let _ = Command::new("nft").args(["delete", "table", "inet", "trouble"]).output();
    if rules.is_empty() {
        return;
    }
    let text = format!(
        "table inet trouble {{\n chain out {{\n  type filter hook output priority 0;\n{rules}\n }}\n}}\n"
    );
    let done =
        foreign::run_with_input(Command::new("nft").args(["-f", "-"]), text.as_bytes(), wait::PATIENCE);
    assert_eq!(done.code, 0, "{text}: {}", done.stderr);
}

/// Packets that the rules have counted.
fn met() -> u64 {
    let listed =
        foreign::run(Command::new("nft").args(["list", "table", "inet", "trouble"]), wait::PATIENCE).text();
    let counts = listed.split("counter packets ").skip(1);
    counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

struct Trouble {
    mesh: Mesh,
    _origin: Origin,
}

impl Trouble {
    fn start(limits: &[(&str, &str)]) -> Self {
        let (mesh, origin) = pair(limits);
        Self { mesh, _origin: origin }
    }

    /// A load, through which these rules hold for a while; what was asked before, in and after that, and how many packets
    /// met a rule.
    fn beside(&self, per_second: u32, held: Duration, what: &str) -> (Told, Instant, Instant, u64) {
        let load = Paced::start(self.mesh.sidecar("web").outbound(), "orders.shop", per_second);
        wait::pause(Duration::from_millis(500));
        let begun = Instant::now();
        rules(what);
        wait::pause(held);
        let met = met();
        rules("");
        let ended = Instant::now();
        // Longer than it may take to be as before.
        wait::pause(Duration::from_secs(3));
        (load.end(), begun, ended, met)
    }

    /// The port of the mesh, as `nft` reads it: towards it, and back from it.
    fn paths(&self) -> [String; 2] {
        let at = self.mesh.address("orders");
        [format!("ip daddr {at} tcp dport 24143"), format!("ip saddr {at} tcp sport 24143")]
    }
}

/// Each runs in a network of its own.
fn inside(test: &str) -> bool {
    foreign::need(&["nft", "ip"]) && namespace::inside(&format!("network::{test}"), &[])
}

#[test]
fn two_packets_of_a_hundred_are_lost() {
    let _alone = alone();
    if !inside("two_packets_of_a_hundred_are_lost") {
        return;
    }
    let trouble = Trouble::start(&[]);
    let [to, from] = trouble.paths();
    let lossy = format!(
        "  {to} numgen random mod 100 < 2 counter drop\n  {from} numgen random mod 100 < 2 counter drop"
    );
    let held = Duration::from_secs(if is_long() { 60 } else { 3 });
    let (told, begun, ended, lost) = trouble.beside(100, held, &lossy);
    println!(
        "R17 2 % of the packets lost for {held:?}, {lost} of them: {}",
        told.between(begun, ended).line()
    );
    told.expect_all("loss", 20);
    assert!(lost >= 1, "only {lost} were lost");
    expect_alive(&trouble.mesh);
}

#[test]
fn connections_are_reset() {
    let _alone = alone();
    if !inside("connections_are_reset") {
        return;
    }
    let trouble = Trouble::start(&[]);
    let [to, _] = trouble.paths();
    // One of 200; where time is short, one of 40.
    let (held, of) = if is_long() { (60, 200) } else { (3, 40) };
    let resetting =
        format!("  {to} ct state established numgen random mod {of} < 1 counter reject with tcp reset");
    let (told, begun, ended, met) = trouble.beside(100, Duration::from_secs(held), &resetting);
    let failed = told.failed();
    let dials = trouble.mesh.sidecar("web").metrics().value("postern_mesh_dials_total");
    println!(
        "R17 a packet of {of} answered with a reset for {held} s, {met} of them: {}, {dials} connections",
        told.between(begun, ended).line()
    );
    assert!(met >= 1, "nothing was reset");
    assert!(dials > 1.0, "no other connection was made: {}", told.line());
    for one in &failed {
        let wrong = one.wrong.as_deref().unwrap_or_default();
        assert!(
            wrong.starts_with("502") || wrong.starts_with("503") || wrong.starts_with("reading the body"),
            "{one:?}"
        );
    }
    // What is under way on a connection goes with it, and nothing else.
    let failures = failed.len();
    assert!(
        failures as f64 <= dials * 4.0,
        "{failures} failed, more than were under way on {dials} connections"
    );
    let last = told.recovered(ended);
    assert!(last < Duration::from_secs(1), "the last call failed {last:?} after the last reset");
    expect_alive(&trouble.mesh);
}

#[test]
fn two_seconds_apart() {
    let _alone = alone();
    if !inside("two_seconds_apart") {
        return;
    }
    let trouble = Trouble::start(&[]);
    let [to, from] = trouble.paths();
    let held = Duration::from_secs(2);
    let (told, begun, ended, _) = trouble.beside(50, held, &format!("  {to} drop\n  {from} drop"));
    println!("R17 no packet for 2 s: {}", told.between(begun, ended).line());
    told.expect_all("a partition", 30);
    assert!(told.longest() > Duration::from_millis(1_500), "{}", told.line());
    expect_alive(&trouble.mesh);
}

/// One way is shut: who asks hears nothing, and the other side hears everything.
#[test]
fn one_way_shut() {
    let _alone = alone();
    if !inside("one_way_shut") {
        return;
    }
    let limits = if is_long() { &[][..] } else { &[("pingInterval", "1s"), ("pingTimeout", "2s")][..] };
    let (found, held) = if is_long() { (32, 40) } else { (5, 6) };
    let trouble = Trouble::start(limits);
    let [_, from] = trouble.paths();
    let (told, begun, ended, _) = trouble.beside(20, Duration::from_secs(held), &format!("  {from} drop"));
    let first = told.failed().first().map(|one| one.due + one.took);
    let first = first.map(|end| end.saturating_duration_since(begun)).unwrap_or_default();
    let recovered = told.recovered(ended);
    println!(
        "R17 one way shut for {held} s: {}; found out after {first:.1?}, the last failure {recovered:.1?} after it was open",
        told.line()
    );
    let is_in_time = Duration::ZERO < first && first <= Duration::from_secs(found);
    assert!(
        is_in_time,
        "a peer that is not heard is found out within {found} s: the first failure came after {first:?}"
    );
    for one in told.failed() {
        let wrong = one.wrong.as_deref().unwrap_or_default();
        assert!(wrong.starts_with("502") || wrong.starts_with("503"), "{one:?}");
    }
    assert!(recovered < Duration::from_secs(2), "the last call failed {recovered:?} after the way was open");
    expect_alive(&trouble.mesh);
}
