//! The store in one SQLite file.
//!
//! One thread owns the connection (`sqlite/thread.rs`). It takes all calls that wait, up to 64, into one transaction, so that
//! many certificates share one fsync, and answers each only after the commit. WAL with `synchronous=FULL`: a commit is on the
//! disk before its call returns. Other processes (`postern ca token create`) may write meanwhile.
//!
//! With a ledger, which the control plane has, what was committed is in its files as well before the call returns.

mod audit;
mod backup;
mod clock;
mod federation;
mod jwt;
mod ledger;
mod mark;
mod order;
mod outbox;
mod readers;
mod replica;
mod rows;
mod schema;
mod thread;
mod trust;
mod whole;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_svid::{Revoked, TrustDomain};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{
    Authority, AuthorityChange, Counts, Edit, Grant, Issued, Live, Reason, Revocation, Store, StoreError,
    Trust,
};
use crate::keys::{self, KeyStore};
use crate::ledger::State;
use crate::lineage::{Lineage, LineageId};
use crate::metrics::Metrics;
use crate::token::{TokenHash, TokenRecord};
use ledger::Ledger;
use readers::Readers;
use thread::{Message, Thread, job};

pub use audit::{Audit, AuditError, Difference};
pub use backup::Seen;
pub use mark::MARK;
pub use order::{Answer, Order, OrderVerb};
pub use trust::JournalEntry;

/// The database's name within the state directory.
pub const DATABASE: &str = "ca.db";

/// In a state directory into which a backup is being put back, or was not to its end.
pub const UNFINISHED: &str = "restore.unfinished";

/// Calls that may wait; whoever comes later blocks, and the limits before the CA keep that short.
const QUEUE: usize = 1_024;
/// How long another process may hold the write lock.
const BUSY: Duration = Duration::from_secs(5);
/// Statements that are kept ready: a certificate takes a dozen, and parsing them anew takes as long as running them.
const STATEMENTS: usize = 64;
/// How long a probe may take: two waits for the lock, for it may come behind others, and a slow disk. Beyond it the disk hangs.
const PROBE: Duration = Duration::from_secs(15);

/// The store in a state directory.
pub struct Sqlite {
    path: PathBuf,
    trust_domain: TrustDomain,
    jobs: Mutex<Option<SyncSender<Message>>>,
    readers: Readers,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// The mark lags behind the database; the next commit writes it.
    mark_lags: AtomicBool,
    /// What is written through it belongs to several replicas, and this is not the process that may: it asks that one.
    asks: bool,
}

impl Sqlite {
    /// Opens the database of `td` in `directory`, which is created with mode 0700 if it does not exist, and refused if others may enter.
    ///
    /// What is written through it is recorded for the ledger, and comes into its files when a control plane runs.
    pub fn open(directory: &Path, td: &TrustDomain) -> Result<Self, StoreError> {
        let (path, connection) = prepared(directory, td)?;
        let asks = replica::is_shared(&connection)?;
        let mut store = Self::start(path, td, connection, None)?;
        store.asks = asks;
        Ok(store)
    }

    /// The same for the control plane, of which there is one at a time: it writes the ledger, in segments of at most `segment` bytes.
    pub fn open_with_ledger(
        directory: &Path,
        td: &TrustDomain,
        keys: &dyn KeyStore,
        metrics: Metrics,
        segment: u64,
        now: SystemTime,
    ) -> Result<Self, StoreError> {
        let (path, mut connection) = prepared(directory, td)?;
        let ledger = Ledger::open(&mut connection, &path, td, keys, metrics, segment, now)?;
        Self::start(path, td, connection, Some(ledger))
    }

    fn start(
        path: PathBuf,
        td: &TrustDomain,
        connection: Connection,
        ledger: Option<Ledger>,
    ) -> Result<Self, StoreError> {
        let (jobs, receiver) = sync_channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("ca-store".to_owned())
            .spawn({
                let thread = Thread { connection, path: path.clone(), ledger };
                move || thread.run(&receiver)
            })
            .map_err(|error| StoreError::File(format!("starting the store's thread: {error}")))?;
        let (jobs, writer) = (Mutex::new(Some(jobs)), Mutex::new(Some(writer)));
        let readers = Readers::new(&path);
        Ok(Self {
            path,
            trust_domain: td.clone(),
            jobs,
            readers,
            writer,
            mark_lags: AtomicBool::new(false),
            asks: false,
        })
    }

