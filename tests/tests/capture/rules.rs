//! The rules themselves: written, gone, and what then.

use std::net::TcpListener;

use postern_tests::pods::{self, OUTSIDE, SIDECAR, WORKLOAD};

use super::{POLICY, Pods, not_ready, ready};

/// Listens outside of every pod, and says how many have come.
struct Sink(Vec<TcpListener>);

impl Sink {
    fn new(port: u16) -> Self {
        Self(
            OUTSIDE
                .map(|address| {
                    let listener = TcpListener::bind((address, port)).expect("the network is the test's own");
                    listener.set_nonblocking(true).expect("it is a socket");
                    listener
                })
                .into(),
        )
    }

    fn reached(&self) -> usize {
        self.0.iter().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count()).sum()
    }
}

fn flush(pod: &pods::Pod, chain: &str) {
    let flushed = pod.privileged(&["nft", "flush", "chain", "inet", "postern", chain]);
    assert_eq!(flushed.code, 0, "{}", flushed.stderr);
}

#[test]
fn rules_that_are_gone_leave_nothing_open_and_the_sidecar_says_so() {
    if !pods::inside("rules::rules_that_are_gone_leave_nothing_open_and_the_sidecar_says_so") {
        return;
    }
    let pods = Pods::start();
    let (sink, directory) = (Sink::new(8080), pods.mesh.directory());
    let missing = |pod: &pods::Pod, rule: &str| {
        pod.page_within("/metrics").1.contains(&format!("postern_capture_missing{{rule=\"{rule}\"}} 1"))
    };
    pods.nothing_reaches("what redirection does not take any more", || {
        // What comes: it is refused, and that is how it becomes known.
        flush(&pods.orders, "nat_in");
        for address in ["10.77.0.3", "fd77::3"] {
            let got =
                pods::call_from_outside(directory, &["tcp", address, "8080", "GET / HTTP/1.0\\r\\n\\r\\n"]);
            assert!(got.starts_with("failed ConnectionRefused"), "{got}");
        }
        not_ready(&pods.orders, "capture_redirect_in");
        assert!(missing(&pods.orders, "redirect_in") && !missing(&pods.orders, "redirect_out"));
        assert_eq!(pods.orders.init(&["apply"]).code, 0);
        ready(&pods.orders);

        // What goes.
        flush(&pods.web, "nat_out");
        for address in OUTSIDE {
            let got = pods.web.call(&["tcp", address, "8080", "x"]);
            assert!(got.starts_with("failed"), "{got}");
        }
        not_ready(&pods.web, "capture_redirect_out");
        assert_eq!(pods.web.init(&["apply"]).code, 0);
        ready(&pods.web);

        // The locks alone.
        for (chain, reason) in [("lock_in", "capture_lock_in"), ("lock_out", "capture_lock_out")] {
            flush(&pods.web, chain);
            not_ready(&pods.web, reason);
            assert_eq!(pods.web.init(&["apply"]).code, 0);
            ready(&pods.web);
        }
    });
    assert_eq!(sink.reached(), 0);

    // All of it.
    assert_eq!(pods.orders.privileged(&["nft", "delete", "table", "inet", "postern"]).code, 0);
    not_ready(&pods.orders, "capture_redirect_out");
    // Where the kernel does not follow connections, nobody can tell the mesh's own from others.
    let before = pods.reached();
    assert_eq!(pods.web.curl(&["http://10.77.0.3:8080/orders"]).0, 503);
    assert_eq!(pods.reached(), before);
    assert_eq!(pods.orders.init(&["apply"]).code, 0);
    ready(&pods.orders);
    assert_eq!(pods.web.curl(&["http://10.77.0.3:8080/orders"]).0, 200, "as before");
}

#[test]
fn a_workload_that_listens_where_the_sidecar_asks_does_not_deceive_it() {
    if !pods::inside("rules::a_workload_that_listens_where_the_sidecar_asks_does_not_deceive_it") {
        return;
    }
    let pods = Pods::start();
    let log = pods.mesh.directory().join("deceiver.log");
    let script = "import socket,time
for f,a in ((socket.AF_INET,'127.0.0.1'),(socket.AF_INET6,'::1')):
    for p in (24141,24142):
        s=socket.socket(f); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); s.bind((a,p)); s.listen(64); globals()[f'{f}{p}']=s
time.sleep(60)";
    let _deceiver = pods.web.start("deceiver", WORKLOAD, &log, &["/usr/bin/python3", "-c", script], |_| {});
    assert_eq!(pods.web.privileged(&["nft", "delete", "table", "inet", "postern"]).code, 0);
    not_ready(&pods.web, "capture_redirect_out");
}

