//! Proofs that a record is in the tree of a head, and that one tree is the beginning of another.

use std::path::Path;

use super::merkle::{Range, consistency_path, inclusion_path};
use super::walk::Walk;
use super::writer::beginning;
use super::{Hash, HeadKey, Identity, LedgerError, Tree, segments};

/// The hashes that prove record `sequence` to be in the tree of the first `size` records, from the leaf up (RFC 6962, 2.1.1).
pub fn inclusion(
    directory: &Path,
    (identity, key): (&Identity, HeadKey),
    sequence: u64,
    size: u64,
) -> Result<Vec<Hash>, LedgerError> {
    if sequence >= size {
        return Err(LedgerError::NotCovered(sequence));
    }
    roots(directory, identity, key, &inclusion_path(sequence, size))
}

/// The hashes that prove the tree of `old` records to be the beginning of that of `size` (RFC 6962, 2.1.2).
pub fn consistency(
    directory: &Path,
    (identity, key): (&Identity, HeadKey),
    old: u64,
    size: u64,
) -> Result<Vec<Hash>, LedgerError> {
    if old == 0 {
        return Ok(Vec::new());
    }
    if old > size {
        return Err(LedgerError::NotCovered(old - 1));
    }
    roots(directory, identity, key, &consistency_path(old, size))
}

/// The roots of these parts of the tree, in one pass.
fn roots(
    directory: &Path,
    identity: &Identity,
    key: HeadKey,
    ranges: &[Range],
) -> Result<Vec<Hash>, LedgerError> {
    let first = segments(directory)?.first().copied().unwrap_or(0);
    let mut walk = Walk::begin(directory, first)?;
    let before = beginning(directory, first, walk.chain(), identity, key)?;
    let mut order: Vec<_> = (0..ranges.len()).collect();
    order.sort_unstable_by_key(|at| ranges[*at]);
    let mut found = vec![[0; 32]; ranges.len()];
    for at in order {
        let (from, to) = ranges[at];
        let mut tree = Tree::default();
        if from < first {
            // Of what was moved away, the head that stayed knows whole subtrees, and none in part.
            let part = before.beginning_at(from).filter(|_| to >= first);
            match (part, before.subtree(from, to)) {
                (Some(part), _) => tree = part,
                (None, Some(root)) => {
                    found[at] = root;
                    continue;
                }
                (None, None) => return Err(LedgerError::MovedAway(first)),
            }
        }
        while walk.position() < to {
            let Some(entry) = walk.read()? else { return Err(LedgerError::NotCovered(to - 1)) };
            if entry.record.sequence >= from {
                tree.push(&entry.body);
            }
        }
        found[at] = tree.root();
    }
    Ok(found)
}