    /// Signs a head of the ledger, unless the newest covers it all. Nothing without a ledger.
    pub fn sign_head(&self, now: SystemTime) -> Result<(), StoreError> {
        let (answer, result) = sync_channel(1);
        self.send(Message::Head(now, answer))?;
        result.recv().map_err(|_| StoreError::Closed)?
    }

    /// How far the ledger has come, as far as the store knows; `None` if there is none yet.
    pub fn ledger(&self) -> Result<Option<State>, StoreError> {
        let td = self.trust_domain.clone();
        self.call(move |connection| outbox::state(connection, &td))
    }

    /// A number that changes when another process has written. Costs a look into shared memory, no lock.
    pub fn data_version(&self) -> Result<i64, StoreError> {
        let (answer, result) = sync_channel(1);
        // Asked of the connection that writes, for which its own writes are none of another process.
        self.send(Message::Look(Box::new(move |connection| {
            let version = connection.pragma_query_value(None, "data_version", |row| row.get(0));
            // Nobody waits any more: fine.
            let _ = answer.send(version.map_err(StoreError::from));
        })))?;
        result.recv().map_err(|_| StoreError::Closed)?
    }

    /// Reads as of one moment, beside whoever writes: it waits for no lock and no commit, and keeps nobody from theirs.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.jobs.lock().is_none() {
            return Err(StoreError::Closed);
        }
        self.readers.look(work)
    }

    /// Steps of the CAs' life after the one with this number, some at a time; for the highest number, the last one.
    pub fn journal(&self, after: u64) -> Result<Vec<JournalEntry>, StoreError> {
        self.call(move |connection| trust::journal(connection, after))
    }

    /// The latest time that the store has seen.
    pub fn seen(&self) -> Result<Option<SystemTime>, StoreError> {
        self.read(clock::seen)
    }

    /// Refuses a time that is before that of the newest record.
    pub fn check_back(&self, at: SystemTime) -> Result<(), StoreError> {
        self.read(|connection| clock::check_back(connection, at))
    }

    /// An operator says that this is the time, whatever the store has seen before. Gives what that was.
    pub fn confirm_clock(&self, now: SystemTime, reason: Reason) -> Result<Option<SystemTime>, StoreError> {
        let before = self.call(move |connection| clock::confirm(connection, now, &reason))?;
        self.note_progress();
        Ok(before)
    }

    /// Asks the control plane for a step; gives the number to look for its answer.
    pub fn add_order(&self, order: Order, at: SystemTime) -> Result<u64, StoreError> {
        self.call(move |connection| order::add(connection, &order, at))
    }

    /// The verb that gave an order still waits for its answer: without that an order is not carried out after some seconds. `false`
    /// if it is answered.
    pub fn keep_order(&self, order: u64, at: SystemTime) -> Result<bool, StoreError> {
        self.call(move |connection| order::waiting(connection, order, at))
    }

    /// Orders that somebody waits for, oldest first.
    pub fn open_orders(&self, now: SystemTime) -> Result<Vec<(u64, Order)>, StoreError> {
        self.read(move |connection| order::open(connection, now))
    }

    /// Says what became of an order.
    pub fn answer_order(&self, order: u64, answer: Answer, at: SystemTime) -> Result<(), StoreError> {
        self.call(move |connection| order::answer(connection, order, &answer, at))
    }

    /// What became of an order; `None` while it waits.
    pub fn answer_to(&self, order: u64) -> Result<Option<Answer>, StoreError> {
        self.call(move |connection| order::answer_to(connection, order))
    }

    /// Takes an order back; `false` if it was answered meanwhile.
    pub fn withdraw_order(&self, order: u64) -> Result<bool, StoreError> {
        self.call(move |connection| order::withdraw(connection, order))
    }

    /// Runs `work` in the writer's next transaction and waits for the commit. An error of its own undoes only its own changes.
    fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, result) = job(false, work);
        self.send(job)?;
        result.recv().map_err(|_| StoreError::Closed)?
    }

    /// As [`call`](Self::call), for what the ledger tells: the files have it when this returns.
    fn recorded<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, result) = job(true, work);
        self.send(job)?;
        result.recv().map_err(|_| StoreError::Closed)?
    }

    fn send(&self, message: Message) -> Result<(), StoreError> {
        let jobs = self.jobs.lock().clone().ok_or(StoreError::Closed)?;
        jobs.send(message).map_err(|_| StoreError::Closed)
    }

    /// As [`recorded`](Self::recorded), but waits for `limit` at most, and not at all for a place in a full queue. What was asked for
    /// may still happen later.
    fn recorded_within<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let jobs = self.jobs.lock().clone().ok_or(StoreError::Closed)?;
        let (job, result) = job(true, work);
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Slow,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })?;
        result.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => StoreError::Slow,
            RecvTimeoutError::Disconnected => StoreError::Closed,
        })?
    }

    /// Writes the mark after a commit. A failure is no failure of the commit, which has happened: told otherwise, the caller
    /// would go on from a state that the database has left. The next commit tries again.
    fn note_progress(&self) {
        let noted = self.remember();
        self.mark_lags.store(noted.is_err(), Ordering::Relaxed);
        if let Err(error) = noted {
            tracing::warn!(%error, "the store's mark was not written; the next commit tries again");
        }
    }

    /// Writes down how far the database has come, so that an older copy put in its place is noticed at the next start.
    pub fn remember(&self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let seen = self.call(mark::read)?;
        mark::write(&path, &seen)
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        if let Err(error) = self.remember() {
            tracing::warn!(%error, "the store's mark was not written");
        }
        self.readers.close();
        drop(self.jobs.lock().take());
        if let Some(writer) = self.writer.lock().take() {
            // A panic there has been reported by its own hook.
            let _ = writer.join();
        }
    }
}

