//! Verification: every record's hash and place, every head's signature and tree, and all of it against the store.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::head::Head;
use super::record::{Kind, Record};
use super::walk::Walk;
use super::writer::{beginning, read_head};
use super::{
    Hash, HeadKey, Identity, LATEST, LedgerError, STORED, State, Tree, head_path, numbers, segment_path,
    segments,
};

const OTHER: &str = "it was signed for other records than there are";

/// How far back a record's time may lie behind an earlier one: clocks are corrected by less.
pub(crate) const SLACK_MS: u64 = 5_000;

/// What was verified.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whose it is.
    pub identity: Identity,
    /// What its heads are verified with.
    pub key: HeadKey,
    /// The first record that is here.
    pub first: u64,
    /// Records up to which all is verified.
    pub size: u64,
    /// Segments that are here.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Heads verified.
    pub heads: usize,
    /// The newest head.
    pub latest: Option<Head>,
    /// Records that the store holds and the files do not yet.
    pub waiting: u64,
    /// The chain's hash after the last record in the files.
    pub(crate) chain: Hash,
}

/// Verifies the ledger in `directory`, which may grow meanwhile. `state` is asked before and after.
pub fn verify<E: From<LedgerError>>(
    directory: &Path,
    state: impl Fn() -> Result<State, E>,
) -> Result<Report, E> {
    verify_each(directory, state, |_| Ok(()))
}

/// The same, with each record shown once it and all before it fit.
pub(crate) fn verify_each<E: From<LedgerError>>(
    directory: &Path,
    state: impl Fn() -> Result<State, E>,
    each: impl FnMut(&Record) -> Result<(), E>,
) -> Result<Report, E> {
    let before = state()?;
    let mut report = files(directory, &before, each)?;
    let after = state()?;
    let file = segment_path(directory, segments(directory)?.last().copied().unwrap_or(0));
    if report.size > after.size {
        let (sequence, size) = (after.size, after.size);
        return Err(LedgerError::Ahead { file, sequence, size }.into());
    }
    if report.size == after.size && report.chain != after.chain {
        let (sequence, what) = (report.size.saturating_sub(1), "the database knows another last record");
        return Err(LedgerError::Damaged { sequence, file, offset: 0, what }.into());
    }
    report.waiting = after.size - report.size;
    Ok(report)
}

fn files<E: From<LedgerError>>(
    directory: &Path,
    state: &State,
    mut each: impl FnMut(&Record) -> Result<(), E>,
) -> Result<Report, E> {
    let identity = &state.identity;
    let key = state.key.ok_or_else(|| LedgerError::None(directory.to_owned()))?;
    let all = segments(directory).map_err(|error| match error {
        // The database knows better.
        LedgerError::None(_) if state.waiting > 0 => {
            LedgerError::Missing { file: segment_path(directory, 0), found: 0, known: state.waiting }
        }
        other => other,
    })?;
    let heads = Heads::read(directory, state, key)?;
    let first = all.first().copied().unwrap_or(0);
    let mut walk = Walk::begin(directory, first)?.settled(state.waiting);
    if (walk.header().id, walk.header().key) != (identity.id, key) {
        let (file, what) = (segment_path(directory, first), "the header is that of another ledger");
        return Err(LedgerError::Damaged { sequence: first, file, offset: 0, what }.into());
    }
    let mut tree = beginning(directory, first, walk.chain(), identity, key)?;
    // Of those before nothing is left to be held against.
    heads.sizes.range(..first).try_for_each(|size| heads.ending(*size).map(drop))?;
    let (mut visited, mut newest) = (BTreeSet::from([first]), 0);
    while let Some(entry) = walk.read()? {
        let damaged = |what| {
            let (sequence, file) = (entry.record.sequence, entry.file.clone());
            Err(LedgerError::Damaged { sequence, file, offset: entry.offset, what }.into())
        };
        if visited.insert(walk.header().first) {
            heads.ended(&tree)?;
        }
        if (entry.record.kind == Kind::Begin) != (entry.record.sequence == 0) {
            return damaged("only the first record begins a ledger");
        }
        if entry.record.time_ms + SLACK_MS < newest {
            return damaged("its time is before that of an earlier record");
        }
        newest = newest.max(entry.record.time_ms);
        tree.push(&entry.body);
        heads.hold_against(&tree, walk.chain())?;
        each(&entry.record)?;
    }
    if visited.insert(walk.header().first) {
        heads.ended(&tree)?;
    }
    let found = walk.position();
    let (file, _) = walk.place();
    let known = heads.size().max(state.waiting);
    if found < known {
        return Err(LedgerError::Missing { file: file.to_owned(), found, known }.into());
    }
    // Here before we began, and not come by.
    if let Some(lost) = all.iter().find(|first| !visited.contains(first) && **first != found) {
        let file = segment_path(directory, found);
        return Err(LedgerError::Missing { file, found, known: *lost }.into());
    }
    let sizes = visited.iter().filter_map(|first| fs::metadata(segment_path(directory, *first)).ok());
    Ok(Report {
        identity: identity.clone(),
        key,
        first,
        size: found,
        segments: visited.len(),
        bytes: sizes.map(|file| file.len()).sum(),
        heads: heads.sizes.len() + heads.newest.len(),
        latest: heads.newest.iter().map(|(_, head)| head).max_by_key(|head| head.tree.size()).cloned(),
        waiting: 0,
        chain: walk.chain(),
    })
}

