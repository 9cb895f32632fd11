//! The ways in which a directory of documents changes, and the ways in which it goes wrong. The last good set stays.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::{Mesh, Origin, Plan, wait, wire};

/// From a change to its effect.
const SOON: Duration = Duration::from_secs(1);
/// Without a word from the operating system the directory is read every two seconds.
const AT_LAST: Duration = Duration::from_secs(5);

const OPEN: &str = r#"
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

fn closed() -> String {
    OPEN.replace("[web]", "[nobody]")
}

struct Pair {
    mesh: Mesh,
    _origin: Origin,
}

impl Pair {
    fn start() -> Self {
        Self::start_after(|_| {})
    }

    fn start_after(prepare: impl FnOnce(&Mesh)) -> Self {
        let mut plan = Plan::new();
        plan.sidecar("web");
        plan.sidecar("orders").serves(80, 8080, "http");
        plan.document("policy.yaml", OPEN);
        let origin = Origin::http((plan.address("orders"), 8080));
        let mesh = plan.prepare();
        prepare(&mesh);
        mesh.control.start();
        for sidecar in &mesh.sidecars {
            sidecar.create_token();
            sidecar.start();
        }
        for sidecar in &mesh.sidecars {
            sidecar.wait_ready();
        }
        let pair = Self { mesh, _origin: origin };
        pair.becomes(200, AT_LAST);
        pair
    }

    fn status(&self) -> u16 {
        let request = b"GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";
        wire::status(&wire::exchange(self.mesh.sidecar("web").outbound(), request))
    }

    fn becomes(&self, status: u16, within: Duration) {
        wait::until(&format!("the answer becomes {status}"), within, || self.status() == status);
    }

