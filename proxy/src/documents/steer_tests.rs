use std::fs;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex as Lock;
use postern_policy::Operation;
use postern_svid::TestClock;
use tokio::sync::oneshot;

use super::super::commands::Steering;
use super::super::keeper::{Disk, Set as ToKeep};
use super::super::store::Stored;
use super::*;
use crate::connections::{Direction, Facts, Operation as Live, Registered, Stream};
use crate::testing;

/// A disk that keeps the last set in memory.
#[derive(Default)]
struct Memory(Lock<Option<(ToKeep, SystemTime)>>);

impl Disk for Memory {
    fn write(&self, set: &ToKeep, now: SystemTime) -> std::io::Result<()> {
        *self.0.lock() = Some((set.clone(), now));
        Ok(())
    }

    fn read(&self) -> Result<Option<Stored>, String> {
        Ok(self.0.lock().as_ref().map(|(set, at)| Stored {
            files: set.files.iter().map(|file| SourceFile::clone(file)).collect(),
            digest: set.digest.clone(),
            at: *at,
            is_pinned: set.is_pinned,
        }))
    }

    fn place(&self) -> String {
        "/memory".to_owned()
    }
}

struct Mesh {
    directory: tempfile::TempDir,
    clock: TestClock,
    disk: Arc<Memory>,
    sidecar: Arc<Sidecar>,
    loader: Loader,
}

impl Mesh {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        let clock = TestClock::at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_773_600));
        Self::on(directory, clock, Arc::default())
    }

    fn on(directory: tempfile::TempDir, clock: TestClock, disk: Arc<Memory>) -> Self {
        let mut sidecar = testing::sidecar("");
        let own = Arc::get_mut(&mut sidecar).expect("it is new");
        own.config.documents = directory.path().to_owned();
        own.clock = Arc::new(clock.clone());
        let loader = Loader::new(Arc::clone(&sidecar), Arc::clone(&disk) as Arc<dyn Disk>);
        Self { directory, clock, disk, sidecar, loader }
    }

    /// Another life of the sidecar, on the same disk and directory.
    async fn anew(self) -> Self {
        let Self { directory, clock, disk, sidecar: _, loader } = self;
        drop(loader);
        let mut next = Self::on(directory, clock, disk);
        next.loader.recall().await;
        next.loader.look().await;
        next
    }

    async fn put(&mut self, text: &str) {
        fs::write(self.directory.path().join("policy.yaml"), text).expect("the directory is ours");
        self.loader.look().await;
    }

    /// `shop/WHO` may call.
    async fn allow(&mut self, who: &str) {
        let text = ALLOW.replace("WHO", who);
        self.put(&text).await;
    }

    async fn ask(&mut self, command: Command) -> Result<Done, Refusal> {
        let (answer, mut answered) = oneshot::channel();
        self.loader.obey((command, answer)).await;
        if self.loader.commands.again {
            self.loader.look().await;
        }
        answered.try_recv().expect("it is answered")
    }

    fn in_force(&self) -> Option<u64> {
        self.sidecar.snapshots.load().policy.as_ref().map(|generation| generation.number())
    }

    /// Whether `shop/web` may open a tunnel, and by which rule.
    fn web(&self) -> Option<String> {
        let snapshot = self.sidecar.snapshots.load();
        let generation = snapshot.policy.as_ref()?;
        let id = postern_svid::SpiffeId::parse("spiffe://demo.postern/ns/shop/sa/web").expect("a literal");
        let source = postern_policy::Source { identity: Some(&id), address: [127, 0, 0, 1].into() };
        let verdict = generation.decide(&generation.connection(source), 9_000, Operation::Tcp);
        let rule = verdict.rule.filter(|_| verdict.is_allowed())?;
        Some(generation.rule(rule).document.to_string())
    }

    fn stream(&self) -> (Registered, Box<Stream>) {
        let connection = testing::connection(&self.sidecar, Direction::Inbound);
        let facts = Facts { port: 9_000, operation: Live::Tcp, destination: None, asked: None };
        let stream = Box::new(Stream::open(&self.sidecar, connection.connection(), facts));
        (connection, stream)
    }

    fn notes(&self, code: &str) -> bool {
        crate::observe::health::notes(&self.sidecar).contains(&code)
    }
}

