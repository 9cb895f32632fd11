//! Lists of candidates by key.

/// A key without candidates.
const NONE: u32 = u32::MAX;
/// A key with several: the rest of the word says where in `lists`.
const SEVERAL: u32 = 1 << 31;

/// Candidates by key, each list ascending. Most keys propose one rule or none: that is said where it is looked up.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// For each key nothing, its only candidate, or where its list is.
    heads: Box<[u32]>,
    /// Each list behind its length.
    lists: Box<[u32]>,
    /// What no key proposes: always candidates.
    rest: Box<[u32]>,
    longest: usize,
}

/// Rules of one kind, to be filed together: each with the ways to file it, which are keys one of which is true whenever it
/// fires.
#[derive(Debug, Default)]
pub(super) struct Drawer {
    rules: Vec<(u32, usize)>,
    /// Where each way ends in `keys`.
    ways: Vec<usize>,
    keys: Vec<u32>,
}

/// A rule under more keys than this is better filed by another dimension, if it has one.
const MANY_KEYS: usize = 64;

impl Drawer {
    /// Adds a rule. Those with lower numbers come first.
    pub(super) fn put<'k>(&mut self, rule: u32, ways: impl IntoIterator<Item = &'k [u32]>) {
        for way in ways {
            self.keys.extend_from_slice(way);
            self.ways.push(self.keys.len());
        }
        self.rules.push((rule, self.ways.len()));
    }

    /// Files each rule under the dimension whose commonest key is rarest. `keys`: how many there are.
    pub(super) fn file(self, keys: usize) -> Index {
        let mut counts = vec![0_u32; keys];
        for key in &self.keys {
            counts[*key as usize] += 1;
        }
        let (mut filed, mut rest) = (Vec::with_capacity(self.rules.len()), Vec::new());
        let (mut way, mut start) = (0, 0);
        for (rule, ways) in self.rules {
            let mut best: Option<((bool, u32), &[u32])> = None;
            for end in &self.ways[way..ways] {
                let keys = &self.keys[start..*end];
                start = *end;
                let commonest = keys.iter().map(|key| counts[*key as usize]).max().unwrap_or(0);
                let cost = (keys.len() > MANY_KEYS, commonest);
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, keys));
                }
            }
            way = ways;
            match best {
                Some((_, keys)) => filed.extend(keys.iter().map(|key| (*key, rule))),
                None => rest.push(rule),
            }
        }
        Index::new(keys, filed, rest)
    }
}

impl Index {
    /// From pairs of key and rule, and the rules that have no key.
    fn new(keys: usize, mut filed: Vec<(u32, u32)>, rest: Vec<u32>) -> Self {
        if filed.is_empty() {
            return Self { longest: rest.len(), rest: rest.into(), ..Self::default() };
        }
        filed.sort_unstable();
        filed.dedup();
        let (mut heads, mut lists) = (vec![NONE; keys], Vec::new());
        let mut longest = 0;
        for same in filed.chunk_by(|(one, _), (other, _)| one == other) {
            longest = longest.max(same.len());
            let (key, rule) = same[0];
            let is_word = |at: usize| u32::try_from(at).ok().filter(|at| *at < SEVERAL);
            heads[key as usize] = match same {
                [_] if rule < SEVERAL => rule,
                _ => {
                    // The bounds of a set of documents are far below that.
                    let at = is_word(lists.len()).expect("less than 8 GiB of lists");
                    lists.push(is_word(same.len()).expect("less than 8 GiB of lists"));
                    lists.extend(same.iter().map(|(_, rule)| *rule));
                    SEVERAL | at
                }
            };
        }
        Self { heads: heads.into(), lists: lists.into(), longest: longest + rest.len(), rest: rest.into() }
    }

    pub(super) fn list(&self, key: u32) -> &[u32] {
        let Some(head) = self.heads.get(key as usize) else { return &[] };
        if *head == NONE {
            return &[];
        }
        if head & SEVERAL == 0 {
            return std::slice::from_ref(head);
        }
        match self.lists.get((head & !SEVERAL) as usize..).and_then(<[u32]>::split_first) {
            Some((length, list)) => &list[..*length as usize],
            None => &[],
        }
    }

    pub(super) fn rest(&self) -> &[u32] {
        &self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty() && self.rest.is_empty()
    }

    /// The longest list, with what is always a candidate.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}
