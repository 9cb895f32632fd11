use std::time::Duration;

use postern_svid::{Clock as _, Revoked};
use rusqlite::params;

use super::*;
use crate::store::{
    AuthorityChange, Federated, FederationStore as _, JwtChange, JwtKey, JwtStore as _, Kind, Reason,
    Revocation, Sqlite, State, Store as _,
};
use crate::testing::{HOUR, Home, Mesh, id, key, peer, td};

/// A few certificates a segment.
const SMALL: u64 = 3_000;

fn audited(state: &Path, now: SystemTime) -> Vec<String> {
    let mut found = Vec::new();
    let audit = Audit::open(state, &td()).unwrap();
    audit.verify(now, &mut |one| found.push(one.to_string())).unwrap();
    found
}

fn revocation(entry: Revoked, at: SystemTime, ends: Option<SystemTime>) -> Revocation {
    Revocation { entry, reason: Reason::parse("stolen").unwrap(), at, ends }
}

fn jwt_key(label: &str, at: SystemTime) -> JwtKey {
    let point = rcgen::PublicKeyData::der_bytes(&key()).to_vec();
    let (label, key_id) = (label.to_owned(), format!("kid-{label}"));
    JwtKey { label, key_id, point, state: State::Prepared, made: at, since: at }
}

/// A CA to which everything happened that there are rows for.
fn eventful() -> Home {
    let home = Home::new();
    let ca = home.ca_on(home.store_with_ledger(SMALL).unwrap());
    let now = || home.clock.wall();
    // Forgotten in the end, or about to be.
    ca.joined(&id("early"));
    ca.token(&id("never"));
    ca.issuer.issue_own(&key()).unwrap();
    let short = revocation(Revoked::Id(id("short")), now(), Some(now() + HOUR));
    ca.store.revoke(short).unwrap();
    for _ in 0..6 {
        home.clock.advance(HOUR * 24);
        ca.authority.maintain().unwrap();
    }
    for _ in 0..500 {
        ca.store.prune(now()).unwrap();
    }
    assert!(ca.store.end_revocations(now()).unwrap().is_some());

    let first = ca.joined(&id("forked"));
    let second = peer(&ca.renew(&first, &key()).unwrap());
    ca.renew(&second, &key()).unwrap();
    assert!(ca.renew(&first, &key()).is_err());
    let svid = ca.joined(&id("orders"));
    ca.renew(&svid, &key()).unwrap();
    ca.issuer.issue_own(&key()).unwrap();
    ca.token(&id("open"));
    ca.store.revoke(revocation(Revoked::Id(id("denied")), now(), Some(now() + HOUR))).unwrap();
    ca.store.revoke(revocation(Revoked::Serial(vec![7; 16]), now(), None)).unwrap();
    ca.store.revoke(revocation(Revoked::Key([8; 32]), now(), None)).unwrap();
    let why = Reason::parse("found again").unwrap();
    ca.store.allow_again(Revoked::Key([8; 32]), why.clone(), now()).unwrap();

    let change = |add: Option<&str>, set: Option<(&str, State)>, remove: Option<&str>| JwtChange {
        add: add.map(|label| jwt_key(label, now())),
        set: set.into_iter().map(|(label, state)| (label.to_owned(), state)).collect(),
        remove: remove.map(str::to_owned).into_iter().collect(),
        ..JwtChange::at(now())
    };
    for step in [
        change(Some("a"), None, None),
        change(Some("bb"), Some(("a", State::Active)), None),
        change(None, Some(("bb", State::Active)), Some("a")),
    ] {
        ca.store.change_jwt_keys(step).unwrap();
    }
    let bundle = ca.authority.bundle();
    for (name, sequence) in [("demo.postern", 3), ("demo.postern", 4), ("gone.example", 1)] {
        let trust_domain = TrustDomain::parse(name).unwrap();
        let document = bundle.to_pem().into_bytes();
        let row =
            Federated { trust_domain, sequence, document, digest: *bundle.roots_digest(), fetched: now() };
        ca.store.put_federated(row).unwrap();
    }
    ca.store.forget_federated(&TrustDomain::parse("gone.example").unwrap(), now()).unwrap();

    let all = ca.store.authorities().unwrap();
    let issuing = all.iter().rfind(|one| one.kind == Kind::Issuing).unwrap();
    ca.store.taint(issuing.label.clone(), why, now()).unwrap();
    let taints = vec![revocation(Revoked::Authority(issuing.key_id.clone()), now(), None)];
    let change = AuthorityChange { taints, renews: true, ..AuthorityChange::new(now(), "stolen") };
    ca.store.change_authorities(change).unwrap();
    ca.store.sign_head(now()).unwrap();
    drop(ca);
    home
}