const ALLOW: &str = "apiVersion: postern.dev/v1alpha1
kind: MeshDefaults
metadata: {name: default, namespace: postern-system}
spec: {staleAfter: 60s}
---
apiVersion: postern.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec: {action: Allow, rules: [{name: r, from: [{serviceAccounts: [WHO]}]}]}
";

async fn kept(mesh: &Mesh, what: &str, holds: impl Fn(&ToKeep) -> bool) {
    for _ in 0..500 {
        if mesh.disk.0.lock().as_ref().is_some_and(|(set, _)| holds(set)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

#[tokio::test]
async fn an_earlier_set_is_put_back_and_stays_until_the_operator_lets_go() {
    let mut mesh = Mesh::new();
    mesh.allow("web").await;
    mesh.allow("other").await;
    assert_eq!((mesh.in_force(), mesh.web()), (Some(2), None));
    let done = mesh.ask(Command::Rollback(None)).await;
    assert!(matches!(done, Ok(Done::RolledBack { generation: 3, to: 1 })), "{done:?}");
    assert!(mesh.web().is_some() && mesh.notes("policy_pinned"));
    assert!(mesh.sidecar.metrics.render().contains("postern_policy_pinned 1"));
    assert_eq!(
        mesh.sidecar.history.lock().remembered().next().map(|mark| mark.origin),
        Some(Origin::Rollback)
    );

    // Whatever comes into the directory waits; what is bad there is told.
    mesh.allow("third").await;
    assert!(mesh.web().is_some());
    let waiting = || mesh.sidecar.history.lock().pinned.clone().expect("it is pinned").waiting;
    assert!(waiting().is_some());
    mesh.put("kind: Nothing\n").await;
    assert!(mesh.web().is_some() && mesh.notes("documents_refused") && mesh.notes("policy_pinned"));
    mesh.allow("third").await;
    assert!(!mesh.notes("documents_refused"));

    let done = mesh.ask(Command::Resume).await;
    assert!(matches!(done, Ok(Done::Resumed { generation: 4, is_followed: true })), "{done:?}");
    assert!(mesh.web().is_none() && !mesh.notes("policy_pinned"));
    assert!(mesh.sidecar.metrics.render().contains("postern_policy_pinned 0"));
    assert!(matches!(mesh.ask(Command::Resume).await, Err(Refusal::Conflict(_))));
    assert!(
        matches!(mesh.ask(Command::Rollback(Some(99))).await, Err(Refusal::Unknown(text)) if text.contains("4, 3, 2, 1"))
    );
}

#[tokio::test]
async fn one_after_the_other_goes_further_back() {
    let mut mesh = Mesh::new();
    for who in ["web", "second", "third"] {
        mesh.allow(who).await;
    }
    assert!(matches!(mesh.ask(Command::Rollback(None)).await, Ok(Done::RolledBack { to: 2, .. })));
    assert!(matches!(mesh.ask(Command::Rollback(None)).await, Ok(Done::RolledBack { to: 1, .. })));
    assert!(mesh.web().is_some());
    assert!(matches!(mesh.ask(Command::Rollback(None)).await, Err(Refusal::Conflict(_))));
    assert!(matches!(
        mesh.ask(Command::Rollback(Some(3))).await,
        Ok(Done::RolledBack { to: 3, generation: 6 })
    ));
    assert!(mesh.web().is_none());
}

#[tokio::test]
async fn what_was_put_back_outlives_a_restart_and_what_was_resumed_does_not() {
    let mut mesh = Mesh::new();
    mesh.allow("web").await;
    mesh.allow("other").await;
    assert!(mesh.ask(Command::Rollback(None)).await.is_ok());
    kept(&mesh, "it is stored", |set| set.is_pinned).await;
    let mut mesh = mesh.anew().await;
    assert!(mesh.web().is_some() && mesh.notes("policy_pinned"), "the directory's set waits");
    assert!(mesh.sidecar.history.lock().pinned.as_ref().is_some_and(|pin| pin.waiting.is_some()));
    assert!(mesh.ask(Command::Resume).await.is_ok());
    assert!(mesh.web().is_none());
    kept(&mesh, "it is stored", |set| !set.is_pinned).await;
    let mesh = mesh.anew().await;
    assert!(mesh.web().is_none() && !mesh.notes("policy_pinned"));
}

#[tokio::test]
async fn streams_that_the_earlier_set_does_not_allow_are_reset() {
    let mut mesh = Mesh::new();
    mesh.allow("other").await;
    mesh.allow("web").await;
    let (_connection, stream) = mesh.stream();
    assert!(mesh.ask(Command::Rollback(None)).await.is_ok());
    assert!(stream.entry().is_revoked());
}

#[tokio::test]
async fn a_remark_resets_nothing() {
    let mut mesh = Mesh::new();
    mesh.allow("web").await;
    let (_connection, stream) = mesh.stream();
    mesh.put(&(ALLOW.replace("WHO", "web") + "# a remark\n")).await;
    assert_eq!(mesh.in_force(), Some(2), "it is another set");
    assert!(!stream.entry().is_revoked());
    mesh.allow("other").await;
    assert!(stream.entry().is_revoked());
}

#[tokio::test]
async fn a_set_that_nobody_confirms_decides_no_more_until_a_good_one_is_read() {
    let mut mesh = Mesh::new();
    mesh.allow("web").await;
    let (_connection, stream) = mesh.stream();
    mesh.clock.advance(Duration::from_secs(59));
    mesh.loader.look().await;
    mesh.clock.advance(Duration::from_secs(59));
    stale::check(&mesh.sidecar);
    assert!(mesh.web().is_some(), "each look that finds it confirms it");

    mesh.put("kind: Nothing\n").await;
    mesh.clock.advance(Duration::from_secs(2));
    stale::check(&mesh.sidecar);
    assert!(mesh.in_force().is_none(), "a refused set confirms nothing");
    assert_eq!(crate::observe::health::unready(&mesh.sidecar)[1..], ["policy_stale"]);
    assert!(mesh.sidecar.metrics.render().contains("postern_policy_failed_closed 1"));
    assert!(stream.entry().is_revoked(), "what lives loses permission");
    let (_connection, late) = mesh.stream();
    let judged = crate::authorize::stream(&mesh.sidecar, &late, &mesh.sidecar.snapshots.load());
    assert_eq!(judged.refused.map(crate::error::Reason::label), Some("policy_stale"));

    mesh.allow("web").await;
    assert_eq!((mesh.in_force(), mesh.web().is_some()), (Some(2), true));
    assert!(mesh.sidecar.metrics.render().contains("postern_policy_failed_closed 0"));

    // A directory that hangs: nobody looks, and then finds what was there all along.
    mesh.clock.jump_wall(61_000);
    stale::check(&mesh.sidecar);
    assert!(mesh.in_force().is_none());
    mesh.loader.look().await;
    assert_eq!(mesh.in_force(), Some(2));
}

#[tokio::test]
async fn a_start_without_good_documents_counts_from_the_last_run() {
    let mut mesh = Mesh::new();
    mesh.allow("web").await;
    kept(&mesh, "it is stored", |_| true).await;
    fs::write(mesh.directory.path().join("policy.yaml"), "kind: Nothing\n").expect("it is ours");
    mesh.clock.advance(Duration::from_secs(50));
    let mesh = mesh.anew().await;
    assert!(mesh.web().is_some());
    mesh.clock.advance(Duration::from_secs(11));
    let mesh = mesh.anew().await;
    assert!(mesh.in_force().is_none() && mesh.sidecar.snapshots.load().is_stale);
}

fn opening(namespace: &str) -> Command {
    let opened = Opening::new(namespace, &[], "orders are down", Some("ada"), Duration::from_secs(900));
    Command::Open(opened.expect("it is right"))
}

#[tokio::test]
async fn glass_is_broken_over_the_last_good_set_and_mends_itself() {
    let mut mesh = Mesh::new();
    assert!(matches!(mesh.ask(opening("shop")).await, Err(Refusal::Conflict(_))), "over nothing");
    mesh.allow("other").await;
    mesh.put("kind: Nothing\n").await;
    assert!(matches!(mesh.ask(opening("pay")).await, Err(Refusal::Bad(_))), "another namespace");
    let Ok(Done::Opened { name, generation: 2, .. }) = mesh.ask(opening("shop")).await else {
        panic!("it opens")
    };
    assert_eq!(mesh.web(), Some(name));
    assert!(mesh.notes("policy_open") && mesh.notes("documents_refused"));
    assert!(mesh.sidecar.metrics.render().contains("postern_policy_open 1"));
    let (_connection, stream) = mesh.stream();

    // It stays over whatever comes into the directory, and the set is stored without it.
    mesh.allow("third").await;
    assert!(mesh.web().is_some());
    kept(&mesh, "the set is stored", |set| set.files.len() == 1).await;

    // While it holds the set is not stale.
    mesh.put("kind: Nothing\n").await;
    mesh.clock.advance(Duration::from_secs(899));
    stale::check(&mesh.sidecar);
    assert!(mesh.web().is_some() && !stream.entry().is_revoked());
    mesh.clock.advance(Duration::from_secs(1));
    mesh.loader.end_overlays().await;
    assert!(mesh.in_force().is_none(), "then it is, at once");
    assert!(!mesh.notes("policy_open") && stream.entry().is_revoked());
    mesh.allow("third").await;
    assert!(mesh.web().is_none() && mesh.in_force().is_some());
}

#[tokio::test]
async fn an_operator_mends_it_earlier() {
    let mut mesh = Mesh::new();
    mesh.allow("other").await;
    assert!(matches!(mesh.ask(Command::Close(None)).await, Err(Refusal::Unknown(_))));
    let Ok(Done::Opened { name, .. }) = mesh.ask(opening("shop")).await else { panic!("it opens") };
    let (_connection, stream) = mesh.stream();
    assert!(matches!(mesh.ask(Command::Close(Some("open-x".into()))).await, Err(Refusal::Unknown(_))));
    assert!(mesh.ask(Command::Close(Some(name))).await.is_ok());
    assert!(mesh.web().is_none() && stream.entry().is_revoked() && !mesh.notes("policy_open"));
    for _ in 0..MAX_OVERLAYS {
        assert!(mesh.ask(opening("shop")).await.is_ok());
    }
    assert!(matches!(mesh.ask(opening("shop")).await, Err(Refusal::Conflict(_))));
    assert!(mesh.ask(Command::Close(None)).await.is_ok());
    assert!(mesh.web().is_none());
}

/// The rules' own windows open and close too, where the document lies in the directory.
#[tokio::test]
async fn a_document_of_the_directory_that_breaks_the_glass_is_told() {
    let mut mesh = Mesh::new();
    let Command::Open(opening) = opening("shop") else { unreachable!() };
    let now = mesh.sidecar.clock.wall();
    let text = opening.document("open-1", "postern-system", now);
    mesh.put(&(ALLOW.replace("WHO", "other") + "---\n" + &text)).await;
    assert_eq!(mesh.web().as_deref(), Some("open-1"));
    assert!(mesh.notes("policy_open"));
    mesh.clock.advance(Duration::from_secs(900));
    mesh.loader.look().await;
    let generation = mesh.sidecar.snapshots.load().policy.clone().expect("it is confirmed");
    assert!(generation.tell_time(mesh.sidecar.clock.wall()));
    super::super::glass::tell(&mesh.sidecar);
    assert!(mesh.web().is_none() && !mesh.notes("policy_open"));
}

#[tokio::test]
async fn whoever_asks_a_sidecar_that_is_gone_is_told_so() {
    let steering = Steering::default();
    drop(steering.commands());
    assert!(matches!(steering.ask(Command::Resume).await, Err(Refusal::Conflict(_))));
}
