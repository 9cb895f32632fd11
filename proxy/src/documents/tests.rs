use std::fs;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;

use super::*;
use crate::testing;

const GOOD: &str = "apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  target: {selector: {app: orders}}
  action: Allow
  rules: [{name: NAME, from: [{serviceAccounts: [web]}]}]
";

/// A disk that does nothing until it is told how that ends.
struct Stuck {
    ends: Mutex<Receiver<io::Result<()>>>,
    wrote: Mutex<Vec<String>>,
}

impl Stuck {
    fn new() -> (Arc<Self>, Sender<io::Result<()>>) {
        let (end, ends) = channel();
        (Arc::new(Self { ends: Mutex::new(ends), wrote: Mutex::default() }), end)
    }
}

impl Disk for Stuck {
    fn write(&self, set: &ToKeep, _: SystemTime) -> io::Result<()> {
        let text = String::from_utf8_lossy(&set.files[0].text).into_owned();
        self.wrote.lock().push(
            text.split([' ', ','])
                .skip_while(|word| *word != "[{name:")
                .nth(1)
                .unwrap_or_default()
                .to_owned(),
        );
        self.ends.lock().recv().unwrap_or(Ok(()))
    }

    fn read(&self) -> Result<Option<Stored>, String> {
        let _ = self.ends.lock().recv();
        Ok(None)
    }

