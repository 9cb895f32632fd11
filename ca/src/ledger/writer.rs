//! The one who writes segments. What is appended is durable when the call returns, or the file is cut back at the next one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::head::{Head, MAX_HEAD, Signer};
use super::segment::{FRAME, HEADER, Header, framed};
use super::walk::Walk;
use super::{
    Hash, HeadKey, Identity, LATEST, LedgerError, STORED, State, Tree, chain, head_path, segment_path,
    segments,
};
use crate::keys;
use crate::ledger::Record;
use crate::metrics::Metrics;

/// The longest segment: about 80,000 certificates, and what a start reads anew.
pub const SEGMENT: u64 = 64 * 1_024 * 1_024;

/// What is reserved at the newest segment's end: more than a thousand certificates.
const ROOM: i64 = 1_024 * 1_024;

/// Appends to the ledger of a state directory. There is one at a time.
pub struct Writer {
    directory: PathBuf,
    signer: Signer,
    limit: u64,
    metrics: Metrics,
    file: File,
    tip: Tip,
    /// The file may hold more than the tip says, of a call that failed.
    dirty: bool,
}

/// What is durable.
#[derive(Clone)]
struct Tip {
    offset: u64,
    chain: Hash,
    tree: Tree,
    time_ms: u64,
}

impl Writer {
    /// Takes up the ledger in `directory`, or makes it. Its newest segment is read whole and held against the store's `state`
    /// and its `outbox`. A record that a crash cut off is one of the outbox's and is cut away; anything else is refused.
    pub fn open(
        directory: &Path,
        signer: Signer,
        limit: u64,
        metrics: Metrics,
        state: &State,
        outbox: impl Fn(u64) -> Option<Vec<u8>>,
    ) -> Result<Self, LedgerError> {
        keys::private_dir(directory)?;
        let first = match segments(directory) {
            Err(LedgerError::None(_)) if state.waiting == 0 => {
                let key = signer.public();
                create(directory, &Header { id: state.identity.id, key, first: 0, previous: [0; 32] })?;
                0
            }
            Err(LedgerError::None(_)) => {
                let file = segment_path(directory, 0);
                return Err(LedgerError::Missing { file, found: 0, known: state.waiting });
            }
            other => other?.last().copied().unwrap_or(0),
        };
        let (tip, is_torn) = take_up(directory, &signer, first, state, outbox)?;
        let path = segment_path(directory, first);
        let io = |error| LedgerError::Io(path.clone(), error);
        let file =
            OpenOptions::new().write(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path).map_err(io)?;
        keys::check_owner_and_mode(&path, &file.metadata().map_err(io)?, "600")?;
        metrics.ledger_entries.set(i64::try_from(tip.tree.size()).unwrap_or(i64::MAX));
        // Also what was found whole may not be durable yet.
        let (directory, dirty) = (directory.to_owned(), true);
        if is_torn {
            tracing::warn!(
                record = tip.tree.size(), file = %path.display(), offset = tip.offset,
                "a record that a crash cut off is written anew"
            );
        }
        Ok(Self { directory, signer, limit, metrics, file, tip, dirty })
    }

    /// Records that are durable; the next one's number.
    pub fn size(&self) -> u64 {
        self.tip.tree.size()
    }

    /// Appends records, which must be the next ones. After an error those before [`size`](Self::size) are durable all the same.
    pub fn append(&mut self, bodies: &[Vec<u8>]) -> Result<(), LedgerError> {
        let appended = self.try_append(bodies);
        self.dirty |= appended.is_err();
        self.metrics.ledger_entries.set(i64::try_from(self.size()).unwrap_or(i64::MAX));
        appended
    }

    fn try_append(&mut self, bodies: &[Vec<u8>]) -> Result<(), LedgerError> {
        if self.dirty {
            // The pages of a sync that failed may be lost though they look written: they are written again.
            self.file.set_len(self.tip.offset).map_err(|error| self.io(error))?;
            self.dirty = false;
        }
        let (mut tip, mut bytes) = (self.tip.clone(), Vec::new());
        for body in bodies {
            let length = FRAME + body.len() as u64;
            if tip.offset + length > self.limit && tip.offset > HEADER as u64 {
                self.commit(tip, &bytes)?;
                bytes.clear();
                self.turn()?;
                tip = self.tip.clone();
            }
            tip.chain = chain(&tip.chain, body);
            tip.tree.push(body);
            tip.offset += length;
            tip.time_ms = Record::decode(body).map_or(tip.time_ms, |record| record.time_ms);
            bytes.extend(framed(body, &tip.chain));
        }
        self.commit(tip, &bytes)
    }

    fn commit(&mut self, tip: Tip, bytes: &[u8]) -> Result<(), LedgerError> {
        let began = Instant::now();
        self.file.write_all_at(bytes, self.tip.offset).map_err(|error| self.io(error))?;
        self.file.sync_data().map_err(|error| self.io(error))?;
        self.metrics.ledger_sync.observe(began.elapsed().as_secs_f64());
        self.tip = tip;
        Ok(())
    }