impl Store for Sqlite {
    fn authorities(&self) -> Result<Vec<Authority>, StoreError> {
        self.read(|connection| rows::authorities(connection, &self.path))
    }

    fn change_authorities(&self, change: AuthorityChange) -> Result<(), StoreError> {
        self.recorded(move |connection| rows::change_authorities(connection, &change))?;
        self.note_progress();
        Ok(())
    }

    fn bundle_sequence(&self) -> Result<u64, StoreError> {
        self.call(|connection| schema::number(connection, "bundle_sequence"))
    }

    fn trust(&self) -> Result<Trust, StoreError> {
        self.read(|connection| trust::trust(connection, &self.path))
    }

    fn revoke(&self, entry: Revocation) -> Result<u64, StoreError> {
        if self.asks {
            let edited = self.ask(Edit::Revoke(entry))?;
            return edited.sequence.map_or_else(|| self.bundle_sequence(), Ok);
        }
        let path = self.path.clone();
        let sequence = self.recorded(move |connection| trust::revoke(connection, &path, &entry))?;
        self.note_progress();
        Ok(sequence)
    }

    fn allow_again(&self, entry: Revoked, reason: Reason, at: SystemTime) -> Result<Option<u64>, StoreError> {
        if self.asks {
            return Ok(self.ask(Edit::AllowAgain { entry, reason })?.sequence);
        }
        let allowed =
            self.recorded(move |connection| trust::allow_again(connection, &entry, reason.as_str(), at))?;
        self.note_progress();
        Ok(allowed)
    }

    fn end_revocations(&self, now: SystemTime) -> Result<Option<u64>, StoreError> {
        let path = self.path.clone();
        let ended = self.recorded(move |connection| trust::end_revocations(connection, &path, now))?;
        if ended.is_some() {
            self.note_progress();
        }
        Ok(ended)
    }

    fn taint(&self, label: String, reason: Reason, at: SystemTime) -> Result<bool, StoreError> {
        if self.asks {
            return Ok(self.ask(Edit::Taint { label, reason })?.is_new);
        }
        let noted = self.recorded(move |connection| trust::taint(connection, &label, reason.as_str(), at))?;
        self.note_progress();
        Ok(noted)
    }

    fn live(&self, now: SystemTime) -> Result<Vec<Live>, StoreError> {
        self.read(|connection| trust::live(connection, &self.path, now))
    }

    fn raise_bundle_sequence(&self, to: u64) -> Result<(), StoreError> {
        self.call(move |connection| {
            if schema::number(connection, "bundle_sequence")? >= to {
                return Err(StoreError::Conflict("the trust bundle's version never goes down"));
            }
            schema::set_number(connection, "bundle_sequence", to)
        })?;
        self.note_progress();
        Ok(())
    }