#[test]
fn without_its_sidecar_a_workload_neither_calls_nor_is_called() {
    if !pods::inside("rules::without_its_sidecar_a_workload_neither_calls_nor_is_called") {
        return;
    }
    let pods = Pods::start();
    let (sink, directory) = (Sink::new(8080), pods.mesh.directory());
    pods.nothing_reaches("without sidecars", || {
        for sidecar in &pods.mesh.sidecars {
            sidecar.kill();
        }
        for address in ["10.77.0.3", "fd77::3"] {
            let got = pods::call_from_outside(directory, &["tcp", address, "8080", "x"]);
            assert!(got.starts_with("failed ConnectionRefused"), "{got}");
            let got = pods.web.call(&["tcp", address, "8080", "x"]);
            assert!(got.starts_with("failed ConnectionRefused"), "{got}");
        }
        for address in OUTSIDE {
            let got = pods.web.call(&["tcp", address, "8080", "x"]);
            assert!(got.starts_with("failed ConnectionRefused"), "{got}");
        }
    });
    assert_eq!(sink.reached(), 0);
    // Whoever is the sidecar's user is not redirected: that is the limit, and why nobody else may become it.
    let words = [
        "/usr/bin/python3",
        &directory.join("call.py").display().to_string(),
        "tcp",
        OUTSIDE[0],
        "8080",
        "x",
    ];
    let turned = ["setpriv", "--reuid", "24140", "--clear-groups"];
    assert_ne!(
        pods.web.run(WORKLOAD, &[&turned[..], &words].concat()).code,
        0,
        "a workload cannot become it"
    );
    assert_eq!(sink.reached(), 0);
    pods.web.run(SIDECAR, &[&["timeout", "1"][..], &words].concat());
    assert_eq!(sink.reached(), 1, "the sidecar's user");
    // The next life finds the rules, and its workload is reached again.
    for sidecar in &pods.mesh.sidecars {
        sidecar.start();
    }
    for sidecar in &pods.mesh.sidecars {
        sidecar.wait_ready();
    }
    assert_eq!(pods.web.curl(&["http://10.77.0.3:8080/orders"]).0, 200);
}

#[test]
fn rules_are_written_compared_and_taken_away_again_and_again() {
    if !pods::inside("rules::rules_are_written_compared_and_taken_away_again_and_again") {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let pods = pods::Pod::several(&["alone"], directory.path());
    let pod = &pods[0];
    let tables = || pod.privileged(&["nft", "list", "tables"]).text();
    assert_eq!(pod.privileged(&["nft", "add", "table", "inet", "theirs"]).code, 0);
    let config = directory.path().join("init.yaml");
    let text = "excludeMark: 0x706f\nskipInbound: [9100, \"9200-9299\"]\nskipNetworks: [10.9.0.0/16, \"fd09::/48\"]\n\
                udpOutbound: [123]\ndnsServers: [\"fd77::53\"]\n";
    std::fs::write(&config, text).expect("the directory is ours");
    let config = config.display().to_string();
    for words in [&[][..], &["--config", &config], &["--no-lock", "--allow-ping"]] {
        let with = |verb: &'static str| [&[verb][..], words].concat();
        assert_eq!(pod.init(&with("check")).code, 1, "nothing is there");
        for _ in 0..2 {
            let applied = pod.init(&with("apply"));
            assert_eq!(applied.code, 0, "{words:?}: {}", applied.stderr);
            let checked = pod.init(&with("check"));
            assert_eq!(checked.code, 0, "{words:?}: {}", checked.stderr);
        }
        // Each rule counts, and its place.
        for (edit, said) in [
            ("flush chain inet postern nat_out", "- meta l4proto tcp counter redirect to :24140"),
            ("insert rule inet postern nat_in tcp dport 8080 return", "+ tcp dport 8080 return"),
            ("add rule inet postern lock_in accept", "+ accept"),
            ("add element inet postern skip_out { 8080 }", "+ elements = { 8080 }"),
            ("add chain inet postern other", "+ chain other {"),
        ] {
            let mut all = vec!["nft"];
            all.extend(edit.split(' '));
            assert_eq!(pod.privileged(&all).code, 0, "{edit}");
            let checked = pod.init(&with("check"));
            assert!(checked.code == 1 && checked.stderr.contains(said), "{edit}: {}", checked.stderr);
            assert_eq!(pod.init(&with("apply")).code, 0, "{edit}");
        }
        assert_eq!(tables(), "table inet theirs\ntable inet postern\n", "nothing else is touched or left");
        for _ in 0..2 {
            assert_eq!(pod.init(&["remove"]).code, 0);
            assert_eq!(tables(), "table inet theirs\n");
        }
    }
    // Refused as a whole: nothing of it stands.
    let denied = pod.run(
        WORKLOAD,
        &[
            &pod.shared(&postern_tests::postern_init()).display().to_string(),
            "apply",
            "--dns-server",
            "10.0.0.53",
        ],
    );
    assert!(denied.code == 1 && denied.stderr.contains("CAP_NET_ADMIN"), "{}", denied.stderr);
    let wrong = pod.init(&["apply", "--skip-inbound", "80 } ; flush ruleset"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("is no port"), "{}", wrong.stderr);
    assert_eq!(tables(), "table inet theirs\n");
}

#[test]
fn the_sidecar_may_be_told_apart_by_a_mark() {
    if !pods::inside("rules::the_sidecar_may_be_told_apart_by_a_mark") {
        return;
    }
    let pods = Pods::planned(
        POLICY,
        |plan| {
            for name in ["web", "orders"] {
                plan.mark(name, ", mark: 0x706f");
            }
        },
        &["--exclude-mark", "0x706f"],
    );
    for at in ["10.77.0.3:8080", "[fd96::3]"] {
        assert_eq!(pods.web.curl(&[&format!("http://{at}/orders")]).0, 200, "{at}");
    }
    let sink = Sink::new(8080);
    for uid in [WORKLOAD, SIDECAR] {
        let words = [
            "curl",
            "-sS",
            "--max-time",
            "5",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://10.77.0.1:8080/",
        ];
        assert_eq!(pods.web.run(uid, &words).text(), "403", "{uid} bears no mark, so it is redirected");
    }
    assert_eq!(sink.reached(), 0);
    // Without the privilege to mark its connections a sidecar does not start: all of them would come back to it.
    let sidecar = pods.mesh.sidecar("web");
    sidecar.kill();
    let program = pods.web.shared(&postern_tests::postern_proxy()).display().to_string();
    let config = sidecar.config().display().to_string();
    let refused = pods.web.run(SIDECAR, &[&program, "run", "--config", &config]);
    assert!(refused.code == 1 && refused.stderr.contains("capture.mark"), "{}", refused.stderr);
}