    fn directory(&self) -> &Path {
        self.mesh.documents.directory()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// The set that is there now is refused, says so everywhere, and the last good one stays in force.
    fn is_refused(&self, within: Duration, says: &str) {
        let orders = self.mesh.sidecar("orders");
        let generation = orders.generation();
        wait::until("the refusal shows", within, || {
            orders.admin("/v1/policy")["lastError"]["text"].as_str().is_some_and(|text| text.contains(says))
        });
        assert!(orders.is_ready(), "it serves by the last good set");
        assert!(orders.notes("documents_refused"), "{:?}", orders.page("/ready"));
        assert_eq!(orders.metrics().value("postern_policy_stale"), 1.0);
        assert!(orders.metrics().value("postern_policy_loads_total{result=\"refused\"}") >= 1.0);
        assert_eq!(orders.generation(), generation);
        assert_eq!(self.status(), 200, "the last good set stays in force");
    }

    fn is_well(&self) {
        let orders = self.mesh.sidecar("orders");
        wait::until("the refusal is over", AT_LAST, || orders.metrics().value("postern_policy_stale") == 0.0);
        assert!(!orders.notes("documents_refused"));
        assert!(orders.admin("/v1/policy")["lastError"].is_null());
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[test]
fn editors() {
    let pair = Pair::start();
    let policy = pair.file("policy.yaml");
    // In place: truncated, then written.
    write(&policy, &closed());
    pair.becomes(403, SOON);
    // Beside, then renamed over it (vim with backup, and every careful tool).
    write(&pair.file("policy.yaml.tmp"), OPEN);
    fs::rename(pair.file("policy.yaml.tmp"), &policy).expect("both are ours");
    pair.becomes(200, SOON);
    // The old one moved away, a new one written under its name (vim without, emacs).
    fs::rename(&policy, pair.file("policy.yaml~")).expect("both are ours");
    write(&policy, &closed());
    pair.becomes(403, SOON);
    // What editors leave about is none of our documents.
    for litter in [".policy.yaml.swp", "policy.yaml~", "#policy.yaml#", "4913", "policy.yaml.orig"] {
        write(&pair.file(litter), OPEN);
    }
    wait::stays("litter opens nothing", Duration::from_millis(500), || pair.status() == 403);
    // In place, slowly, a part at a time: half a document is none.
    let (head, tail) = OPEN.split_at(OPEN.len() / 2);
    write(&policy, head);
    wait::stays("half a file opens nothing", Duration::from_millis(300), || pair.status() == 403);
    let mut file = fs::OpenOptions::new().append(true).open(&policy).expect("it is ours");
    std::io::Write::write_all(&mut file, tail.as_bytes()).expect("it is ours");
    pair.becomes(200, SOON);
    pair.is_well();
}

#[test]
fn a_symbolic_link_is_swapped_as_kubernetes_does() {
    let pair = Pair::start();
    let version = |number: usize, policy: &str| {
        let name = format!("..2026_11_22_{number}");
        fs::create_dir(pair.file(&name)).expect("it is new");
        write(&pair.file(&format!("{name}/policy.yaml")), policy);
        name
    };
    let swap = |to: &str| {
        symlink(to, pair.file("..data_tmp")).expect("it is new");
        fs::rename(pair.file("..data_tmp"), pair.file("..data")).expect("both are ours");
    };
    swap(&version(1, OPEN));
    symlink("..data/policy.yaml", pair.file("policy.tmp")).expect("it is new");
    fs::rename(pair.file("policy.tmp"), pair.file("policy.yaml")).expect("both are ours");
    wait::stays("the same text under another roof", Duration::from_millis(500), || pair.status() == 200);
    for (number, (policy, status)) in
        [(closed(), 403), (OPEN.to_owned(), 200), (closed(), 403)].iter().enumerate()
    {
        let old = fs::read_link(pair.file("..data")).expect("it is a link");
        swap(&version(2 + number, policy));
        fs::remove_dir_all(pair.file(&old.display().to_string())).expect("it is ours");
        pair.becomes(*status, SOON);
    }
    pair.is_well();
}

#[test]
fn the_directory_itself_is_replaced() {
    let pair = Pair::start();
    let (old, new) = (pair.mesh.directory().join("old"), pair.mesh.directory().join("new"));
    for (round, (policy, status)) in [(closed(), 403), (OPEN.to_owned(), 200)].iter().enumerate() {
        fs::create_dir(&new).expect("it is new");
        fs::copy(pair.file("services.yaml"), new.join("services.yaml")).expect("both are ours");
        write(&new.join("policy.yaml"), policy);
        fs::rename(pair.directory(), &old).expect("both are ours");
        fs::rename(&new, pair.directory()).expect("both are ours");
        pair.becomes(*status, AT_LAST);
        fs::rename(&old, pair.mesh.directory().join(format!("gone-{round}"))).expect("both are ours");
    }
    // And the new one is followed as closely as the old one was.
    write(&pair.file("policy.yaml"), &closed());
    pair.becomes(403, SOON);
}

#[test]
fn the_directory_is_a_link_that_is_swapped() {
    let pair = Pair::start_after(|mesh| {
        let directory = mesh.documents.directory();
        fs::rename(directory, mesh.directory().join("version-1")).expect("both are ours");
        symlink("version-1", directory).expect("it is new");
    });
    let second = pair.mesh.directory().join("version-2");
    fs::create_dir(&second).expect("it is new");
    fs::copy(pair.file("services.yaml"), second.join("services.yaml")).expect("both are ours");
    write(&second.join("policy.yaml"), &closed());
    let fresh = pair.mesh.directory().join("fresh");
    symlink("version-2", &fresh).expect("it is new");
    fs::rename(&fresh, pair.directory()).expect("both are ours");
    pair.becomes(403, AT_LAST);
    write(&second.join("policy.yaml"), OPEN);
    pair.becomes(200, SOON);
}

#[test]
fn files_come_and_go() {
    let pair = Pair::start();
    fs::remove_file(pair.file("policy.yaml")).expect("it is ours");
    pair.becomes(403, SOON);
    write(&pair.file("another.yml"), OPEN);
    pair.becomes(200, SOON);
    // A set without rules allows nothing.
    fs::remove_file(pair.file("another.yml")).expect("it is ours");
    pair.becomes(403, SOON);
    pair.is_well();
    // None at all is what a wrong mount looks like: it takes nothing away.
    write(&pair.file("policy.yaml"), OPEN);
    pair.becomes(200, SOON);
    let services = fs::read_to_string(pair.file("services.yaml")).expect("it is ours");
    write(&pair.file("services.yaml"), "# later\n");
    fs::remove_file(pair.file("policy.yaml")).expect("it is ours");
    pair.is_refused(AT_LAST, "holds no documents");
    fs::remove_file(pair.file("services.yaml")).expect("it is ours");
    wait::stays("no file at all changes nothing", Duration::from_secs(3), || pair.status() == 200);
    pair.is_refused(AT_LAST, "holds no documents");
    write(&pair.file("services.yaml"), &services);
    pair.becomes(403, SOON);
    pair.is_well();
}

#[test]
fn broken_sets_are_refused_whole() {
    let pair = Pair::start();
    let policy = pair.file("policy.yaml");
    // Each with what would close the door, if the rest of the set were taken.
    for (text, says) in [
        (closed().replace("action: Allow", "action: Alow"), "policy.yaml:7:11"),
        (closed().replace("metadata: {", "metadata: {{"), "policy.yaml:4"),
        (closed() + "---\nkind: Nothing\n", "policy.yaml"),
        (closed() + "---" + &closed(), "twice"),
        ("\0".repeat(100), "policy.yaml"),
        (closed().replace("name: web", "name: *web"), "policy.yaml"),
    ] {
        write(&policy, &text);
        pair.is_refused(AT_LAST, says);
    }
    // One bad file beside a good one refuses both: a rule that is skipped is a rule that does not deny.
    write(&policy, &closed());
    pair.becomes(403, SOON);
    write(&policy, OPEN);
    pair.becomes(200, SOON);
    write(&pair.file("other.yaml"), "kind: Nothing\n");
    write(&policy, &closed());
    pair.is_refused(AT_LAST, "other.yaml");
    fs::remove_file(pair.file("other.yaml")).expect("it is ours");
    pair.becomes(403, SOON);
    pair.is_well();
    let policy_page = pair.mesh.sidecar("orders").admin("/v1/policy");
    assert!(policy_page["history"].as_array().is_some_and(|all| all.len() >= 4), "{policy_page}");
}

#[test]
fn what_cannot_be_read_is_no_empty_set() {
    let pair = Pair::start();
    let odd = pair.file("odd.yaml");
    symlink("nowhere", &odd).expect("it is new");
    pair.is_refused(AT_LAST, "odd.yaml");
    fs::remove_file(&odd).expect("it is ours");
    pair.is_well();
    fs::create_dir(&odd).expect("it is new");
    pair.is_refused(AT_LAST, "odd.yaml");
    fs::remove_dir(&odd).expect("it is ours");
    pair.is_well();
    // Opening a pipe waits for a writer: whoever does that has read his last document.
    let made = Command::new("mkfifo").arg(&odd).status().expect("mkfifo is everywhere");
    assert!(made.success());
    pair.is_refused(AT_LAST, "odd.yaml");
    fs::remove_file(&odd).expect("it is ours");
    pair.is_well();
    // The directory gone for a while.
    let away = pair.mesh.directory().join("away");
    fs::rename(pair.directory(), &away).expect("both are ours");
    pair.is_refused(AT_LAST, "cannot be read");
    fs::rename(&away, pair.directory()).expect("both are ours");
    pair.is_well();
    write(&pair.file("policy.yaml"), &closed());
    pair.becomes(403, AT_LAST);
}

#[test]
fn an_edit_is_in_force_within_a_second() {
    let pair = Pair::start();
    let mut slowest = Duration::ZERO;
    for round in 0..6 {
        let (policy, status) = if round % 2 == 0 { (closed(), 403) } else { (OPEN.to_owned(), 200) };
        let start = Instant::now();
        pair.mesh.documents.write("policy.yaml", &policy);
        pair.becomes(status, SOON);
        slowest = slowest.max(start.elapsed());
    }
    println!("the slowest of six edits was in force after {slowest:?}");
}
