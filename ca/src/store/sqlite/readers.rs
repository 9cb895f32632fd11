//! Connections that read beside the one that writes: with SQLite's write-ahead log they see the last commit and wait for no
//! other, so that a look at a lineage does not queue behind the syncs of certificates that are being written.

use std::path::{Path, PathBuf};

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, OpenFlags};

use super::schema;
use super::{BUSY, StoreError};

/// Readers at a time: each takes two descriptors, and a look takes some tens of microseconds.
const MOST: usize = 8;

/// The readers of a database.
pub(super) struct Readers {
    path: PathBuf,
    pool: Mutex<Pool>,
    freed: Condvar,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    /// Handed out now.
    out: usize,
}

impl Readers {
    /// Of a database that is prepared.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), pool: Mutex::default(), freed: Condvar::new() }
    }

    /// Looks as of one moment.
    pub(super) fn look<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let reader = Reader { readers: self, connection: Some(self.take()?) };
        let connection = reader.connection.as_ref().ok_or(StoreError::Closed)?;
        let transaction = connection.unchecked_transaction()?;
        work(&transaction)
    }

    /// Closes what is idle: the connection that writes has to be the last to go, for it clears the log away.
    pub(super) fn close(&self) {
        self.pool.lock().idle.clear();
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let mut pool = self.pool.lock();
        while pool.out >= MOST {
            self.freed.wait(&mut pool);
        }
        pool.out += 1;
        if let Some(connection) = pool.idle.pop() {
            return Ok(connection);
        }
        drop(pool);
        open(&self.path).inspect_err(|_| self.gone(None))
    }

    fn gone(&self, connection: Option<Connection>) {
        let mut pool = self.pool.lock();
        pool.out -= 1;
        pool.idle.extend(connection);
        drop(pool);
        self.freed.notify_one();
    }
}

/// One that is handed out; it comes back even if the look panics.
struct Reader<'a> {
    readers: &'a Readers,
    connection: Option<Connection>,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.readers.gone(self.connection.take());
    }
}

/// A connection that cannot write.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    schema::keep_plans(&connection)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}
