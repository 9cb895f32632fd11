//! The store in one SQLite file.
//!
//! One thread owns the connection. It takes all calls that wait, up to [`BATCH`], into one transaction, so that many certificates
//! share one fsync, and answers each only after the commit. WAL with `synchronous=FULL`: a commit is on the disk before
//! its call returns. Other processes (`postern ca token create`) may write meanwhile.

mod mark;
mod rows;
mod schema;

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_svid::TrustDomain;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::{Authority, AuthorityChange, Counts, Grant, Issued, Store, StoreError};
use crate::keys;
use crate::lineage::{Lineage, LineageId};
use crate::token::{TokenHash, TokenRecord};

/// The database's name within the state directory.
pub const DATABASE: &str = "ca.db";

/// Calls that share one commit.
const BATCH: usize = 64;
/// Calls that may wait; whoever comes later blocks, and the limits before the CA keep that short.
const QUEUE: usize = 1_024;
/// How long another process may hold the write lock.
const BUSY: Duration = Duration::from_secs(5);
/// How long a probe may take: two waits for the lock, for it may come behind others, and a slow disk. Beyond it the disk hangs.
const PROBE: Duration = Duration::from_secs(15);

/// The store in a state directory.
pub struct Sqlite {
    path: PathBuf,
    jobs: Mutex<Option<SyncSender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// The mark lags behind the database; the next commit writes it.
    mark_lags: AtomicBool,
}

impl Sqlite {
    /// Opens the database of `td` in `directory`, which is created with mode 0700 if it does not exist, and refused if others may enter.
    pub fn open(directory: &Path, td: &TrustDomain) -> Result<Self, StoreError> {
        let (path, connection) = connect(directory)?;
        schema::prepare(&connection, &path, td)?;
        mark::check(&connection, &path)?;
        let (jobs, receiver) = sync_channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("ca-store".to_owned())
            .spawn({
                let path = path.clone();
                move || write(connection, &path, &receiver)
            })
            .map_err(|error| StoreError::File(format!("starting the store's thread: {error}")))?;
        let (jobs, writer) = (Mutex::new(Some(jobs)), Mutex::new(Some(writer)));
        Ok(Self { path, jobs, writer, mark_lags: AtomicBool::new(false) })
    }

    /// Runs `work` in the writer's next transaction and waits for the commit. An error of its own undoes only its own changes.
    fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let jobs = self.jobs.lock().clone().ok_or(StoreError::Closed)?;
        let (job, result) = job(work);
        jobs.send(job).map_err(|_| StoreError::Closed)?;
        result.recv().map_err(|_| StoreError::Closed)?
    }

    /// As [`call`](Self::call), but waits for `limit` at most, and not at all for a place in a full queue. What was asked for
    /// may still happen later.
    fn call_within<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let jobs = self.jobs.lock().clone().ok_or(StoreError::Closed)?;
        let (job, result) = job(work);
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
        drop(self.jobs.lock().take());
        if let Some(writer) = self.writer.lock().take() {
            // A panic there has been reported by its own hook.
            let _ = writer.join();
        }
    }
}

impl Store for Sqlite {
    fn authorities(&self) -> Result<Vec<Authority>, StoreError> {
        let path = self.path.clone();
        self.call(move |connection| rows::authorities(connection, &path))
    }

    fn change_authorities(&self, change: AuthorityChange) -> Result<(), StoreError> {
        self.call(move |connection| rows::change_authorities(connection, &change))?;
        self.note_progress();
        Ok(())
    }

    fn bundle_sequence(&self) -> Result<u64, StoreError> {
        self.call(|connection| schema::number(connection, "bundle_sequence"))
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
        self.call(move |connection| rows::add_token(connection, &token))
    }

    fn token(&self, hash: TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        let path = self.path.clone();
        self.call(move |connection| rows::token(connection, &path, hash))
    }

    fn certificate(&self, serial: &[u8]) -> Result<Option<(Issued, Lineage)>, StoreError> {
        let (path, serial) = (self.path.clone(), serial.to_owned());
        self.call(move |connection| {
            let Some(issued) = rows::certificate(connection, &path, &serial)? else { return Ok(None) };
            let lineage = rows::lineage(connection, &path, issued.lineage)?;
            let lineage = lineage
                .ok_or_else(|| StoreError::Damaged(path, "a certificate has no lineage".to_owned()))?;
            Ok(Some((issued, lineage)))
        })
    }

