use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postern_svid::Clock as _;

use super::*;
use crate::issue::IssueError;
use crate::keys::Source;
use crate::ledger::{Field, Kind, SEGMENT, Value};
use crate::store::{self, MARK, Order, OrderVerb, Store, UNFINISHED};
use crate::testing::{Home, id, key, start, td};

/// Small enough that a few certificates fill one.
const SHORT: u64 = 4_096;

struct Place {
    dir: tempfile::TempDir,
    seal: Seal,
}

impl Place {
    fn new() -> Self {
        let dir = crate::testing::dir();
        let secret = dir.path().join("secret");
        keys::write_private(&secret, &b"0123456789abcdef".repeat(4)).unwrap();
        let seal = Seal::read(&Source::KeyFile(secret)).unwrap();
        Self { dir, seal }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn take(&self, home: &Home, name: &str, is_running: bool) -> Manifest {
        take(&home.path(), &td(), &self.seal, &self.file(name), is_running, &[], home.clock.wall()).unwrap()
    }

    fn restore(&self, home: &Home, name: &str, epoch: Epoch) -> Result<Restored, BackupError> {
        restore(&home.path(), &td(), &self.seal, &self.file(name), epoch, None)
    }

    fn refused(&self, home: &Home, name: &str, epoch: Epoch) -> String {
        let text = self.restore(home, name, epoch).expect_err("refused").to_string();
        let left: Vec<_> = fs::read_dir(home.path())
            .map(|all| all.map(|entry| entry.unwrap().file_name()).filter(|name| name != MARK).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{text}: it left {left:?}");
        text
    }
}

fn verify_ledger(home: &Home, store: &Sqlite) {
    store.sign_head(home.clock.wall()).unwrap();
    let state = || Ok::<_, StoreError>(store.ledger()?.unwrap());
    ledger::verify(&home.path().join(ledger::DIRECTORY), state).unwrap();
}

#[test]
fn a_new_epoch_goes_on_above_everything_and_trusts_nothing_of_since() {
    let (place, home) = (Place::new(), Home::new());
    let ca = home.ca_on(home.store_with_ledger(SHORT).unwrap());
    let early = ca.joined(&id("orders"));
    let open = ca.token(&id("store"));
    for _ in 0..20 {
        ca.joined(&id("web"));
    }
    ca.store.sign_head(home.clock.wall()).unwrap();
    let waiting = Order { verb: OrderVerb::Prepare, force: None };
    ca.store.add_order(waiting, home.clock.wall()).unwrap();
    let manifest = place.take(&home, "backup", true);
    assert!(manifest.is_running && manifest.ledger_size > 20 && manifest.bundle_sequence == 1);
    let root = ca.authority.root();
    let since = ca.joined(&id("orders"));
    let old = ca.store.ledger().unwrap().unwrap();
    ca.join(&id("store"), &open, &key()).unwrap();
    assert!(!home.path().join(SNAPSHOT).exists());

    let fresh = Home { clock: home.clock, ..Home::new() };
    let text = place.refused(&fresh, "backup", Epoch::Same);
    assert!(text.contains("while a control plane was at work") && text.contains("--new-epoch"), "{text}");
    let restored = place.restore(&fresh, "backup", Epoch::New(start())).unwrap();
    let epoch = 179_530_560 << 24;
    assert_eq!((restored.bundle_sequence, restored.voided_tokens), (epoch, 1));
    assert_eq!(restored.manifest, manifest);

    let store = fresh.store_with_ledger(SHORT).unwrap();
    assert!(store.open_orders(fresh.clock.wall()).unwrap().is_empty(), "what an operator had asked for");
    let ca = fresh.ca_on(store.clone());
    assert_eq!(ca.authority.root(), root);
    assert_eq!(ca.authority.bundle().sequence(), epoch);
    ca.renew(&early, &key()).unwrap();
    assert!(matches!(ca.renew(&since, &key()), Err(IssueError::Unauthenticated(_))), "made since the backup");
    assert!(matches!(ca.join(&id("store"), &open, &key()), Err(IssueError::Unauthenticated(_))), "voided");
    ca.joined(&id("store"));
    // Another ledger, which names the old one as far as the backup knew it; and that one is kept.
    verify_ledger(&fresh, &store);
    let state = store.ledger().unwrap().unwrap();
    assert_ne!(state.identity.id, old.identity.id);
    let directory = fresh.path().join(ledger::DIRECTORY);
    let begin = Walk::from(&directory, 0).unwrap().read().unwrap().unwrap().record;
    assert_eq!(begin.kind, Kind::Begin);
    let previous = begin.field(Field::PreviousSize);
    assert!(matches!(previous, Some(Value::Number(size)) if size == manifest.ledger_size), "{begin:?}");
    let aside = restored.old_ledger.unwrap();
    let mut walk = Walk::from(&aside, 0).unwrap();
    while walk.read().unwrap().is_some() {}
    assert!(walk.position() <= manifest.ledger_size);
}

/// Its ledger waits in the database for its first control plane: what it tells of tokens is void with them.
#[test]
fn a_new_epoch_of_a_ca_that_never_ran_begins_a_ledger_that_fits() {
    let (place, home) = (Place::new(), Home::new());
    let ca = home.ca();
    ca.token(&id("store"));
    drop(ca);
    place.take(&home, "backup", false);
    let fresh = Home { clock: home.clock, ..Home::new() };
    let restored = place.restore(&fresh, "backup", Epoch::New(start())).unwrap();
    assert_eq!((restored.voided_tokens, restored.old_ledger), (1, None));
    let store = fresh.store_with_ledger(SHORT).unwrap();
    let ca = fresh.ca_on(store.clone());
    ca.joined(&id("web"));
    verify_ledger(&fresh, &store);
    let mut found = Vec::new();
    let audit = store::Audit::open(&fresh.path(), &td()).unwrap();
    audit.verify(fresh.clock.wall(), &mut |one| found.push(one.to_string())).unwrap();
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn a_backup_of_a_stopped_control_plane_goes_on_where_it_was() {
    let (place, home) = (Place::new(), Home::new());
    let ca = home.ca_on(home.store_with_ledger(SHORT).unwrap());
    let early = ca.joined(&id("orders"));
    let open = ca.token(&id("store"));
    for _ in 0..20 {
        ca.joined(&id("web"));
    }
    let state = ca.store.ledger().unwrap().unwrap();
    drop(ca);
    place.take(&home, "backup", false);

    let fresh = Home { clock: home.clock.clone(), ..Home::new() };
    // Its own mark, of the moment of the backup, is no objection.
    keys::private_dir(&fresh.path()).unwrap();
    fs::copy(home.path().join(MARK), fresh.path().join(MARK)).unwrap();
    let restored = place.restore(&fresh, "backup", Epoch::Same).unwrap();
    assert_eq!((restored.bundle_sequence, restored.voided_tokens, restored.old_ledger), (1, 0, None));
    let store = fresh.store_with_ledger(SHORT).unwrap();
    assert_eq!(store.ledger().unwrap().unwrap().identity, state.identity);
    let ca = fresh.ca_on(store.clone());
    ca.renew(&early, &key()).unwrap();
    ca.join(&id("store"), &open, &key()).unwrap();
    verify_ledger(&fresh, &store);
}

#[test]
fn whatever_is_being_written_meanwhile_a_backup_fits_together() {
    // On a disk, whose syncs keep the writers from filling it.
    let home = Home { dir: tempfile::tempdir().unwrap(), ..Home::new() };
    let place = Place::new();
    let ca = Arc::new(home.ca_on(home.store_with_ledger(SHORT).unwrap()));
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Also if something fails below: the scope waits for them.
        let _ended = Ended(&stop);
        for name in ["orders", "store", "web"] {
            let (ca, stop) = (ca.clone(), stop.clone());
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    ca.joined(&id(name));
                }
            });
        }
        for round in 0..8 {
            // As if it were stopped, so that what is put back must be what the database says, to the record.
            let name = format!("backup-{round}");
            let manifest = place.take(&home, &name, false);
            let fresh = Home { clock: home.clock.clone(), ..Home::new() };
            place.restore(&fresh, &name, Epoch::Same).unwrap();
            let store = fresh.store_with_ledger(SHORT).unwrap();
            assert_eq!(store.ledger().unwrap().unwrap().size, manifest.ledger_size);
            verify_ledger(&fresh, &store);
            fresh.ca_on(store).joined(&id("orders"));
        }
    });
}

