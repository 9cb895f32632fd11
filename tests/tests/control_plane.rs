//! What the control plane and its sidecars tell about each other.

use std::fs;
use std::process::Command;

use postern_tests::{Plan, foreign, postern, wait};

fn logged(mesh: &postern_tests::Mesh, words: &str) -> usize {
    let log = fs::read_to_string(mesh.directory().join("control.log")).unwrap_or_default();
    log.matches(words).count()
}

#[test]
fn a_new_root_is_told_once_and_its_hash_is_all_that_a_sidecar_needs() {
    let mut plan = Plan::new();
    plan.sidecar("orders").serves(80, 8080, "http");
    let mesh = plan.prepare();
    mesh.control.start();
    let mut status = Command::new(postern());
    status.args(["ca", "status", "--config"]).arg(mesh.control.config());
    let status = foreign::run(&mut status, wait::PATIENCE);
    let status = status.text();
    let line = status.lines().find_map(|line| line.trim().strip_prefix("rootSha256"));
    let sha256 = line.unwrap_or_else(|| panic!("no rootSha256: {status}")).trim().to_owned();
    let told = format!(
        "a new root was made: SHA-256 {sha256}, in {}; if there was one before, stop now and restore it",
        mesh.control.state().display()
    );
    assert_eq!(logged(&mesh, &told), 1);
    mesh.control.kill();
    mesh.control.start();
    assert_eq!(logged(&mesh, "a new root was made"), 1, "it is the old one");

    let orders = mesh.sidecar("orders");
    let config = fs::read_to_string(orders.config()).expect("the plan wrote it");
    let bundle = config.lines().find(|line| line.trim_start().starts_with("trustBundle:"));
    let bundle = bundle.unwrap_or_else(|| panic!("no trustBundle: {config}"));
    fs::write(orders.config(), config.replace(bundle, &format!("  rootSha256: {sha256}")))
        .expect("it is ours");
    orders.create_token();
    orders.start();
    orders.wait_ready();
}

#[test]
fn a_sidecar_tells_once_that_the_control_plane_is_lost_and_once_that_it_is_back() {
    let mut plan = Plan::new();
    plan.sidecar("orders").serves(80, 8080, "http");
    let mesh = plan.start();
    let orders = mesh.sidecar("orders");
    let count = |words: &str| orders.log().matches(words).count();
    let is_lost = || orders.notes("control_plane_unreachable");
    wait::until("the stream is open", wait::PATIENCE, || !is_lost());
    mesh.control.kill();
    wait::until("the loss is told", wait::PATIENCE, || count("the control plane is lost") > 0);
    // Tried more than once meanwhile.
    wait::pause(std::time::Duration::from_secs(3));
    mesh.control.start();
    wait::until("its return is told", wait::PATIENCE, || count("the control plane is back") > 0);
    assert_eq!((count("the control plane is lost"), count("the control plane is back")), (1, 1));
    let address = format!("control_plane=\"{}:24150\"", mesh.control.address());
    assert!(orders.log().contains(&address), "{}", orders.log());
}

#[test]
fn a_token_of_another_is_told_on_both_sides() {
    let mut plan = Plan::new();
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.sidecar("web");
    let mesh = plan.prepare();
    mesh.control.start();
    let (orders, web) = (mesh.sidecar("orders"), mesh.sidecar("web"));
    web.create_token();
    fs::rename(web.token(), orders.token()).expect("both are ours");
    orders.start();
    let refused = format!("the proof stands for {}", web.id());
    wait::until("the control plane tells", wait::PATIENCE, || logged(&mesh, &refused) > 0);
    let told = orders.token().display().to_string();
    wait::until("the sidecar tells", wait::PATIENCE, || orders.log().contains(&told));
    assert!(orders.log().contains(&format!("postern ca token create --id {}", orders.id())));
}