    /// Ends the segment with a head, which stays when segments are moved away, and begins the next.
    fn turn(&mut self) -> Result<(), LedgerError> {
        let Tip { chain, tree, time_ms, .. } = &self.tip;
        let (size, previous) = (tree.size(), *chain);
        let head = self.signer.sign(tree, *chain, *time_ms)?;
        keys::replace(&head_path(&self.directory, size), 0o600, head.as_bytes())?;
        let (id, key) = (self.signer.identity().id, self.signer.public());
        // Gives back what was reserved.
        self.file.set_len(self.tip.offset).map_err(|error| self.io(error))?;
        self.file = create(&self.directory, &Header { id, key, first: size, previous })?;
        self.tip.offset = HEADER as u64;
        Ok(())
    }

    /// Makes sure that there is room for what comes next. Without it a full disk would show only when a certificate is due.
    pub fn reserve(&self) -> Result<(), LedgerError> {
        #[cfg(target_os = "linux")]
        {
            use nix::fcntl::{FallocateFlags, fallocate};
            let offset = i64::try_from(self.tip.offset).unwrap_or(i64::MAX);
            match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, ROOM) {
                // A file system that cannot do it says nothing of its room.
                Err(nix::errno::Errno::EOPNOTSUPP) | Ok(()) => {}
                Err(error) => return Err(self.io(error.into())),
            }
        }
        Ok(())
    }

    /// Signs a head of all that is durable and writes it beside the segments.
    pub fn head(&self, time_ms: u64) -> Result<String, LedgerError> {
        let Tip { chain, tree, .. } = &self.tip;
        let head = self.signer.sign(tree, *chain, time_ms)?;
        keys::replace(&self.directory.join(LATEST), 0o600, head.as_bytes())?;
        Ok(head)
    }

    fn io(&self, error: std::io::Error) -> LedgerError {
        LedgerError::Io(self.directory.clone(), error)
    }
}

/// The state after the newest segment, and whether something after it is to be cut away.
fn take_up(
    directory: &Path,
    signer: &Signer,
    first: u64,
    state: &State,
    outbox: impl Fn(u64) -> Option<Vec<u8>>,
) -> Result<(Tip, bool), LedgerError> {
    let mut walk = Walk::begin(directory, first)?.settled(u64::MAX);
    let damaged = |sequence, offset, what| {
        let file = segment_path(directory, first);
        Err(LedgerError::Damaged { sequence, file, offset, what })
    };
    if (walk.header().id, walk.header().key) != (state.identity.id, signer.public()) {
        return damaged(first, 0, "the header is that of another ledger");
    }
    let mut tree = beginning(directory, first, walk.chain(), signer.identity(), signer.public())?;
    let known = state.head.as_deref().map(|text| Head::verify(text, &state.identity, signer.public()));
    let known = known.transpose().map_err(|what| LedgerError::Head { file: STORED.into(), what })?;
    let mut time_ms = 0;
    let is_torn = loop {
        match walk.read() {
            Ok(None) => break false,
            Ok(Some(entry)) => {
                let sequence = entry.record.sequence;
                if sequence >= state.size {
                    return Err(LedgerError::Ahead { file: entry.file, sequence, size: state.size });
                }
                if sequence >= state.waiting && outbox(sequence).as_ref() != Some(&entry.body) {
                    return damaged(sequence, entry.offset, "it is another record than the database has");
                }
                tree.push(&entry.body);
                time_ms = entry.record.time_ms;
                if known.as_ref().is_some_and(|head| head.tree.size() == tree.size() && head.tree != tree) {
                    return damaged(
                        sequence,
                        entry.offset,
                        "it is not what the database's head was signed for",
                    );
                }
            }
            Err(LedgerError::Damaged { sequence, .. }) if (state.waiting..state.size).contains(&sequence) => {
                break true;
            }
            Err(error) => return Err(error),
        }
    };
    let (file, offset) = walk.place();
    let found = walk.position();
    if found < state.waiting {
        return Err(LedgerError::Missing { file: file.to_owned(), found, known: state.waiting });
    }
    if found == state.size && walk.chain() != state.chain {
        return damaged(found.saturating_sub(1), offset, "the database knows another last record");
    }
    Ok((Tip { offset, chain: walk.chain(), tree, time_ms }, is_torn))
}

/// The tree before a segment, as the head that ended the one before says it.
pub(super) fn beginning(
    directory: &Path,
    first: u64,
    previous: Hash,
    identity: &Identity,
    key: HeadKey,
) -> Result<Tree, LedgerError> {
    if first == 0 {
        return Ok(Tree::default());
    }
    let file = head_path(directory, first);
    let head = read_head(&file, identity, key)?;
    if head.tree.size() != first || head.chain != previous {
        return Err(LedgerError::Head { file, what: "it is not the head of the segment that ended there" });
    }
    Ok(head.tree)
}

pub(super) fn read_head(file: &Path, identity: &Identity, key: HeadKey) -> Result<Head, LedgerError> {
    let bytes = keys::read_private(file, MAX_HEAD)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "it is no text");
    text.and_then(|text| Head::verify(text, identity, key))
        .map_err(|what| LedgerError::Head { file: file.to_owned(), what })
}

fn create(directory: &Path, header: &Header) -> Result<File, LedgerError> {
    let path = segment_path(directory, header.first);
    // Whole or not at all: a segment without its header would be damage.
    keys::replace(&path, 0o600, &header.encode())?;
    OpenOptions::new().write(true).open(&path).map_err(|error| LedgerError::Io(path, error))
}