/// Ends the writers when it is dropped.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_is_known_to_be_newer_keeps_an_old_backup_out() {
    let (place, home) = (Place::new(), Home::new());
    let ca = home.ca_on(home.store_with_ledger(SEGMENT).unwrap());
    ca.joined(&id("orders"));
    drop(ca);
    place.take(&home, "old", false);
    let ca = home.ca_on(home.store_with_ledger(SEGMENT).unwrap());
    ca.joined(&id("orders"));
    ca.store.sign_head(home.clock.wall()).unwrap();
    drop(ca);
    let head = home.path().join(ledger::DIRECTORY).join(ledger::LATEST);

    let fresh = Home::new();
    keys::private_dir(&fresh.path()).unwrap();
    fs::copy(home.path().join(MARK), fresh.path().join(MARK)).unwrap();
    let text = place.refused(&fresh, "old", Epoch::Same);
    assert!(text.contains("ca.mark there remembers") && text.contains("--new-epoch"), "{text}");

    let other = Home::new();
    let with_head = |home: &Home, epoch| {
        restore(&home.path(), &td(), &place.seal, &place.file("old"), epoch, Some(&head))
    };
    let text = with_head(&other, Epoch::Same).unwrap_err().to_string();
    assert!(text.contains("records of the ledger") && text.contains("latest.head covers"), "{text}");
    fs::write(place.file("forged"), fs::read_to_string(&head).unwrap().replace("time 1", "time 2")).unwrap();
    let forged = restore(
        &other.path(),
        &td(),
        &place.seal,
        &place.file("old"),
        Epoch::New(start()),
        Some(&place.file("forged")),
    );
    assert!(forged.unwrap_err().to_string().contains("forged"));
    with_head(&other, Epoch::New(start())).unwrap();
    place.restore(&fresh, "old", Epoch::New(start())).unwrap();
    drop(fresh.store_with_ledger(SEGMENT).unwrap());
}