/// A copy, written to by somebody else.
fn altered(home: &Home, sql: &str) -> Home {
    let copy = Home { dir: crate::testing::dir(), clock: home.clock.clone() };
    let to = copy.path();
    crate::keys::private_dir(&to).unwrap();
    crate::keys::private_dir(&to.join(DIRECTORY)).unwrap();
    for place in ["", DIRECTORY] {
        for entry in fs::read_dir(home.path().join(place)).unwrap().map(|entry| entry.unwrap()) {
            if entry.path().is_file() {
                fs::copy(entry.path(), to.join(place).join(entry.file_name())).unwrap();
            }
        }
    }
    let connection = Connection::open(to.join(DATABASE)).unwrap();
    connection.execute_batch(sql).unwrap();
    drop(connection);
    copy
}

fn tampered(home: &Home, sql: &str) -> Vec<String> {
    audited(&altered(home, sql).path(), home.clock.wall())
}

#[test]
fn a_database_that_was_let_alone_is_what_the_ledger_says() {
    let home = eventful();
    assert_eq!(audited(&home.path(), home.clock.wall()), Vec::<String>::new());
    let counts = Connection::open(home.path().join(DATABASE)).unwrap();
    for table in ["issued", "lineage", "token", "authority", "revocation", "jwt_key", "federated"] {
        let rows: i64 =
            counts.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert!(rows > 0, "{table} has rows to be compared");
    }
    let early: i64 = counts
        .query_row("SELECT count(*) FROM issued WHERE spiffe_id LIKE '%/early'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(early, 0, "it is forgotten, and its record is not");
    drop(counts);

    // A restart, and a token that another process made and that waits for the files.
    let ca = home.ca_on(home.store_with_ledger(SMALL).unwrap());
    assert_eq!(audited(&home.path(), home.clock.wall()), Vec::<String>::new(), "beside who holds it");
    drop(ca);
    let other = home.ca();
    other.token(&id("waiting"));
    drop(other);
    assert_eq!(audited(&home.path(), home.clock.wall()), Vec::<String>::new());
    let found = tampered(&home, "DELETE FROM token WHERE spiffe_id LIKE '%/waiting'");
    assert!(found.len() == 1 && found[0].ends_with("it is not in the database"), "{found:?}");
}

/// As after a restore with a new epoch: another ledger, into which what is there is imported.
#[test]
fn what_was_imported_is_compared_as_far_as_it_is_told() {
    let home = eventful();
    Sqlite::begin_epoch(&home.path().join(DATABASE), &td(), None, home.clock.wall()).unwrap();
    fs::rename(home.path().join(DIRECTORY), home.path().join("ledger-old")).unwrap();
    fs::remove_file(home.path().join("ledger.key")).unwrap();
    let ca = home.ca_on(home.store_with_ledger(SMALL).unwrap());
    assert_eq!(audited(&home.path(), home.clock.wall()), Vec::<String>::new());
    let svid = ca.joined(&id("after"));
    ca.renew(&svid, &key()).unwrap();
    drop(ca);
    assert_eq!(audited(&home.path(), home.clock.wall()), Vec::<String>::new());
    let found = tampered(&home, "DELETE FROM issued WHERE spiffe_id LIKE '%/forked'");
    assert!(!found.is_empty());
}

#[test]
fn each_kind_of_row_that_was_changed_is_named() {
    let home = eventful();
    let copied = |table: &str, columns: &str| {
        format!(
            "CREATE TEMP TABLE c AS SELECT * FROM {table} LIMIT 1; UPDATE c SET {columns}; INSERT INTO {table} SELECT * FROM c;"
        )
    };
    let cases: Vec<(String, &str, &str)> = vec![
        // Rows that are in the database alone.
        (copied("issued", "serial = x'aa'"), "no record: issued aa: ", "in the database alone"),
        (copied("issued", "serial = x'aa', record = NULL"), "no record: issued aa: ", "alone"),
        (copied("lineage", "id = x'00112233445566778899aabbccddeeff'"), "no record: lineage 0011", "alone"),
        (copied("token", "hash = zeroblob(32)"), "no record: token 0000000000000000: ", "alone"),
        (
            "INSERT INTO token (hash, spiffe_id, created, expires, record) VALUES (zeroblob(32), 'spiffe://demo.postern/ns/a/sa/b', 0, 9000000000000, 0)".into(),
            "no record: token 0000000000000000: ",
            "alone",
        ),
        (copied("authority", "number = 99, label = 'x', key_id = x'01'"), "no record: authority x: ", "alone"),
        (copied("revocation", "kind = 'serial', value = x'05'"), "no record: revocation serial 05: ", "alone"),
        (copied("jwt_key", "number = 99, label = 'x', key_id = 'x'"), "no record: jwt_key x: ", "alone"),
        (copied("federated", "trust_domain = 'x.example'"), "no record: federated x.example: ", "alone"),
        // Rows that are gone.
        ("DELETE FROM issued WHERE spiffe_id LIKE '%/orders'".into(), ": issued ", "not in the database"),
        ("DELETE FROM lineage WHERE forked IS NOT NULL".into(), ": lineage ", "not in the database"),
        ("DELETE FROM token WHERE spiffe_id LIKE '%/open'".into(), ": token ", "not in the database"),
        ("DELETE FROM authority WHERE kind = 'root'".into(), ": authority ", "not in the database"),
        ("DELETE FROM revocation WHERE kind = 'id'".into(), ": revocation id spiffe://", "not in the database"),
        ("DELETE FROM revocation WHERE kind = 'serial'".into(), ": revocation serial 0707", "not in the"),
        ("DELETE FROM revocation WHERE kind = 'authority'".into(), ": revocation authority ", "not in the"),
        ("DELETE FROM jwt_key".into(), ": jwt_key kid-bb: ", "not in the database"),
        ("DELETE FROM federated".into(), ": federated demo.postern: ", "not in the database"),
        // Columns.
        ("UPDATE issued SET spiffe_id = 'spiffe://demo.postern/ns/a/sa/b'".into(), ": issued ", "spiffe_id: "),
        ("UPDATE issued SET lineage = zeroblob(16)".into(), ": issued ", "lineage: "),
        ("UPDATE issued SET issuer = x'01'".into(), ": issued ", "issuer: "),
        ("UPDATE issued SET key = zeroblob(32)".into(), ": issued ", "key: "),
        ("UPDATE issued SET issued = issued + 60000".into(), ": issued ", "issued: "),
        ("UPDATE issued SET not_before = 1".into(), ": issued ", "not_before: "),
        ("UPDATE issued SET not_after = 1".into(), ": issued ", "not_after: "),
        ("UPDATE issued SET certificate = x'3000'".into(), ": issued ", "certificate: "),
        ("UPDATE issued SET record = 0".into(), ": issued ", "record: "),
        ("UPDATE lineage SET spiffe_id = 'spiffe://demo.postern/ns/a/sa/b'".into(), ": lineage ", "spiffe_id: "),
        ("UPDATE lineage SET attestor = 'join_token' WHERE attestor = 'own'".into(), ": lineage ", "says own"),
        ("UPDATE lineage SET attested = attested + 60000".into(), ": lineage ", "attested: "),
        ("UPDATE lineage SET newest = x'01'".into(), ": lineage ", "newest: "),
        ("UPDATE lineage SET parent = NULL".into(), ": lineage ", "parent: "),
        ("UPDATE lineage SET forked = NULL".into(), ": lineage ", "forked: the ledger says 1, the database 0"),
        ("UPDATE lineage SET forked = 1".into(), ": lineage ", "forked: the ledger says 0, the database 1"),
        ("UPDATE token SET bound_key = NULL, lineage = NULL".into(), ": token ", "bound_key: "),
        ("UPDATE token SET lineage = zeroblob(16) WHERE lineage IS NOT NULL".into(), ": token ", "lineage: "),
        ("UPDATE token SET spiffe_id = 'spiffe://demo.postern/ns/a/sa/b'".into(), ": token ", "spiffe_id: "),
        ("UPDATE token SET created = created + 1".into(), ": token ", "created: "),
        ("UPDATE token SET expires = expires + 3600000".into(), ": token ", "expires: "),
        ("UPDATE authority SET state = 'retired' WHERE state = 'active'".into(), ": authority ", "state: "),
        ("UPDATE authority SET key_id = zeroblob(3) WHERE kind = 'root'".into(), ": authority ", "key_id: "),
        ("UPDATE authority SET certificate = x'3000'".into(), ": authority ", "certificate: "),
        ("UPDATE authority SET not_after = not_after + 1".into(), ": authority ", "not_after: "),
        ("UPDATE authority SET not_before = not_before + 1".into(), ": authority ", "not_before: "),
        ("UPDATE authority SET tainted = NULL".into(), ": authority ", "tainted: the ledger says 1, the database 0"),
        ("UPDATE revocation SET reason = 'x'".into(), ": revocation ", "reason: the ledger says stolen, the database x"),
        ("UPDATE revocation SET ends = 1 WHERE ends IS NULL".into(), ": revocation ", "ends: "),
        ("UPDATE jwt_key SET point = zeroblob(65)".into(), ": jwt_key ", "point: "),
        ("UPDATE jwt_key SET state = 'retired'".into(), ": jwt_key ", "state: the ledger says active, the database retired"),
        ("UPDATE federated SET sequence = 9".into(), ": federated ", "sequence: the ledger says 4, the database 9"),
        ("UPDATE federated SET digest = zeroblob(32)".into(), ": federated ", "digest: "),
        ("UPDATE federated SET document = x'00'".into(), ": federated ", "document: "),
        // Kind and record.
        ("UPDATE authority SET kind = 'tier' WHERE kind = 'root'".into(), ": authority ", "kind: "),
        ("UPDATE authority SET record = 0".into(), ": authority ", "record: "),
        ("UPDATE lineage SET record = 0 WHERE forked IS NOT NULL".into(), ": lineage ", "record: "),
        ("UPDATE token SET record = 0".into(), ": token ", "record: "),
        ("UPDATE revocation SET record = 0".into(), ": revocation ", "record: "),
        // Who hides it by the number up to which rows are forgotten.
        (
            "UPDATE meta SET value = 9000000000000 WHERE name = 'pruned_ms'; DELETE FROM issued".into(),
            ": issued ",
            "not in the database",
        ),
    ];
    for (sql, place, what) in cases {
        let found = tampered(&home, &sql);
        assert!(found.iter().any(|one| one.contains(place) && one.contains(what)), "{sql}: {found:#?}");
        assert!(found.iter().all(|one| one.starts_with("record ") || one.starts_with("no record: ")));
    }
}

/// What waits in the database is part of the chain.
#[test]
fn a_record_that_waits_cannot_be_changed_either() {
    let home = eventful();
    let other = home.ca();
    other.token(&id("waiting"));
    drop(other);
    let database = Connection::open(home.path().join(DATABASE)).unwrap();
    let last: Vec<u8> = database
        .query_row("SELECT body FROM outbox ORDER BY sequence DESC LIMIT 1", [], |row| row.get(0))
        .unwrap();
    let mut changed = last.clone();
    let at = changed.len() - 1;
    changed[at] ^= 1;
    for body in [Some(changed), None] {
        match body {
            Some(body) => {
                database.execute("UPDATE outbox SET body = ?1 WHERE body = ?2", params![body, last])
            }
            None => database.execute("DELETE FROM outbox", []),
        }
        .unwrap();
        let audit = Audit::open(&home.path(), &td()).unwrap();
        let refused = audit.verify(home.clock.wall(), &mut |_| ()).unwrap_err();
        assert!(matches!(refused, AuditError::Ledger(_)), "{refused}");
    }
}

/// An import would vouch for it.
#[test]
fn a_row_without_a_record_keeps_the_control_plane_from_starting() {
    let whole = eventful();
    for table in ["issued", "token", "authority", "revocation", "lineage"] {
        let one = if table == "lineage" { "forked IS NOT NULL" } else { "1" };
        let home = altered(&whole, &format!("UPDATE {table} SET record = NULL WHERE {one}"));
        let refused = home.store_with_ledger(SMALL).err().unwrap().to_string();
        assert!(
            refused.contains("row(s) of which no record") && refused.contains("ledger verify"),
            "{refused}"
        );
        // Nothing was imported meanwhile.
        assert!(!audited(&home.path(), home.clock.wall()).is_empty(), "{table}");
    }
    altered(&whole, "").store_with_ledger(SMALL).unwrap();
}

/// Segments that were moved away take what they said with them, and that is no difference.
#[test]
fn without_its_first_segments_the_rest_is_compared() {
    let home = eventful();
    let directory = home.path().join(DIRECTORY);
    let all = ledger::segments(&directory).unwrap();
    assert!(all.len() > 4);
    let (last, before) = all.split_last().unwrap();
    for first in before {
        fs::remove_file(directory.join(format!("{first:020}.segment"))).unwrap();
        assert_eq!(audited(&home.path(), home.clock.wall()), Vec::<String>::new(), "from {first} on");
    }
    let found = tampered(
        &home,
        &format!(
            "CREATE TEMP TABLE c AS SELECT * FROM issued LIMIT 1; UPDATE c SET serial = x'aa', record = {last}; INSERT INTO issued SELECT * FROM c;"
        ),
    );
    assert_eq!(found, ["no record: issued aa: it is in the database alone"]);
}

/// What other replicas issued and revoked is in this one's database as far as its own ledger tells.
#[test]
fn replicas_are_clean_each_by_itself() {
    let mesh = Mesh::new();
    let (a, b) = mesh.two();
    let svid = a.joined(&id("orders"));
    let token = a.token(&id("store"));
    let adopted = peer(&b.renew(&svid, &key()).unwrap());
    b.renew(&adopted, &key()).unwrap();
    b.join(&id("store"), &token, &key()).unwrap();
    b.store.revoke(revocation(Revoked::Id(id("denied")), mesh.clock.wall(), None)).unwrap();
    for _ in 0..3 {
        mesh.clock.advance(HOUR * 24);
        for one in [&a, &b] {
            one.authority.maintain().unwrap();
            one.follow();
            one.store.prune(mesh.clock.wall()).unwrap();
        }
        a.joined(&id("later"));
    }
    for name in ["a", "b"] {
        assert_eq!(audited(&mesh.path(name), mesh.clock.wall()), Vec::<String>::new(), "{name}");
    }
}

/// A store that is written to all the time never looks different.
#[test]
fn beside_a_writer_nothing_differs() {
    let home = Home::new();
    let store = home.store_with_ledger(1 << 16).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let ca = home.ca_on(store.clone());
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let svid = ca.joined(&id("orders"));
                ca.renew(&svid, &key()).unwrap();
                home.clock.advance(Duration::from_millis(20));
            }
        });
        for _ in 0..20 {
            if home.path().join(DIRECTORY).exists() {
                let now = home.clock.wall();
                assert_eq!(audited(&home.path(), now), Vec::<String>::new());
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
    });
    assert!(store.ledger().unwrap().unwrap().size > 5);
}
