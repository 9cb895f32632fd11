//! Lists of candidates by key.

/// Rule ids by key, each list ascending, all in one allocation.
#[derive(Debug, Default)]
pub(super) struct Index {
    offsets: Box<[u32]>,
    rules: Box<[u32]>,
    /// Rules that no key proposes: always candidates.
    rest: Box<[u32]>,
}

impl Index {
    /// From pairs of key and rule id, and the ids that have no key.
    pub(super) fn new(keys: usize, mut filed: Vec<(u32, u32)>, rest: Vec<u32>) -> Self {
        if filed.is_empty() {
            return Self { offsets: Box::default(), rules: Box::default(), rest: rest.into() };
        }
        filed.sort_unstable();
        filed.dedup();
        let mut offsets = vec![0_u32; keys + 1];
        for (key, _) in &filed {
            offsets[*key as usize + 1] += 1;
        }
        for at in 1..offsets.len() {
            offsets[at] += offsets[at - 1];
        }
        Self {
            offsets: offsets.into(),
            rules: filed.into_iter().map(|(_, id)| id).collect(),
            rest: rest.into(),
        }
    }

    pub(super) fn list(&self, key: u32) -> &[u32] {
        if self.rules.is_empty() {
            return &[];
        }
        let at = key as usize;
        &self.rules[self.offsets[at] as usize..self.offsets[at + 1] as usize]
    }

    pub(super) fn rest(&self) -> &[u32] {
        &self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.rest.is_empty()
    }

    pub(super) fn longest(&self) -> usize {
        let lists = self.offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
        lists.max().unwrap_or(0) + self.rest.len()
    }
}