#[test]
fn what_is_no_backup_or_not_whole_leaves_nothing_behind() {
    let (place, home) = (Place::new(), Home::new());
    drop(home.ca_on(home.store_with_ledger(SEGMENT).unwrap()));
    place.take(&home, "good", false);
    let taken = take(&home.path(), &td(), &place.seal, &place.file("good"), false, &[], home.clock.wall());
    assert!(matches!(taken, Err(BackupError::Key(KeyError::Exists(_)))), "never overwritten");

    let good = fs::read(place.file("good")).unwrap();
    for (at, length) in [0, 40, 80, 200, good.len() / 2, good.len() - 1].into_iter().enumerate() {
        let name = format!("cut-{at}");
        keys::write_private(&place.file(&name), &good[..length]).unwrap();
        place.refused(&Home::new(), &name, Epoch::New(start()));
    }
    let mut changed = good.clone();
    changed[good.len() / 2] ^= 1;
    keys::write_private(&place.file("changed"), &changed).unwrap();
    let text = place.refused(&Home::new(), "changed", Epoch::New(start()));
    assert!(text.contains("changed or cut off"), "{text}");
    assert!(place.refused(&Home::new(), "no-such-file", Epoch::New(start())).contains("no-such-file"));

    let other = Place::new();
    fs::write(other.file("secret"), "fedcba9876543210".repeat(4)).unwrap();
    let seal = Seal::read(&Source::KeyFile(other.file("secret"))).unwrap();
    let text = restore(&Home::new().path(), &td(), &seal, &place.file("good"), Epoch::New(start()), None)
        .unwrap_err();
    let text = text.to_string();
    assert!(text.contains("another secret") && !text.contains("keys reseal"), "{text}");
    keys::write_private(&place.file("short"), b"hello").unwrap();
    let text = place.refused(&Home::new(), "short", Epoch::New(start()));
    assert!(text.contains("not a backup") && !text.contains("restore it from"), "{text}");
    let elsewhere = postern_svid::TrustDomain::parse("other.example").unwrap();
    let refused =
        restore(&Home::new().path(), &elsewhere, &place.seal, &place.file("good"), Epoch::New(start()), None);
    assert!(matches!(refused, Err(BackupError::TrustDomain { .. })));
    // Never over something.
    let text = place.restore(&home, "good", Epoch::New(start())).unwrap_err().to_string();
    assert!(text.contains("not empty (it holds a CA: ca.db)"), "{text}");
    drop(home.ca());

    // A restore that a crash ended.
    let fresh = Home::new();
    place.restore(&fresh, "good", Epoch::New(start())).unwrap();
    fs::write(fresh.path().join(UNFINISHED), "").unwrap();
    let text = Sqlite::open(&fresh.path(), &td()).err().unwrap().to_string();
    assert!(text.contains("broke off here"), "{text}");
}