/// All heads there are. Those where segments ended are read when their records have been.
struct Heads<'a> {
    directory: &'a Path,
    identity: &'a Identity,
    key: HeadKey,
    /// Records of those where a segment ended.
    sizes: BTreeSet<u64>,
    /// The newest, of the directory and of the store.
    newest: Vec<(PathBuf, Head)>,
}

impl<'a> Heads<'a> {
    fn read(directory: &'a Path, state: &'a State, key: HeadKey) -> Result<Self, LedgerError> {
        let identity = &state.identity;
        let sizes = numbers(directory, ".head")?.into_iter().collect();
        // The file is written before the store: it may be newer than that one's, and never older.
        let file = directory.join(LATEST);
        let latest = file.exists().then(|| read_head(&file, identity, key)).transpose()?;
        let mut newest = Vec::new();
        if let Some(text) = &state.head {
            let stored = Head::verify(text, identity, key)
                .map_err(|what| LedgerError::Head { file: STORED.into(), what })?;
            if latest.as_ref().is_none_or(|latest| latest.tree.size() < stored.tree.size()) {
                let what = "it is missing or older than the one that the database remembers";
                return Err(LedgerError::Head { file, what });
            }
            newest.push((STORED.into(), stored));
        }
        newest.extend(latest.map(|latest| (file, latest)));
        Ok(Self { directory, identity, key, sizes, newest })
    }

    /// Records that all of them together know.
    fn size(&self) -> u64 {
        let newest = self.newest.iter().map(|(_, head)| head.tree.size());
        newest.chain(self.sizes.last().copied()).max().unwrap_or(0)
    }

    /// The head of a segment's end.
    fn ending(&self, size: u64) -> Result<(PathBuf, Head), LedgerError> {
        let file = head_path(self.directory, size);
        if !file.exists() {
            return Err(LedgerError::Head { file, what: "it is missing" });
        }
        let head = read_head(&file, self.identity, self.key)?;
        if head.tree.size() != size {
            return Err(LedgerError::Head { file, what: "it is of another size than its name says" });
        }
        Ok((file, head))
    }

    /// Where a segment ended there must be a head; one since the heads were listed was not held against the tree yet.
    fn ended(&self, tree: &Tree) -> Result<(), LedgerError> {
        if tree.size() == 0 || self.sizes.contains(&tree.size()) {
            return Ok(());
        }
        match self.ending(tree.size())? {
            (_, head) if head.tree == *tree => Ok(()),
            (file, _) => Err(LedgerError::Head { file, what: OTHER }),
        }
    }

    fn hold_against(&self, tree: &Tree, chain: Hash) -> Result<(), LedgerError> {
        let ending = self.sizes.contains(&tree.size()).then(|| self.ending(tree.size())).transpose()?;
        let newest = self.newest.iter().filter(|(_, head)| head.tree.size() == tree.size());
        for (file, head) in ending.iter().chain(newest) {
            if head.tree != *tree || head.chain != chain {
                return Err(LedgerError::Head { file: file.clone(), what: OTHER });
            }
        }
        Ok(())
    }
}
