//! Policy under load: a directory that is rewritten five times a second, every verdict recomputed afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{Generation, Operation, Scope, Source, SourceFile, Workload};
use postern_svid::{SpiffeId, TrustDomain};
use postern_tests::{Load, Mesh, Nginx, Plan, digest, foreign, is_long, wait, wire};

const EVERY: Duration = Duration::from_millis(200);

/// A good set: `/always` open, `/never` closed, `/loaded` as `allows` says, each in one of several ways.
fn good(number: usize, allows: bool) -> String {
    let (paths, more) = match (allows, number / 4 % 3) {
        (true, 0) => (r#""/always", "/loaded""#, ""),
        (true, 1) => (r#""/{*}""#, "/never"),
        (true, _) => (r#""/always", "/loaded", "/never""#, "/never"),
        (false, 0) => (r#""/always""#, ""),
        (false, 1) => (r#""/{*}""#, "/loaded"),
        (false, _) => (r#""/always", "/load""#, ""),
    };
    let mut text = format!(
        "# version {number}\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\n\
         metadata: {{name: open, namespace: shop}}\nspec:\n  target: {{selector: {{app: orders}}}}\n  action: Allow\n  \
         rules:\n  - name: web\n    from: [{{serviceAccounts: [web]}}]\n    to: [{{paths: [{paths}], ports: [8080]}}]\n"
    );
    let closed: BTreeSet<&str> = ["/never", more].into_iter().filter(|path| !path.is_empty()).collect();
    for (at, path) in closed.into_iter().enumerate() {
        text += &format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\n\
             metadata: {{name: closed-{at}, namespace: shop}}\nspec:\n  target: {{selector: {{app: orders}}}}\n  \
             action: Deny\n  rules:\n  - name: nobody\n    from: [{{namespaces: [shop]}}]\n    to: [{{paths: [\"{path}\"]}}]\n"
        );
    }
    text
}

/// A set that must be refused, whatever it would allow.
fn broken(number: usize) -> Vec<u8> {
    let all = good(number, true);
    match number / 2 % 6 {
        0 => all.replace("action: Allow", "action: Alow").into_bytes(),
        1 => all.as_bytes()[..all.len() / 2].to_vec(),
        2 => all.replace("serviceAccounts", "serviceAcounts").into_bytes(),
        3 => (all.clone() + "---\n" + &all).into_bytes(),
        4 => [all.as_bytes(), b"\xff\xfe"].concat(),
        _ => all.replace("namespace: shop", "namespace: [shop").into_bytes(),
    }
}

/// One response of the recording client.
#[derive(Clone, Debug)]
struct Recorded {
    path: &'static str,
    status: u16,
    decision: String,
}

impl Recorded {
    fn generation(&self) -> u64 {
        let number = self.decision.split('-').next().and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("{:?} names no generation", self.decision))
    }
}

/// Sends requests one after another on a connection of its own and keeps everything that it was told.
fn record(proxy: SocketAddr, stop: &AtomicBool) -> Vec<Recorded> {
    let mut stream = wire::connect(proxy);
    let mut records = Vec::new();
    for path in ["/loaded", "/always", "/loaded", "/never", "/%6coaded"].into_iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        records.push(request(&mut stream, path));
    }
    records
}

fn request(stream: &mut TcpStream, path: &'static str) -> Recorded {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: orders.shop\r\n\r\n").expect("the sidecar reads");
    let head = wire::read_head(stream).to_ascii_lowercase();
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    let length = field("content-length:").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or_else(|| panic!("a response without a length: {head}"))];
    stream.read_exact(&mut body).expect("a response that has begun ends");
    let decision = field("postern-decision:").unwrap_or_else(|| panic!("{path}: no decision: {head}"));
    Recorded { path, status: wire::status(head.to_ascii_uppercase().as_bytes()), decision }
}

/// Recomputes verdicts from files alone.
struct Checker {
    versions: BTreeMap<String, Vec<SourceFile>>,
    digests: BTreeMap<u64, String>,
    generations: BTreeMap<u64, Generation>,
}

impl Checker {
    fn expected(&mut self, record: &Recorded) -> u16 {
        let number = record.generation();
        let (versions, digests) = (&self.versions, &self.digests);
        let generation = self.generations.entry(number).or_insert_with(|| {
            let digest =
                digests.get(&number).unwrap_or_else(|| panic!("the sidecar never had generation {number}"));
            let files =
                versions.get(digest).unwrap_or_else(|| panic!("nobody ever wrote generation {number}"));
            postern_policy::load(files, &scope(), number).expect("what is in force can be loaded")
        });
        let web = SpiffeId::parse("spiffe://demo.postern/ns/shop/sa/web").expect("it is one");
        let source = Source { identity: Some(&web), address: [127, 0, 0, 1].into() };
        let method = CanonMethod::parse("GET").expect("it is one");
        let path =
            CanonPath::parse_for(&method, record.path, &generation.defaults().path).expect("it is one");
        let operation = Operation::http(&method, &path);
        let verdict = generation.decide_by_reference(source, 8080, operation);
        if verdict.is_allowed() { 200 } else { 403 }
    }

    fn wrong(&mut self, records: &[Recorded]) -> Vec<String> {
        let say = |record: &Recorded, expected| format!("{record:?}: generation says {expected}");
        records
            .iter()
            .filter_map(|record| {
                let expected = self.expected(record);
                (expected != record.status).then(|| say(record, expected))
            })
            .collect()
    }
}

fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("demo.postern").expect("it is one"),
        root_namespace: "postern-system".to_owned(),
        workload: Some(Workload {
            namespace: "shop".to_owned(),
            service_account: "orders".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), "orders".to_owned())]),
        }),
    }
}