#[test]
fn a_key_that_the_database_needs_is_missed_when_it_is_saved_and_not_when_it_is_needed() {
    for (at, kind) in [(0, store::Kind::Root), (1, store::Kind::Issuing)] {
        let (place, home) = (Place::new(), Home::new());
        let ca = home.ca_on(home.store_with_ledger(SEGMENT).unwrap());
        let row = ca.store.authorities().unwrap().swap_remove(at);
        assert_eq!(row.kind, kind);
        drop(ca);
        fs::remove_file(home.path().join(format!("{}.key", row.label))).unwrap();
        let (file, now) = (place.file("b"), home.clock.wall());
        let taken = take(&home.path(), &td(), &place.seal, &file, false, &[], now);
        assert!(matches!(taken, Err(BackupError::MissingKey(missing)) if missing == row.label));
        assert!(!file.exists(), "half a backup is none");
        // Unless a token keeps it.
        take(&home.path(), &td(), &place.seal, &file, false, &[kind], now).unwrap();
    }
}

/// Cut anywhere, a database is refused with the way back, and never taken for a new one.
#[test]
fn a_truncated_database_is_refused_and_says_how_to_restore() {
    let home = Home::new();
    let ca = home.ca_on(home.store_with_ledger(SEGMENT).unwrap());
    for _ in 0..10 {
        ca.joined(&id("orders"));
    }
    drop(ca);
    let database = home.path().join(DATABASE);
    let whole = fs::read(&database).unwrap();
    let keys_before = key_files(&home.path()).unwrap();
    for length in [0, 1, 100, 4_096, 8_192, whole.len() / 2, whole.len() - 4_096, whole.len() - 1] {
        fs::write(&database, &whole[..length]).unwrap();
        let refused =
            home.store_with_ledger(SEGMENT).err().unwrap_or_else(|| panic!("{length} bytes are taken"));
        let text = refused.to_string();
        assert!(text.contains("ca.db") && text.contains("postern ca restore"), "{length}: {text}");
        assert_eq!(key_files(&home.path()).unwrap(), keys_before, "{length}: no new CA");
    }
    fs::write(&database, &whole).unwrap();
    drop(home.ca_on(home.store_with_ledger(SEGMENT).unwrap()));
}

#[test]
fn the_same_backup_again_is_another_epoch() {
    let (place, home) = (Place::new(), Home::new());
    drop(home.ca());
    place.take(&home, "backup", false);
    let restored = |home: &Home, later| {
        let epoch = Epoch::New(start() + Duration::from_secs(later));
        place.restore(home, "backup", epoch).unwrap().bundle_sequence
    };
    let first = restored(&Home::new(), 0);
    let again = restored(&Home::new(), 10);
    assert!(again > first + 1_000_000, "above all that was published since: {first} {again}");
    // With a clock that was set back, what a mark remembers still counts.
    let marked = Home::new();
    keys::private_dir(&marked.path()).unwrap();
    fs::write(marked.path().join(MARK), format!("bundle_sequence {}\n", again + 7)).unwrap();
    assert!(restored(&marked, 5) > again + 7);
}
