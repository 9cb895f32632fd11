//! The store's side of the ledger: what waits in the outbox goes into the files, and heads are signed.

use std::path::Path;
use std::time::{Duration, SystemTime};

use postern_svid::TrustDomain;
use rusqlite::{Connection, TransactionBehavior};

use super::{StoreError, outbox};
use crate::keys::KeyStore;
use crate::ledger::{self, LedgerError, Signer, Writer};
use crate::metrics::Metrics;

/// Records that are written and synced at a time.
const CHUNK: u32 = 256;
/// How long a head waits for another process that holds the database.
const PATIENCE: Duration = Duration::from_millis(100);

/// The ledger of a control plane.
pub(super) struct Ledger {
    writer: Writer,
    /// Records that the outbox need not hold any more, and does not.
    trimmed: u64,
    /// Records that the newest head covers.
    covered: u64,
    /// Why the files lag behind the store. Until that is mended nothing is issued.
    failed: Option<StoreError>,
}

impl From<LedgerError> for StoreError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error.to_string())
    }
}

impl Ledger {
    /// Takes up the ledger beside the database, or begins it, and brings it up to the store. What the store did before it began
    /// is imported; a row that came without a record since is nobody's who keeps to it, and is refused.
    pub(super) fn open(
        connection: &mut Connection,
        database: &Path,
        td: &TrustDomain,
        keys: &dyn KeyStore,
        metrics: Metrics,
        segment: u64,
        now: SystemTime,
    ) -> Result<Self, StoreError> {
        let directory = &database.with_file_name(ledger::DIRECTORY);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // With a key it has been in use, and with it all that there was was imported.
        let mut used = outbox::state(&transaction, td)?.filter(|state| state.key.is_some());
        if used.is_some()
            && is_gone(directory, keys)?
            && let Some(lost) = used.take()
        {
            // Both the files and the key: nobody loses them by accident.
            outbox::begin_again(&transaction, now, &lost)?;
            tracing::warn!(
                records = lost.size,
                "the ledger and its key were taken away: another one begins, and its first record names the old one"
            );
        }
        outbox::begin(&transaction, now)?;
        let imported = outbox::import(&transaction, database, now)?;
        if used.is_some() && imported > 0 {
            let what = format!(
                "it holds {imported} row(s) of which no record of its ledger tells, so somebody else wrote them; \
                 postern ca ledger verify names them (docs/ledger.md, \"When the database differs\")"
            );
            return Err(StoreError::Damaged(database.to_owned(), what));
        }
        transaction.commit()?;
        if imported > 0 {
            tracing::info!(imported, "what was issued without a ledger is in it now");
        }

        let none = || StoreError::Damaged(database.to_owned(), "it has no ledger".to_owned());
        let mut state = outbox::state(connection, td)?.ok_or_else(none)?;
        let signer = Signer::open(keys, state.identity.clone(), state.key)?;
        if state.key.is_none() {
            outbox::set_key(connection, signer.public())?;
            state.key = Some(signer.public());
        }
        let body = |sequence| outbox::bodies(connection, sequence, 1).ok()?.pop();
        let writer = Writer::open(directory, signer, segment, metrics, &state, body)?;
        let mut ledger = Self { writer, trimmed: state.waiting, covered: 0, failed: None };
        ledger.settle(connection)?;
        Ok(ledger)
    }

    /// Writes what waits in the outbox, durably.
    pub(super) fn settle(&mut self, connection: &Connection) -> Result<(), StoreError> {
        let settled = self.write(connection);
        if let Err(error) = &settled
            && self.failed.is_none()
        {
            tracing::error!(%error, "the ledger cannot be written; nothing is issued until it can");
        }
        self.failed = settled.clone().err();
        settled
    }

    fn write(&mut self, connection: &Connection) -> Result<(), StoreError> {
        loop {
            let bodies = outbox::bodies(connection, self.writer.size(), CHUNK)?;
            if bodies.is_empty() {
                return Ok(());
            }
            self.writer.append(&bodies)?;
        }
    }

    /// After a failure, tries again; what still stands in the way.
    pub(super) fn retry(&mut self, connection: &Connection) -> Option<StoreError> {
        self.failed.as_ref()?;
        let tried = self.writer.reserve().map_err(StoreError::from).and_then(|()| self.write(connection));
        if tried.is_ok() {
            tracing::info!("the ledger can be written again");
        }
        self.failed = tried.err();
        self.failed.clone()
    }

    /// Within a transaction that writes: forgets what is durable in the files.
    pub(super) fn trim(&mut self, connection: &Connection) -> Result<(), StoreError> {
        if self.trimmed < self.writer.size() {
            outbox::trim(connection, self.writer.size())?;
        }
        Ok(())
    }

    /// That transaction is committed.
    pub(super) fn trimmed(&mut self) {
        self.trimmed = self.writer.size();
    }

    /// Signs a head of what is durable, unless the newest covers it, and keeps it in the store. Makes sure of room, too.
    pub(super) fn head(&mut self, connection: &mut Connection, now: SystemTime) -> Result<(), StoreError> {
        self.settle(connection)?;
        if let Err(error) = self.writer.reserve() {
            self.failed = Some(error.into());
            return self.failed.clone().map_or(Ok(()), Err);
        }
        let size = self.writer.size();
        if size == self.covered {
            return Ok(());
        }
        let head = self.writer.head(ledger::ms(now))?;
        // Requests wait behind this: if somebody else holds the database, the next head will do.
        connection.busy_timeout(PATIENCE)?;
        let kept = self.keep(connection, &head);
        connection.busy_timeout(super::BUSY)?;
        kept?;
        self.covered = size;
        Ok(())
    }

    fn keep(&mut self, connection: &mut Connection, head: &str) -> Result<(), StoreError> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        outbox::set_head(&transaction, head)?;
        self.trim(&transaction)?;
        transaction.commit()?;
        self.trimmed();
        Ok(())
    }
}

fn is_gone(directory: &Path, keys: &dyn KeyStore) -> Result<bool, LedgerError> {
    let key = keys.names()?.iter().any(|name| name == ledger::KEY);
    match ledger::segments(directory) {
        Err(LedgerError::None(_)) => Ok(!key),
        Ok(_) => Ok(false),
        Err(error) => Err(error),
    }
}