    fn place(&self) -> String {
        "/stuck".to_owned()
    }
}

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> (Self, Arc<Sidecar>) {
        let directory = Self(tempfile::tempdir().expect("there is room"));
        let mut sidecar = testing::sidecar("");
        Arc::get_mut(&mut sidecar).expect("it is new").config.documents = directory.0.path().to_owned();
        (directory, sidecar)
    }

    fn put(&self, text: &str) {
        fs::write(self.0.path().join("policy.yaml"), text).expect("the directory is ours");
    }

    fn rule(&self, name: &str) {
        self.put(&GOOD.replace("NAME", name));
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        // Not paused: the disk's threads run in real time.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

fn in_force(sidecar: &Sidecar) -> Option<u64> {
    sidecar.snapshots.load().policy.as_ref().map(|generation| generation.number())
}

/// Reads, and waits until that is done.
async fn glance(loader: &mut Loader) {
    loader.glance();
    until("it is read", || loader.readings.lock().has_first()).await;
}

/// What was read first is compiled before it is read again, and counts only if it is found so again.
#[tokio::test]
async fn what_was_read_first_is_not_in_force_once_it_changed() {
    let (directory, sidecar) = Directory::new();
    directory.rule("first");
    let (disk, _end) = Stuck::new();
    let mut loader = Loader::new(Arc::clone(&sidecar), disk);
    loader.load().await;
    let text = |loader: &Loader| {
        let set = loader.base.clone().expect("a set is in force");
        String::from_utf8(set.files[0].text.clone()).expect("it is text")
    };
    for (number, read_first, then) in
        [(2, "second", "third"), (3, "fourth", "fourth"), (4, "fifth", "sixth"), (4, "seventh", "sixth")]
    {
        directory.rule(read_first);
        glance(&mut loader).await;
        directory.rule(then);
        loader.load().await;
        assert_eq!(text(&loader), GOOD.replace("NAME", then));
        assert_eq!(in_force(&sidecar), Some(number), "{read_first}, then {then}");
    }
    directory.put("this is no document");
    glance(&mut loader).await;
    directory.rule("eighth");
    loader.load().await;
    assert!(loader.is_good);
    assert_eq!(text(&loader), GOOD.replace("NAME", "eighth"));
}

#[tokio::test]
async fn a_disk_that_hangs_delays_no_reload() {
    let (directory, sidecar) = Directory::new();
    directory.rule("first");
    let (disk, end) = Stuck::new();
    let mut loader = Loader::new(Arc::clone(&sidecar), Arc::clone(&disk) as Arc<dyn Disk>);
    for (number, name) in [(1, "first"), (2, "second"), (3, "third")] {
        directory.rule(name);
        timeout(Duration::from_secs(3), loader.load()).await.expect("nobody waits for the disk");
        assert_eq!(in_force(&sidecar), Some(number));
        until("the first write begins", || !disk.wrote.lock().is_empty()).await;
    }
    until("the write is overdue", || sidecar.history.lock().unstored.is_some()).await;
    assert!(crate::observe::health::notes(&sidecar).contains(&"documents_unstored"));
    assert!(sidecar.metrics.render().contains("postern_policy_unstored 1"));
    assert_eq!(*disk.wrote.lock(), ["first"]);

    // The first one ends, and it is not the one in force.
    end.send(Ok(())).unwrap();
    until("the latest is written, and only that", || *disk.wrote.lock() == ["first", "third"]).await;
    assert!(sidecar.history.lock().unstored.is_some(), "what is in force is not stored yet");
    end.send(Ok(())).unwrap();
    until("it is stored", || sidecar.history.lock().unstored.is_none()).await;
    let history = sidecar.history.lock();
    assert_eq!(history.stored.as_ref(), history.remembered().next().map(|newest| &newest.digest));
    assert!(sidecar.metrics.render().contains("postern_policy_unstored 0"));
}

#[tokio::test]
async fn a_write_that_fails_is_tried_again_even_if_the_documents_are_bad_by_then() {
    let (directory, sidecar) = Directory::new();
    directory.rule("first");
    let (disk, end) = Stuck::new();
    let mut loader = Loader::new(Arc::clone(&sidecar), Arc::clone(&disk) as Arc<dyn Disk>);
    loader.load().await;
    end.send(Err(io::Error::other("no space"))).unwrap();
    until("it is told", || sidecar.history.lock().unstored.is_some()).await;
    assert!(sidecar.history.lock().unstored.as_ref().is_some_and(|why| why.contains("no space")));
    assert!(sidecar.history.lock().stored.is_none());
    directory.put("kind: Nothing\n");
    loader.load().await;
    end.send(Ok(())).unwrap();
    until("it is stored", || sidecar.history.lock().stored.is_some()).await;
    assert!(sidecar.history.lock().unstored.is_none());
    assert_eq!(*disk.wrote.lock(), ["first", "first"]);
}

#[tokio::test]
async fn good_documents_are_not_kept_waiting_by_a_store_that_cannot_be_read() {
    let (directory, sidecar) = Directory::new();
    directory.put("kind: Nothing\n");
    let (disk, end) = Stuck::new();
    let mut loader = Loader::new(Arc::clone(&sidecar), disk);
    let patience = OVERDUE + Duration::from_secs(3);
    timeout(patience, loader.load()).await.expect("it is waited for, but not for ever");
    assert_eq!(in_force(&sidecar), None);
    directory.rule("first");
    loader.load().await;
    assert_eq!(in_force(&sidecar), Some(1));
    end.send(Ok(())).unwrap();
    end.send(Ok(())).unwrap();
    let late = timeout(patience, loader.stored()).await.expect("it answers now");
    loader.take_stored(late);
    assert_eq!(sidecar.history.lock().origin, Some(Origin::Directory), "an answer that late changes nothing");
}

/// What is logged while `task` runs on this thread.
async fn logged(task: impl Future<Output = ()>) -> String {
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Kept {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(text);
            Ok(text.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let kept = Kept::default();
    let writer = kept.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    task.await;
    drop(guard);
    let text = kept.0.lock().clone();
    String::from_utf8(text).expect("the log is text")
}

#[tokio::test]
async fn a_refusal_says_what_is_in_force_and_ends_with_the_findings() {
    let (directory, sidecar) = Directory::new();
    let (disk, end) = Stuck::new();
    end.send(Ok(())).unwrap();
    let mut loader = Loader::new(Arc::clone(&sidecar), disk);
    directory.put("kind: Nothing\n");
    let text = logged(loader.load()).await;
    assert!(text.contains("none are in force: everything is denied:\n"), "{text}");
    assert!(!text.contains("stays in force") && !text.contains("in_force="), "{text}");
    directory.rule("first");
    loader.load().await;
    directory.put("kind: Nothing at all\n");
    let text = logged(loader.load()).await;
    assert!(text.contains("generation 1 stays in force:\n") && !text.contains("in_force="), "{text}");
}

#[tokio::test]
async fn what_a_loaded_set_warns_about_is_one_line() {
    let (directory, sidecar) = Directory::new();
    let (disk, _end) = Stuck::new();
    let mut loader = Loader::new(Arc::clone(&sidecar), disk);
    directory.rule("first");
    let text = logged(async {
        loader.load().await;
        loader.warning.take().expect("a set was put in force").await.expect("it looked");
    })
    .await;
    assert!(!text.contains("WARN"), "{text}");
    let rules: String =
        (0..5).map(|n| format!("  - {{name: r{n}, from: [{{cidrs: [10.0.0.0/8]}}]}}\n")).collect();
    directory.put(&GOOD.replace(
        "  rules: [{name: NAME, from: [{serviceAccounts: [web]}]}]\n",
        &format!("  rules:\n{rules}"),
    ));
    let text = logged(async {
        loader.load().await;
        loader.warning.take().expect("a set was put in force").await.expect("it looked");
    })
    .await;
    assert_eq!(text.matches(" WARN ").count(), 1, "{text}");
    assert!(text.contains("have 5 warnings"), "{text}");
    assert_eq!(text.matches("admits authenticated peers only").count(), 3, "{text}");
}

/// A set as large as a mesh's, and one file of it changed: from the write to the verdict that follows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_file_of_two_thousand_is_soon_enforced() {
    const FILES: usize = 2_000;
    let long = std::env::var_os("POSTERN_TEST_LONG").is_some();
    let rules = if long { 5 } else { 1 };
    let (directory, sidecar) = Directory::new();
    let write = |n: usize, path: &str| {
        let rule = |r: usize| {
            format!(
                "  - {{name: r{r}, from: [{{serviceAccounts: [web, a{n}]}}], to: [{{methods: [GET, HEAD], paths: ['{path}/{n}/{r}', '{path}/{n}/{r}/{{*}}'], ports: [8080]}}]}}\n"
            )
        };
        let rules: String = (0..rules).map(rule).collect();
        let text = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{n}, namespace: shop}}\nspec:\n  action: Allow\n  rules:\n{rules}"
        );
        fs::write(directory.0.path().join(format!("{n}.yaml")), text).expect("the directory is ours");
    };
    (0..FILES).for_each(|n| write(n, "/old"));
    let (loaded, mut is_loaded) = watch::channel(false);
    let (_stop, stopped) = watch::channel(false);
    let following = tokio::spawn(follow(Arc::clone(&sidecar), loaded, stopped));
    is_loaded.changed().await.expect("it follows");
    assert_eq!(in_force(&sidecar), Some(1));
    // Until polls have read everything twice: from then on an event costs what changed.
    tokio::time::sleep(3 * POLL).await;
    let peer = testing::connection(&sidecar, crate::connections::Direction::Inbound);
    let is_allowed = |path: &str| {
        let generation = sidecar.snapshots.load().policy.clone().expect("it is loaded");
        let get = postern_policy::norm::CanonMethod::get();
        let path = postern_policy::norm::CanonPath::parse(path, &generation.defaults().path).expect("a path");
        let connection = generation.connection(peer.connection().source());
        generation.decide(&connection, 8080, postern_policy::Operation::http(&get, &path)).is_allowed()
    };
    let mut times = Vec::new();
    for round in 0..5 {
        let n = round * 397;
        let (before, after) = (format!("/old/{n}/0"), format!("/new/{n}/0"));
        assert!(is_allowed(&before) && !is_allowed(&after));
        let start = std::time::Instant::now();
        write(n, "/new");
        while !is_allowed(&after) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(start.elapsed() < Duration::from_secs(20), "it never came");
        }
        times.push(start.elapsed());
        assert!(!is_allowed(&before) && is_allowed("/old/1/0"));
        // Warnings are looked for and the set is stored beside it; this is about one change, not about many.
        tokio::time::sleep(Duration::from_millis(if long { 500 } else { 0 })).await;
    }
    times.sort();
    println!("one file of {FILES} ({} rules) changed: enforced after {times:?}", FILES * rules);
    // Other tests run beside this one; 50 ms is what it takes in release on a machine of its own.
    assert!(times[2] < Duration::from_millis(1_500), "{times:?}");
    following.abort();
}