/// Rewrites the directory until `until`, and returns every good set under its digest.
fn rewrite(mesh: &Mesh, is_over: impl Fn() -> bool) -> BTreeMap<String, Vec<SourceFile>> {
    let mut versions = BTreeMap::from([(digest(&mesh.documents.files()), mesh.documents.files())]);
    let start = Instant::now();
    for number in 1.. {
        if is_over() {
            break;
        }
        if number % 2 == 0 {
            mesh.documents.write("policy.yaml", &good(number, number % 4 == 0));
            let files = mesh.documents.files();
            versions.insert(digest(&files), files);
        } else {
            mesh.documents.write_bytes("policy.yaml", &broken(number));
        }
        let next = EVERY * u32::try_from(number).expect("a test is not that long");
        wait::pause(next.saturating_sub(start.elapsed()));
    }
    versions
}

#[test]
fn every_verdict_under_load_is_that_of_its_generation() {
    if !foreign::need(&["h2load", "nginx"]) {
        return;
    }
    let time = Duration::from_secs(if is_long() { 60 } else { 12 });
    let mut plan = Plan::new();
    plan.sidecar("web");
    plan.sidecar("orders").serves(80, 8080, "http").log("warn");
    plan.document("policy.yaml", &good(0, true));
    let address = plan.address("orders");
    let mesh = plan.start();
    let _nginx = Nginx::start(&mesh, (address, 8080), "location / { return 200 \"yes\\n\"; }");

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (proxy, stop) = (mesh.sidecar("web").outbound(), Arc::clone(&stop));
            std::thread::spawn(move || record(proxy, &stop))
        })
        .collect();
    let load = Load::start(&mesh, "web", "http://orders.shop/loaded", time);
    let versions = rewrite(&mesh, || load.is_over());
    let loaded = load.end();
    stop.store(true, Ordering::Relaxed);
    let records: Vec<Recorded> =
        clients.into_iter().flat_map(|client| client.join().expect("a client gets whole answers")).collect();

    // h2load: nothing but 200 and 403, a good part of each, and nothing broken.
    let count = |status: u16| loaded.statuses.get(&status).copied().unwrap_or(0);
    assert_eq!(count(200) + count(403), loaded.answered(), "{:?}\n{}", loaded.statuses, loaded.summary);
    assert_eq!(loaded.failed, 0, "{}", loaded.summary);
    for status in [200, 403] {
        assert!(count(status) * 10 >= loaded.answered(), "under a tenth is {status}: {:?}", loaded.statuses);
    }

    // The recording client: every verdict is that of the generation which it names.
    let orders = mesh.sidecar("orders");
    let history = orders.admin("/v1/policy")["history"].clone();
    let digests = history
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| Some((one["generation"].as_u64()?, one["digest"].as_str()?.to_owned())));
    let mut checker = Checker { versions, digests: digests.collect(), generations: BTreeMap::new() };
    let wrong = checker.wrong(&records);
    assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), records.len(), &wrong[..wrong.len().min(10)]);
    let ids: BTreeSet<&str> = records.iter().map(|record| record.decision.as_str()).collect();
    assert_eq!(ids.len(), records.len(), "no verdict answers two requests");

    // The checker is no rubber stamp: one record turned over is found.
    for at in [0, records.len() / 2, records.len() - 1] {
        let mut lie = records[at].clone();
        lie.status = 603 - lie.status;
        assert_eq!(checker.wrong(&[lie]).len(), 1);
    }

    // And it was as much as it was meant to be.
    let generations: BTreeSet<u64> = records.iter().map(Recorded::generation).collect();
    let least = if is_long() { 100 } else { 15 };
    assert!(generations.len() >= least, "only {} generations were seen in {time:?}", generations.len());
    let metrics = orders.metrics();
    let refused = metrics.value("postern_policy_loads_total{result=\"refused\"}");
    assert!(refused >= least as f64 / 2.0, "only {refused} broken sets were met");
    for path in ["/loaded", "/always", "/never", "/%6coaded"] {
        let statuses: BTreeSet<u16> =
            records.iter().filter(|record| record.path == path).map(|record| record.status).collect();
        let expected: &[u16] = match path {
            "/always" => &[200],
            "/never" => &[403],
            _ => &[200, 403],
        };
        assert!(statuses.iter().eq(expected), "{path}: {statuses:?}");
    }
    println!(
        "h2load: {:?}; recorded: {}, generations: {}, refused: {refused}",
        loaded.statuses,
        records.len(),
        generations.len()
    );
}
