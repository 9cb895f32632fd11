//! What was in force lately, whole or by its mark, and what became of the last load.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use postern_policy::{Diagnostics, Generation, SourceFile};
use postern_svid::Clock;

/// Generations kept whole.
const KEPT: usize = 16;
/// Bytes of documents kept to be put in force again. Sets share what did not change between them, so this is reached
/// only where most of many megabytes changes each time; then the oldest are forgotten first.
const KEPT_BYTES: usize = 64 << 20;
/// Generations of which number, digest and time are remembered.
const REMEMBERED: usize = 1_024;

/// What was in force lately, and what became of the last load.
#[derive(Debug, Default)]
pub struct History {
    kept: VecDeque<Kept>,
    remembered: VecDeque<Remembered>,
    /// Why the set that is there now is not in force.
    pub refused: Option<Refused>,
    /// Where the set in force came from.
    pub origin: Option<Origin>,
    /// Set while an earlier set was put back in force: the directory is read, and changes nothing.
    pub pinned: Option<Pin>,
    /// When a good set was read last.
    pub confirmed: Option<Moment>,
    /// Whether an operator opened through the socket, for now.
    pub opened: Vec<String>,
    /// Digest of the set that the state directory keeps for the next start.
    pub stored: Option<String>,
    /// Why the state directory does not keep the set in force: the last write failed, or does not end.
    pub unstored: Option<String>,
    /// Why the stored set was of no use when it was needed.
    pub store_error: Option<String>,
}

/// A set of documents as it was read.
#[derive(Debug)]
pub struct Set {
    /// SHA-256 over the names and contents of its files, in hexadecimal.
    pub digest: String,
    /// Its files, shared with other sets where they are the same.
    pub files: Vec<Arc<SourceFile>>,
}

impl Set {
    /// A set, which shares with `other` what both hold.
    pub(super) fn sharing(digest: String, files: Vec<SourceFile>, other: Option<&Self>) -> Self {
        // Both are in the order of their names.
        let mut known = other.map(|set| set.files.as_slice()).unwrap_or_default().iter().peekable();
        let files = files.into_iter().map(|file| {
            while known.next_if(|other| other.name < file.name).is_some() {}
            let same = known.next_if(|other| other.name == file.name && other.text == file.text);
            same.map_or_else(|| Arc::new(file), Arc::clone)
        });
        Self { digest, files: files.collect() }
    }
}

#[derive(Debug)]
struct Kept {
    generation: Arc<Generation>,
    /// What it was made of, what was opened aside; `None` once that takes too much room.
    set: Option<Arc<Set>>,
}

/// A moment on both clocks: wall time jumps, and monotonic time stops while a machine is suspended.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Wall time.
    pub wall: SystemTime,
    /// Monotonic time.
    pub monotonic: Instant,
}

impl Moment {
    /// Now.
    pub fn now(clock: &dyn Clock) -> Self {
        Self { wall: clock.wall(), monotonic: clock.monotonic() }
    }

    /// How long ago that was, by the clock that says longer.
    pub fn age(&self, clock: &dyn Clock) -> Duration {
        let wall = clock.wall().duration_since(self.wall).unwrap_or_default();
        wall.max(clock.monotonic().saturating_duration_since(self.monotonic))
    }
}

/// Where a set came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The directory of documents.
    Directory,
    /// The state directory, which keeps the last good set for a start without good documents.
    Store,
    /// An operator, who put an earlier set back in force.
    Rollback,
}

impl Origin {
    /// Its word in the admin endpoint: the field of the configuration that names the place, or the verb.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Directory => "documents",
            Self::Store => "stateDir",
            Self::Rollback => "rollback",
        }
    }
}

/// An earlier set that an operator put back in force, until they let go of it.
#[derive(Clone, Debug)]
pub struct Pin {
    /// The generation that was asked for; `None` if that was in an earlier run of the sidecar.
    pub to: Option<u64>,
    /// When.
    pub since: SystemTime,
    /// The digest of the directory's set, if that is good and another one.
    pub waiting: Option<String>,
}

/// One generation's mark.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// Its number.
    pub number: u64,
    /// SHA-256 over the names and contents of its files, in hexadecimal, what was opened through the socket included.
    pub digest: String,
    /// When it came into force.
    pub loaded_at: SystemTime,
    /// Where it came from.
    pub origin: Origin,
}

