//! The Merkle tree of RFC 6962, 2.1, of which only the roots of its complete subtrees are held: at most 64 hashes.

use super::{Hash, sha256};

/// A tree that grows at its right end.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tree {
    size: u64,
    /// Roots of the complete subtrees, largest first: one for each bit of the size that is set.
    subtrees: Vec<Hash>,
}

/// The hash of a leaf.
pub(super) fn leaf(data: &[u8]) -> Hash {
    sha256(&[&[0], data])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

impl Tree {
    /// The tree of `size` leaves with these subtrees; `None` if their number does not fit.
    pub fn of(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        (subtrees.len() == size.count_ones() as usize).then_some(Self { size, subtrees })
    }

    /// Adds a record.
    pub fn push(&mut self, body: &[u8]) {
        let mut hash = leaf(body);
        let mut size = self.size;
        while size & 1 == 1 {
            let Some(left) = self.subtrees.pop() else { break };
            hash = node(&left, &hash);
            size >>= 1;
        }
        self.subtrees.push(hash);
        self.size += 1;
    }

    /// Leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the complete subtrees, largest first.
    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    /// The root's hash.
    pub fn root(&self) -> Hash {
        let mut from_right = self.subtrees.iter().rev().copied();
        let Some(last) = from_right.next() else { return sha256(&[]) };
        from_right.fold(last, |right, left| node(&left, &right))
    }

    /// The root over leaves `from` up to but not including `to`, if that is one of the subtrees.
    pub(super) fn subtree(&self, from: u64, to: u64) -> Option<Hash> {
        let (mut at, mut left) = (0, self.size);
        for root in &self.subtrees {
            let size = 1 << left.checked_ilog2()?;
            if (at, at + size) == (from, to) {
                return Some(*root);
            }
            (at, left) = (at + size, left - size);
        }
        None
    }

    /// The part of it that begins at leaf `start`; `None` where a subtree would have to be cut for it.
    pub(super) fn beginning_at(&self, start: u64) -> Option<Self> {
        let mut subtrees = self.subtrees.iter();
        let (mut at, mut left) = (0, self.size);
        while at < start {
            // The largest complete subtree of what is left.
            let bit = 1_u64 << left.checked_ilog2()?;
            (at, left) = (at + bit, left - bit);
            subtrees.next()?;
        }
        (at == start).then(|| Self { size: left, subtrees: subtrees.copied().collect() })
    }
}

/// Leaves `from` up to but not including `to`.
pub(super) type Range = (u64, u64);

/// The largest power of two smaller than `n`, which is at least 2.
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// PATH of RFC 6962, 2.1.1: the subtrees whose roots prove that leaf `index` is in the tree of `size` leaves.
pub(super) fn inclusion_path(index: u64, size: u64) -> Vec<Range> {
    let (mut from, mut to) = (0, size);
    let mut path = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            path.push((middle, to));
            to = middle;
        } else {
            path.push((from, middle));
            from = middle;
        }
    }
    path.reverse();
    path
}

/// PROOF of RFC 6962, 2.1.2: the subtrees whose roots prove that the tree of `old` leaves is the beginning of that of `size`.
pub(super) fn consistency_path(old: u64, size: u64) -> Vec<Range> {
    let (mut from, mut to) = (0, size);
    let mut path = Vec::new();
    while to > old {
        let middle = from + split(to - from);
        if old <= middle {
            path.push((middle, to));
            to = middle;
        } else {
            path.push((from, middle));
            from = middle;
        }
    }
    // The old root itself is known to whoever asks.
    if from > 0 {
        path.push((from, to));
    }
    path.reverse();
    path
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn leaves(n: u8) -> Vec<Vec<u8>> {
        (0..n).map(|at| vec![at; usize::from(at)]).collect()
    }

    pub(crate) fn tree(leaves: &[Vec<u8>]) -> Tree {
        let mut tree = Tree::default();
        leaves.iter().for_each(|leaf| tree.push(leaf));
        tree
    }

    /// MTH as the RFC writes it.
    fn mth(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => sha256(&[]),
            [one] => leaf(one),
            more => {
                let (left, right) = more.split_at(usize::try_from(split(more.len() as u64)).unwrap());
                node(&mth(left), &mth(right))
            }
        }
    }

    /// The reference vectors of certificate transparency.
    #[test]
    fn known_roots() {
        let leaves = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let leaves: Vec<Vec<u8>> = leaves
            .iter()
            .map(|hex| {
                (0..hex.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                    .collect()
            })
            .collect();
        for (size, root) in [
            (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
            (2, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
            (3, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
            (5, "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
            (8, "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
        ] {
            assert_eq!(crate::hex(&tree(&leaves[..size]).root()), root, "{size}");
        }
    }

    #[test]
    fn as_the_recursive_definition_says() {
        let leaves = leaves(70);
        for size in 0..leaves.len() {
            let whole = tree(&leaves[..size]);
            assert_eq!(whole.root(), mth(&leaves[..size]), "{size}");
            assert_eq!(Tree::of(whole.size(), whole.subtrees().to_vec()), Some(whole.clone()));
            for start in 0..=size {
                if let Some(part) = whole.beginning_at(start as u64) {
                    assert_eq!(part, tree(&leaves[start..size]), "{start} of {size}");
                }
            }
        }
        assert_eq!(Tree::of(3, vec![[0; 32]]), None);
    }

    #[test]
    fn paths_cover_all_the_rest_once() {
        for size in 1..70 {
            for index in 0..size {
                let mut ranges = inclusion_path(index, size);
                ranges.push((index, index + 1));
                ranges.sort_unstable();
                assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "{index} of {size}");
                assert_eq!((ranges[0].0, ranges[ranges.len() - 1].1), (0, size));
            }
            // RFC 6962, 2.1.3 has these for its tree of seven.
            assert_eq!(inclusion_path(0, 7), [(1, 2), (2, 4), (4, 7)]);
            assert_eq!(inclusion_path(6, 7), [(4, 6), (0, 4)]);
            assert_eq!(consistency_path(3, 7), [(2, 3), (3, 4), (0, 2), (4, 7)]);
            assert_eq!(consistency_path(4, 7), [(4, 7)]);
            assert_eq!(consistency_path(6, 7), [(4, 6), (6, 7), (0, 4)]);
            assert_eq!(consistency_path(size, size), []);
        }
    }
}
