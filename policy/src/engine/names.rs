//! Texts of rules, interned: each once, all in one allocation, found by a keyed hash and compared byte by byte.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// Texts with a key each. A table of one word for each text stays in a processor's cache where one of strings does not.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Where in `bytes` they are.
    places: HashTable<u32>,
    /// For each text its key, its length and itself.
    bytes: Vec<u8>,
    state: RandomState,
}

impl Names {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn get(&self, text: &[u8]) -> Option<u32> {
        self.find(self.hash(|hasher| hasher.write(text)), |stored| stored == text)
    }

    /// The key of the text that `is_it` knows, if there is one with this hash.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(&[u8]) -> bool) -> Option<u32> {
        let at = self.places.find(hash, |at| self.text(*at).is_some_and(&is_it))?;
        self.key(*at)
    }

    /// The key of a text: the one that it has, or `next`, and whether it is new.
    pub(super) fn get_or_add(&mut self, text: &[u8], next: u32) -> (u32, bool) {
        let hash = self.hash(|hasher| hasher.write(text));
        self.get_or_add_hashed(text, hash, next, |this, stored| this.hash(|hasher| hasher.write(stored)))
    }

    /// The same with a hash of the caller's own; `again` hashes a stored text.
    pub(super) fn get_or_add_hashed(
        &mut self,
        text: &[u8],
        hash: u64,
        next: u32,
        again: impl Fn(&Self, &[u8]) -> u64,
    ) -> (u32, bool) {
        if let Some(key) = self.find(hash, |stored| stored == text) {
            return (key, false);
        }
        // The bounds of a set of documents are far below what a word can count.
        let at = u32::try_from(self.bytes.len()).expect("less than 4 GiB of names");
        let length = u32::try_from(text.len()).expect("less than 4 GiB of names");
        self.bytes.extend_from_slice(&next.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(text);
        let mut places = std::mem::take(&mut self.places);
        places.insert_unique(hash, at, |at| again(self, self.text(*at).unwrap_or_default()));
        self.places = places;
        (next, true)
    }

    pub(super) fn hash(&self, write: impl FnOnce(&mut <RandomState as BuildHasher>::Hasher)) -> u64 {
        let mut hasher = self.state.build_hasher();
        write(&mut hasher);
        hasher.finish()
    }

    /// Room that nothing will take any more.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
    }

    fn key(&self, at: u32) -> Option<u32> {
        self.bytes.get(at as usize..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn text(&self, at: u32) -> Option<&[u8]> {
        let (length, text) = self.bytes.get(at as usize + 4..)?.split_first_chunk()?;
        text.get(..u32::from_le_bytes(*length) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_has_one_key() {
        let mut names = Names::default();
        let text = |n: u32| format!("/{n}/").repeat(n as usize % 5);
        for round in 0..2 {
            for n in 0..5_000 {
                let known = names.get(text(n).as_bytes());
                let (key, is_new) = names.get_or_add(text(n).as_bytes(), n);
                // A fifth of them are the empty text.
                let first = if n % 5 == 0 { 0 } else { n };
                assert_eq!((key, is_new), (first, round == 0 && key == n), "{n}");
                assert_eq!(known, (!is_new).then_some(first));
            }
        }
        assert_eq!(names.get(b"/4999"), None);
        names.shrink();
        assert_eq!(names.get(text(4_999).as_bytes()), Some(4_999));
    }
}