    fn add_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        if self.asks {
            return self.ask(Edit::Token(token)).map(drop);
        }
        self.recorded(move |connection| rows::add_token(connection, &token))
    }

    fn token(&self, hash: TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        self.read(|connection| rows::token(connection, &self.path, hash))
    }

    fn certificate(&self, serial: &[u8]) -> Result<Option<(Issued, Lineage)>, StoreError> {
        self.read(|connection| {
            let path = &self.path;
            let Some(issued) = rows::certificate(connection, path, serial)? else { return Ok(None) };
            let lineage = rows::lineage(connection, path, issued.lineage)?;
            let none = || StoreError::Damaged(path.clone(), "a certificate has no lineage".to_owned());
            Ok(Some((issued, lineage.ok_or_else(none)?)))
        })
    }

    fn lineage(&self, id: LineageId) -> Result<Option<Lineage>, StoreError> {
        self.read(|connection| rows::lineage(connection, &self.path, id))
    }

    fn key_owner(&self, key: [u8; 32]) -> Result<Option<Issued>, StoreError> {
        self.read(|connection| rows::key_owner(connection, &self.path, key))
    }

    fn record(&self, issued: Issued, grant: Grant) -> Result<(), StoreError> {
        self.recorded(move |connection| rows::record(connection, &issued, &grant))?;
        if self.mark_lags.load(Ordering::Relaxed) {
            self.note_progress();
        }
        Ok(())
    }

    fn mark_forked(&self, lineage: LineageId, at: SystemTime) -> Result<(), StoreError> {
        let path = self.path.clone();
        self.recorded(move |connection| rows::mark_forked(connection, &path, lineage, at))
    }

    fn is_settled(&self) -> Result<(), StoreError> {
        self.recorded(|_| Ok(()))
    }

    fn valid_certificates(
        &self,
        now: SystemTime,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<Issued>, StoreError> {
        self.read(|connection| rows::valid_certificates(connection, &self.path, now, after, limit))
    }

    fn last_issued(&self) -> Result<Option<SystemTime>, StoreError> {
        self.call(|connection| {
            let ms = schema::number(connection, "last_issued_ms")?;
            Ok((ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(ms)))
        })
    }

    fn counts(&self, now: SystemTime) -> Result<Counts, StoreError> {
        self.read(|connection| rows::counts(connection, now))
    }

    fn prune(&self, before: SystemTime) -> Result<u64, StoreError> {
        self.call(move |connection| rows::prune(connection, before))
    }

    fn probe(&self, now: SystemTime) -> Result<(), StoreError> {
        let ms = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let ms = u64::try_from(ms).unwrap_or(u64::MAX);
        self.recorded_within(PROBE, move |connection| {
            clock::believe(connection, now)?;
            schema::set_number(connection, "probed_ms", ms)
        })
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked,
            _ => Self::Database(error.to_string()),
        }
    }
}

fn connect(directory: &Path) -> Result<(PathBuf, Connection), StoreError> {
    let file = |error: keys::KeyError| StoreError::File(error.to_string());
    keys::private_dir(directory).map_err(file)?;
    let path = directory.join(DATABASE);
    let io = |error: io::Error| StoreError::File(format!("{}: {error}", path.display()));
    // Made here and not by SQLite, whose files take the umask; its journal files inherit this one's mode.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(&path)
        .map_err(io)?;
    let found = opened.metadata().map_err(io)?;
    keys::check_owner_and_mode(&path, &found, "600").map_err(file)?;
    drop(opened);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags)?;
    connection.busy_timeout(BUSY)?;
    schema::keep_plans(&connection)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok((path, connection))
}

fn prepared(directory: &Path, td: &TrustDomain) -> Result<(PathBuf, Connection), StoreError> {
    crate::backup::check_finished(directory)?;
    let (path, connection) = connect(directory)?;
    let io = |error| StoreError::File(format!("{}: {error}", path.display()));
    if let Err(detail) = whole::check(&path).map_err(io)? {
        return Err(StoreError::Damaged(path, detail));
    }
    schema::prepare(&connection, &path, td)?;
    mark::check(&connection, &path)?;
    Ok((path, connection))
}

#[cfg(test)]
mod tests;
