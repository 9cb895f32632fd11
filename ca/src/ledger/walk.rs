//! Reading the ledger from one record to the next, over its segments, while it grows.

use std::fs::{File, OpenOptions};
use std::io::BufReader;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::record::Record;
use super::segment::{Fault, Frame, Header, Segment};
use super::{Hash, LedgerError, segment_path, segments};

/// How often a record that does not fit is read again: the writer may be in the middle of it.
const TRIES: u32 = 5;
/// How long between.
const PAUSE: Duration = Duration::from_millis(20);

/// A record and where it stands.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// Its bytes.
    pub body: Vec<u8>,
    /// The chain's hash after it.
    pub hash: Hash,
    /// The segment's file.
    pub file: PathBuf,
    /// Where in it the record begins.
    pub offset: u64,
}

/// Goes through the records in order.
pub struct Walk {
    directory: PathBuf,
    file: PathBuf,
    segment: Segment<BufReader<File>>,
    /// Records before this one were synced long ago: one that does not fit will not get better.
    settled: u64,
}

impl Walk {
    /// From the first record of the segment that begins with `first`.
    pub fn begin(directory: &Path, first: u64) -> Result<Self, LedgerError> {
        let (file, segment) = open(directory, first)?;
        Ok(Self { directory: directory.to_owned(), file, segment, settled: 0 })
    }

    /// From record `sequence`, or from the first that is here.
    pub fn from(directory: &Path, sequence: u64) -> Result<Self, LedgerError> {
        let all = segments(directory)?;
        let at = all.partition_point(|first| *first <= sequence).saturating_sub(1);
        let mut walk = Self::begin(directory, all.get(at).copied().unwrap_or(0))?;
        while walk.position() < sequence && walk.read()?.is_some() {}
        Ok(walk)
    }

    /// Records before `settled` are read but once.
    pub(super) fn settled(mut self, settled: u64) -> Self {
        self.settled = settled;
        self
    }

    /// The present segment's header.
    pub fn header(&self) -> &Header {
        self.segment.header()
    }

    /// The next record's number.
    pub fn position(&self) -> u64 {
        self.segment.next()
    }

    /// The chain's hash before it.
    pub fn chain(&self) -> Hash {
        self.segment.chain()
    }

    /// Where it will stand.
    pub fn place(&self) -> (&Path, u64) {
        (&self.file, self.segment.offset())
    }

    /// The next record; `None` where the ledger ends for now: asked again, it goes on with what has come.
    pub fn read(&mut self) -> Result<Option<Entry>, LedgerError> {
        loop {
            let offset = self.segment.offset();
            match self.frame() {
                Ok(Some(Frame { record, body, hash })) => {
                    return Ok(Some(Entry { record, body, hash, file: self.file.clone(), offset }));
                }
                Ok(None) if self.follow()? => {}
                Ok(None) => return Ok(None),
                Err(fault) => return Err(self.fault(fault)),
            }
        }
    }

    fn frame(&mut self) -> Result<Option<Frame>, Fault> {
        let mut tries = 0;
        loop {
            match self.segment.frame() {
                Err(Fault::Damaged(_)) if self.position() >= self.settled && tries < TRIES => {
                    tries += 1;
                    std::thread::park_timeout(PAUSE);
                    self.segment.rewind()?;
                }
                other => return other,
            }
        }
    }

    /// Goes on to the next segment. It is named by its first record, so this one has ended there.
    fn follow(&mut self) -> Result<bool, LedgerError> {
        let next = self.segment.next();
        if next == self.header().first || !segment_path(&self.directory, next).exists() {
            return Ok(false);
        }
        let (file, segment) = open(&self.directory, next)?;
        let (new, old) = (segment.header(), self.header());
        if (new.id, new.key, new.previous) != (old.id, old.key, self.chain()) {
            let what = "the header does not continue the segment before";
            return Err(LedgerError::Damaged { sequence: next, file, offset: 0, what });
        }
        (self.file, self.segment) = (file, segment);
        Ok(true)
    }

    fn fault(&self, fault: Fault) -> LedgerError {
        let (file, offset) = (self.file.clone(), self.segment.offset());
        match fault {
            Fault::Damaged(what) => LedgerError::Damaged { sequence: self.position(), file, offset, what },
            Fault::Io(error) => LedgerError::Io(file, error),
        }
    }
}

fn open(directory: &Path, first: u64) -> Result<(PathBuf, Segment<BufReader<File>>), LedgerError> {
    let file = segment_path(directory, first);
    // Neither a link nor a pipe, which would block.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(&file);
    let opened = opened.map_err(|error| LedgerError::Io(file.clone(), error))?;
    let damaged = |what| LedgerError::Damaged { sequence: first, file: file.clone(), offset: 0, what };
    match Segment::open(BufReader::with_capacity(256 * 1_024, opened)) {
        Ok(segment) if segment.header().first == first => Ok((file, segment)),
        Ok(_) => Err(damaged("the header names another first record than the file's name")),
        Err(Fault::Damaged(what)) => Err(damaged(what)),
        Err(Fault::Io(error)) => Err(LedgerError::Io(file, error)),
    }
}