    fn lineage(&self, id: LineageId) -> Result<Option<Lineage>, StoreError> {
        let path = self.path.clone();
        self.call(move |connection| rows::lineage(connection, &path, id))
    }

    fn key_owner(&self, key: [u8; 32]) -> Result<Option<Issued>, StoreError> {
        let path = self.path.clone();
        self.call(move |connection| rows::key_owner(connection, &path, key))
    }

    fn record(&self, issued: Issued, grant: Grant) -> Result<(), StoreError> {
        self.call(move |connection| rows::record(connection, &issued, &grant))?;
        if self.mark_lags.load(Ordering::Relaxed) {
            self.note_progress();
        }
        Ok(())
    }

    fn mark_forked(&self, lineage: LineageId, at: SystemTime) -> Result<(), StoreError> {
        self.call(move |connection| rows::mark_forked(connection, lineage, at))
    }

    fn valid_certificates(
        &self,
        now: SystemTime,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<Issued>, StoreError> {
        let (path, after) = (self.path.clone(), after.to_owned());
        self.call(move |connection| rows::valid_certificates(connection, &path, now, &after, limit))
    }

    fn last_issued(&self) -> Result<Option<SystemTime>, StoreError> {
        self.call(|connection| {
            let ms = schema::number(connection, "last_issued_ms")?;
            Ok((ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(ms)))
        })
    }

    fn counts(&self, now: SystemTime) -> Result<Counts, StoreError> {
        self.call(move |connection| rows::counts(connection, now))
    }

    fn prune(&self, before: SystemTime) -> Result<u64, StoreError> {
        self.call(move |connection| rows::prune(connection, before))
    }

    fn probe(&self, now: SystemTime) -> Result<(), StoreError> {
        let ms = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let ms = u64::try_from(ms).unwrap_or(u64::MAX);
        self.call_within(PROBE, move |connection| schema::set_number(connection, "probed_ms", ms))
    }
}

/// Told whether the transaction that the work was part of is durable.
type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Does the work, or learns why it cannot be done; says whether its changes are to stay.
type Job = Box<dyn FnOnce(Result<&Connection, StoreError>) -> (bool, Finish) + Send>;

/// A job for `work`, and where its result comes out.
fn job<T: Send + 'static>(
    work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
) -> (Job, Receiver<Result<T, StoreError>>) {
    let (answer, result) = sync_channel(1);
    let job: Job = Box::new(move |connection| {
        let result = connection.and_then(work);
        let worked = result.is_ok();
        let finish = move |committed: Result<(), StoreError>| {
            // Nobody waits any more: fine, it is committed or it is not.
            let _ = answer.send(committed.and(result));
        };
        (worked, Box::new(finish))
    });
    (job, result)
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
    Ok((path, connection))
}

fn write(mut connection: Connection, path: &Path, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut waiting = VecDeque::from([first]);
        while waiting.len() < BATCH
            && let Ok(next) = jobs.try_recv()
        {
            waiting.push_back(next);
        }
        let mut finishes = Vec::with_capacity(waiting.len());
        let committed = batch(&mut connection, &mut waiting, &mut finishes);
        if let Err(error) = &committed {
            tracing::error!(database = %path.display(), %error, "writing the CA's store failed");
            // Whoever was not reached is owed the reason too; a dropped job would look like a closed store.
            finishes.extend(waiting.into_iter().map(|job| job(Err(error.clone())).1));
        }
        for finish in finishes {
            finish(committed.clone());
        }
    }
}

/// Does the jobs in one transaction. After an error `jobs` holds those that were not begun.
fn batch(
    connection: &mut Connection,
    jobs: &mut VecDeque<Job>,
    finishes: &mut Vec<Finish>,
) -> Result<(), StoreError> {
    // Immediate: a read that turns into a write later could fail for a lock that nobody waits for.
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    while !jobs.is_empty() {
        let mut savepoint = transaction.savepoint()?;
        let Some(job) = jobs.pop_front() else { break };
        let (worked, finish) = job(Ok(&savepoint));
        finishes.push(finish);
        if worked {
            savepoint.commit()?;
        } else {
            savepoint.rollback()?;
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests;
