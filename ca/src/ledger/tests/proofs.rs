//! Proofs, and ledgers too large to flip every byte of.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::keys::KeyFiles;
use crate::ledger::merkle::leaf;
use crate::metrics::Metrics;

/// A writer of its own, with a state as the store would have it.
fn large(dir: &Path, records: u64, limit: u64) -> (State, Writer) {
    let identity = Identity { trust_domain: td(), id: [5; 16] };
    let signer = Signer::open(&KeyFiles::new(dir), identity.clone(), None).unwrap();
    let key = Some(signer.public());
    let mut state = State { identity, key, size: 0, chain: [0; 32], waiting: 0, head: None };
    let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
    let mut writer = Writer::open(&dir.join(DIRECTORY), signer, limit, metrics, &state, |_| None).unwrap();
    let body = |at: u64| {
        let kind = if at == 0 { Kind::Begin } else { Kind::Certificate };
        let draft = Draft::new(kind).bytes(Field::Serial, &at.to_be_bytes());
        draft.bytes(Field::Certificate, &vec![at as u8; (at % 400) as usize]).encode(at, 1_000_000 + at)
    };
    let bodies: Vec<_> = (0..records).map(body).collect();
    for some in bodies.chunks(64) {
        writer.append(some).unwrap();
    }
    state.chain = bodies.iter().fold([0; 32], |chain, body| super::chain(&chain, body));
    (state.size, state.waiting) = (records, records);
    state.head = Some(writer.head(2_000_000).unwrap());
    (state, writer)
}

#[test]
fn any_change_to_a_large_ledger_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _writer) = large(dir.path(), 3_000, 100_000);
    let directory = dir.path().join(DIRECTORY);
    verify::<LedgerError>(&directory, || Ok(state.clone())).unwrap();
    let all: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(all.len() > 10);
    let mut runner = TestRunner::new(Config { cases: 60, ..Config::default() });
    let inputs = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1_u8..=255);
    runner
        .run(&inputs, |(file, at, change)| {
            let file = file.get(&all);
            let bytes = fs::read(file).unwrap();
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= change;
            fs::write(file, &changed).unwrap();
            let found = verify::<LedgerError>(&directory, || Ok(state.clone()));
            fs::write(file, &bytes).unwrap();
            prop_assert!(found.is_err());
            Ok(())
        })
        .unwrap();
}

/// Whoever holds the key can sign anything; it must still be these records.
#[test]
fn a_head_signed_for_other_records_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _writer) = large(dir.path(), 23, 1_000);
    let directory = dir.path().join(DIRECTORY);
    let signer = Signer::open(&KeyFiles::new(dir.path()), state.identity.clone(), state.key).unwrap();
    let (mut right, mut other) = (Tree::default(), Tree::default());
    for entry in entries(&directory) {
        right.push(&entry.body);
        other.push(&entry.hash);
    }
    let ended = segments(&directory).unwrap()[1];
    let (latest, ending) = (directory.join(LATEST), head_path(&directory, ended));
    for (file, tree, chain) in
        [(&latest, &other, state.chain), (&latest, &right, [1; 32]), (&ending, &right, state.chain)]
    {
        let before = fs::read(file).unwrap();
        fs::write(file, signer.sign(tree, chain, 3_000_000).unwrap()).unwrap();
        let error = verify::<LedgerError>(&directory, || Ok(state.clone())).unwrap_err();
        assert!(matches!(&error, LedgerError::Head { file: named, .. } if named == file), "{error}");
        fs::write(file, before).unwrap();
    }
    fs::remove_file(&ending).unwrap();
    assert!(matches!(verify::<LedgerError>(&directory, || Ok(state.clone())), Err(LedgerError::Head { .. })));
}