/// A set that was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its digest.
    pub digest: String,
    /// When it was read.
    pub at: SystemTime,
    /// Everything that is wrong with it.
    pub diagnostics: Diagnostics,
}

impl History {
    /// The generation of this number, if it is still kept.
    pub fn generation(&self, number: u64) -> Option<&Arc<Generation>> {
        let mut kept = self.kept.iter().map(|kept| &kept.generation);
        kept.find(|generation| generation.number() == number)
    }

    /// The documents of the generation of this number, if they are still kept.
    pub fn set(&self, number: u64) -> Option<&Arc<Set>> {
        self.kept.iter().find(|kept| kept.generation.number() == number)?.set.as_ref()
    }

    /// The numbers of generations whose documents are kept, newest first.
    pub fn kept(&self) -> impl Iterator<Item = u64> {
        let whole = self.kept.iter().rev().filter(|kept| kept.set.is_some());
        whole.map(|kept| kept.generation.number())
    }

    /// The newest generation: in force, unless it is stale.
    pub fn newest(&self) -> Option<&Arc<Generation>> {
        self.kept.back().map(|kept| &kept.generation)
    }

    /// The newest kept generation before `number` that had other documents than `now`.
    pub(super) fn before(&self, number: u64, now: &Set) -> Option<u64> {
        let differs = |kept: &&Kept| {
            kept.generation.number() < number && kept.set.as_ref().is_some_and(|set| set.digest != now.digest)
        };
        self.kept.iter().rev().find(differs).map(|kept| kept.generation.number())
    }

    /// The last generations, newest first.
    pub fn remembered(&self) -> impl Iterator<Item = &Remembered> {
        self.remembered.iter().rev()
    }

    /// Returns the generation that is not kept any more.
    pub(super) fn push(
        &mut self,
        generation: Arc<Generation>,
        set: Arc<Set>,
        mark: Remembered,
    ) -> Option<Arc<Generation>> {
        self.origin = Some(mark.origin);
        self.remembered.push_back(mark);
        self.kept.push_back(Kept { generation, set: Some(set) });
        if self.remembered.len() > REMEMBERED {
            self.remembered.pop_front();
        }
        let forgotten = if self.kept.len() > KEPT { self.kept.pop_front() } else { None };
        self.bound(KEPT_BYTES);
        forgotten.map(|kept| kept.generation)
    }

    /// Forgets the documents of the oldest generations as long as all together hold more than `most` bytes.
    fn bound(&mut self, most: usize) {
        let mut seen = HashSet::new();
        let mut bytes = 0;
        for kept in self.kept.iter_mut().rev() {
            for file in kept.set.iter().flat_map(|set| &set.files) {
                if seen.insert(Arc::as_ptr(file)) {
                    bytes += file.text.len() + file.name.len();
                }
            }
            if bytes > most {
                kept.set = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(texts: &[(&str, &str)]) -> Vec<SourceFile> {
        let file =
            |(name, text): &(&str, &str)| SourceFile { name: (*name).into(), text: text.as_bytes().to_vec() };
        texts.iter().map(file).collect()
    }

    #[test]
    fn sets_share_what_did_not_change() {
        let one = Set::sharing("1".into(), files(&[("a", "1"), ("b", "2"), ("d", "4")]), None);
        let two = Set::sharing("2".into(), files(&[("b", "2"), ("c", "3"), ("d", "5")]), Some(&one));
        assert!(Arc::ptr_eq(&one.files[1], &two.files[0]));
        assert_eq!(two.files.iter().map(|file| &*file.text).collect::<Vec<_>>(), [b"2", b"3", b"5"]);
    }

    #[test]
    fn the_clock_that_says_longer_counts() {
        let clock = postern_svid::TestClock::at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
        let then = Moment::now(&clock);
        clock.advance(Duration::from_secs(60));
        clock.jump_wall(-3_600_000);
        assert_eq!(then.age(&clock), Duration::from_secs(60), "a clock that is set back makes nothing young");
        clock.jump_wall(7_200_000);
        assert_eq!(then.age(&clock), Duration::from_secs(3_660), "nor does a machine that slept");
    }
}
