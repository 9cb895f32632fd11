//! Recorded flows of an HTTP/2 conformance suite's clients, replayed against every port that speaks it: nothing crashes, nothing
//! hangs, nothing is left of them, and the next caller is served.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use postern_tests::frames::{Raw, flag, kind, status};
use postern_tests::{Mesh, Origin, Plan, Process, descriptors, foreign, resident, wait};

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
    to: [{ports: [8080, 9000]}]
"#;

/// Each file, or why there is none.
fn streams() -> Result<Vec<Vec<u8>>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let root = std::env::var_os("POSTERN_TEST_DATA").map_or(root, PathBuf::from);
    let directory = root.join("h2-client-streams");
    let files = std::fs::read_dir(&directory).map_err(|error| {
        format!(
            "{}: {error}; POSTERN_TEST_DATA names the directory with h2-client-streams",
            directory.display()
        )
    })?;
    let files = files.filter_map(|file| std::fs::read(file.ok()?.path()).ok());
    let streams: Vec<Vec<u8>> = files.filter(|bytes| bytes.starts_with(b"PRI * HTTP/2.0")).collect();
    if streams.len() < 100 {
        Err(format!("{}: only {} streams", directory.display(), streams.len()))
    } else {
        Ok(streams)
    }
}

/// How a port is reached.
type Open<'a> = Box<dyn Fn() -> Raw + Sync + 'a>;

#[test]
fn every_port_survives_them() {
    if !foreign::need(&["nghttpd"]) {
        return;
    }
    let streams = match streams() {
        Ok(streams) => streams,
        Err(why) => return foreign::skip(&why),
    };
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http");
    plan.document("policy.yaml", POLICY);
    let address = plan.address("orders");
    plan.document(
        "raw.yaml",
        &format!(
            "apiVersion: postern.dev/v1alpha1\nkind: Service\nmetadata: {{name: raw, namespace: shop}}\nspec:\n  \
             identity: spiffe://demo.postern/ns/shop/sa/orders\n  ports: [{{port: 9000, protocol: tcp, targetPort: 9000}}]\n  \
             endpoints: [{{address: {address}}}]\n"
        ),
    );
    let _origin = Origin::http((address, 8080));
    let mesh: &Mesh = &plan.start();
    // What is HTTP/2 inside of a tunnel reaches its workload as that.
    let root = mesh.directory().join("files");
    std::fs::create_dir(&root).expect("the mesh's directory can be written to");
    std::fs::write(root.join("index.html"), "here").expect("it was just made");
    let log = mesh.directory().join("nghttpd.log");
    let _server = Process::start("nghttpd", "nghttpd".as_ref(), &log, |command| {
        command.args(["--no-tls", "-a", &address.to_string(), "-d"]).arg(&root).arg("9000");
    });
    wait::until("nghttpd listens", wait::PATIENCE, || TcpStream::connect((address, 9000)).is_ok());
    let (web, control) = (mesh.sidecar("web"), &mesh.control);
    let outbound = web.outbound();
    let processes = [web.process().id(), mesh.sidecar("orders").process().id(), control.process().id()];
    let ports: [(&str, Open<'_>); 4] = [
        ("way out", Box::new(move || Raw::plain(outbound, "orders.shop"))),
        ("mesh", Box::new(|| Raw::mesh(mesh, "web", "orders"))),
        ("inside of a tunnel", Box::new(move || Raw::tunnel(outbound, "raw.shop:9000", "orders.shop"))),
        ("control plane", Box::new(|| Raw::control(control))),
    ];
    let before = processes.map(|process| (descriptors(process), resident(process)));
    for (name, open) in &ports {
        let (next, cut) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Some(bytes) = streams.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let mut raw = open();
                        let _ = raw.send(bytes);
                        cut.fetch_add(usize::from(raw.is_cut(Duration::from_millis(150))), Ordering::Relaxed);
                    }
                });
            }
        });
        println!("{name}: {} flows, {} ended by the far side", streams.len(), cut.load(Ordering::Relaxed));
        assert!(cut.load(Ordering::Relaxed) >= 20, "{name} takes everything");
        if *name != "control plane" {
            let mut raw = open();
            raw.hello(&[]);
            let head = raw.head(1, flag::END_STREAM, "GET", "/", &[]);
            raw.send(&head).expect("it reads");
            let answer = raw.wait_for(Duration::from_secs(10), |one| one.kind == kind::HEADERS);
            assert_eq!(answer.as_ref().and_then(status), Some(200), "{name} serves");
        }
    }
    wait::until("nothing is left of them", wait::PATIENCE, || {
        let is_back = |(process, (files, _)): (&u32, &(usize, u64))| descriptors(*process) <= files + 8;
        processes.iter().zip(&before).all(is_back)
            && ["web", "orders"]
                .iter()
                .all(|name| mesh.sidecar(name).metrics().sum("postern_streams_active") == 0.0)
    });
    for (process, (_, memory)) in processes.iter().zip(before) {
        let grown = resident(*process).saturating_sub(memory);
        assert!(grown < 32, "grew by {grown} MiB");
    }
    for log in [web.log(), mesh.sidecar("orders").log(), control.log()] {
        assert!(!log.contains("panicked"), "{log}");
    }
    assert_eq!(control.page("/ready").map(|(status, _)| status), Some(200));
}
