//! A join token that lies in no file of the sidecar's: handed over as a descriptor by whoever starts it.

use std::fs;
use std::path::Path;

use postern_tests::{Plan, Process, postern_proxy, wait};

#[test]
fn a_token_comes_through_a_pipe() {
    for descriptor in [0, 3] {
        let mut plan = Plan::new();
        plan.sidecar("orders").serves(80, 8080, "http");
        let mesh = plan.prepare();
        mesh.control.start();
        let orders = mesh.sidecar("orders");
        orders.create_token();
        let token = mesh.directory().join("elsewhere");
        fs::rename(orders.token(), &token).expect("both are ours");
        let config = fs::read_to_string(orders.config()).expect("the plan wrote it");
        let by_file = format!("joinToken: {}", orders.token().display());
        assert!(config.contains(&by_file), "{config}");
        let config = config.replace(&by_file, &format!("joinToken: {{descriptor: {descriptor}}}"));
        fs::write(orders.config(), config).expect("it is ours");
        // A shell's here-document is a pipe, and the shell becomes the sidecar: nothing is left when it is killed.
        let script = format!("exec \"$0\" run --config \"$1\" {descriptor}<<TOKEN\n$(cat \"$2\")\nTOKEN\n");
        let log = mesh.directory().join("orders.log");
        let _process = Process::start("orders", Path::new("/bin/sh"), &log, |command| {
            command.args(["-c", &script]).args([&postern_proxy(), orders.config(), &token]);
        });
        wait::until("it is ready", wait::PATIENCE, || orders.is_ready());
        assert_eq!(orders.admin("/v1/identity")["id"], orders.id());
    }
}