#[test]
fn old_segments_may_be_moved_away_if_their_last_head_stays() {
    let home = Home::new();
    let serials = filled(&home, 9);
    let store = home.store();
    let size = check(&home, &store).unwrap().size;
    let firsts = segments(&files(&home)).unwrap();
    assert!(firsts.len() > 3);
    for first in &firsts[..2] {
        fs::remove_file(segment_path(&files(&home), *first)).unwrap();
    }
    let report = check(&home, &store).unwrap();
    assert_eq!((report.first, report.size), (firsts[2], size));
    drop(store);
    let ca = ca(&home);
    assert_eq!(peer(&ca.join(&id("more"), &ca.token(&id("more")), &key()).unwrap()).id(), &id("more"));
    let state = ca.store.ledger().unwrap().unwrap();
    let of = (&state.identity, state.key.unwrap());
    let all = entries(&files(&home));
    let root = Head::verify(state.head.as_deref().unwrap(), of.0, of.1).unwrap().tree.root();
    let newest =
        all.iter().rfind(|e| e.record.bytes(Field::Serial) == serials.last().map(Vec::as_slice)).unwrap();
    let path = inclusion(&files(&home), of, newest.record.sequence, size).unwrap();
    assert!(is_included(&newest.body, newest.record.sequence, size, &path, &root));
    assert!(matches!(consistency(&files(&home), of, 2, size), Err(LedgerError::MovedAway(_))));
    fs::remove_file(head_path(&files(&home), firsts[2])).unwrap();
    assert!(check(&home, &ca.store).is_err());
}

#[test]
fn every_record_and_every_older_ledger_can_be_proven() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _writer) = large(dir.path(), 23, 1_000);
    let directory = dir.path().join(DIRECTORY);
    let of = (&state.identity, state.key.unwrap());
    let all = entries(&directory);
    let mut roots = vec![Tree::default()];
    for entry in &all {
        let mut tree = roots[roots.len() - 1].clone();
        tree.push(&entry.body);
        roots.push(tree);
    }
    for size in 1..=all.len() as u64 {
        let root = roots[size as usize].root();
        for entry in &all[..size as usize] {
            let sequence = entry.record.sequence;
            let path = inclusion(&directory, of, sequence, size).unwrap();
            assert!(is_included(&entry.body, sequence, size, &path, &root), "{sequence} of {size}");
            assert!(!is_included(b"another", sequence, size, &path, &root));
        }
        for old in 1..=size {
            let path = consistency(&directory, of, old, size).unwrap();
            assert!(is_consistent(old, &roots[old as usize].root(), size, &root, &path), "{old} of {size}");
            assert!(old == size || !is_consistent(old, &[1; 32], size, &root, &path));
        }
        assert!(inclusion(&directory, of, size, size).is_err());
    }
}

/// RFC 9162, 2.1.3.2.
fn is_included(body: &[u8], index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    let (mut index, mut last, mut hash) = (index, size - 1, leaf(body));
    for sibling in path {
        if last == 0 {
            return false;
        }
        if index & 1 == 1 || index == last {
            hash = sha256(&[&[1], sibling, &hash]);
            while index & 1 == 0 && index != 0 {
                (index, last) = (index >> 1, last >> 1);
            }
        } else {
            hash = sha256(&[&[1], &hash, sibling]);
        }
        (index, last) = (index >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// RFC 9162, 2.1.4.2.
fn is_consistent(old: u64, old_root: &Hash, size: u64, root: &Hash, path: &[Hash]) -> bool {
    if old == size {
        return path.is_empty() && old_root == root;
    }
    let mut path = path.to_vec();
    if old.is_power_of_two() {
        path.insert(0, *old_root);
    }
    let (mut index, mut last) = (old - 1, size - 1);
    while index & 1 == 1 {
        (index, last) = (index >> 1, last >> 1);
    }
    let Some((first, rest)) = path.split_first() else { return false };
    let (mut before, mut after) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if index & 1 == 1 || index == last {
            before = sha256(&[&[1], sibling, &before]);
            after = sha256(&[&[1], sibling, &after]);
            while index & 1 == 0 && index != 0 {
                (index, last) = (index >> 1, last >> 1);
            }
        } else {
            after = sha256(&[&[1], &after, sibling]);
        }
        (index, last) = (index >> 1, last >> 1);
    }
    last == 0 && before == *old_root && after == *root
}
