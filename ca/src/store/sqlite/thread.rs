//! The thread that owns the connection: what waits shares one transaction, one commit and one sync of the ledger.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::SystemTime;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;
use super::ledger::Ledger;

/// Calls that share one commit.
const BATCH: usize = 64;

/// Told whether the transaction that the work was part of is durable.
type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Does the work, or learns why it cannot be done; says whether its changes are to stay.
type Run = Box<dyn FnOnce(Result<&Connection, StoreError>) -> (bool, Finish) + Send>;

/// Reads, and answers by itself.
type Look = Box<dyn FnOnce(&Connection) + Send>;

/// Work for the next transaction.
pub(super) struct Job {
    /// Whether it depends on the ledger: refused while that cannot be written, answered after it was.
    pub(super) is_recorded: bool,
    run: Run,
}

/// What the thread is asked for.
pub(super) enum Message {
    Work(Job),
    /// Sign a head of the ledger.
    Head(SystemTime, SyncSender<Result<(), StoreError>>),
    /// A look that takes no lock and waits for no commit.
    Look(Look),
}

/// A job for `work`, and where its result comes out.
pub(super) fn job<T: Send + 'static>(
    is_recorded: bool,
    work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
) -> (Message, Receiver<Result<T, StoreError>>) {
    let (answer, result) = sync_channel(1);
    let run: Run = Box::new(move |connection| {
        let result = connection.and_then(work);
        let worked = result.is_ok();
        let finish = move |committed: Result<(), StoreError>| {
            // Nobody waits any more: fine, it is committed or it is not.
            let _ = answer.send(committed.and(result));
        };
        (worked, Box::new(finish))
    });
    (Message::Work(Job { is_recorded, run }), result)
}

/// The thread's own.
pub(super) struct Thread {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    pub(super) ledger: Option<Ledger>,
}

impl Thread {
    /// Until nobody can ask any more.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            let (mut jobs, mut heads) = (VecDeque::new(), Vec::new());
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Work(job) => jobs.push_back(job),
                    Message::Head(at, answer) => heads.push((at, answer)),
                    Message::Look(look) => look(&self.connection),
                }
                next = if jobs.len() < BATCH { messages.try_recv().ok() } else { None };
            }
            if !jobs.is_empty() {
                self.serve(jobs);
            }
            for (at, answer) in heads {
                let Self { connection, ledger, .. } = &mut self;
                let signed = ledger.as_mut().map_or(Ok(()), |ledger| ledger.head(connection, at));
                let _ = answer.send(signed);
            }
        }
    }

    fn serve(&mut self, mut jobs: VecDeque<Job>) {
        let Self { connection, path, ledger } = self;
        // What an earlier sync left over comes first: the store may be ahead of the ledger by one batch, not by more.
        let blocked = ledger.as_mut().and_then(|ledger| ledger.retry(connection));
        let mut finishes = Vec::with_capacity(jobs.len());
        let committed = batch(connection, &mut jobs, &mut finishes, ledger.as_mut(), blocked.as_ref());
        if let Err(error) = &committed {
            tracing::error!(database = %path.display(), %error, "writing the CA's store failed");
            // Whoever was not reached is owed the reason too; a dropped job would look like a closed store.
            finishes.extend(jobs.into_iter().map(|job| (job.is_recorded, (job.run)(Err(error.clone())).1)));
        }
        let settled = match ledger {
            Some(ledger) if committed.is_ok() && blocked.is_none() => ledger.settle(connection),
            _ => Ok(()),
        };
        for (is_recorded, finish) in finishes {
            let settled = if is_recorded { settled.clone() } else { Ok(()) };
            finish(committed.clone().and(settled));
        }
    }
}

/// Does the jobs in one transaction. After an error `jobs` holds those that were not begun.
fn batch(
    connection: &mut Connection,
    jobs: &mut VecDeque<Job>,
    finishes: &mut Vec<(bool, Finish)>,
    mut ledger: Option<&mut Ledger>,
    blocked: Option<&StoreError>,
) -> Result<(), StoreError> {
    // Immediate: a read that turns into a write later could fail for a lock that nobody waits for.
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Only beside other writes: a batch that reads costs no sync.
    let trims = jobs.iter().any(|job| job.is_recorded);
    if let Some(ledger) = ledger.as_mut().filter(|_| trims) {
        ledger.trim(&transaction)?;
    }
    while !jobs.is_empty() {
        let mut savepoint = transaction.savepoint()?;
        let Some(job) = jobs.pop_front() else { break };
        let may = match blocked {
            Some(error) if job.is_recorded => Err(error.clone()),
            _ => Ok(&*savepoint),
        };
        let (worked, finish) = (job.run)(may);
        finishes.push((job.is_recorded, finish));
        if worked {
            savepoint.commit()?;
        } else {
            savepoint.rollback()?;
        }
    }
    transaction.commit()?;
    if let Some(ledger) = ledger.filter(|_| trims) {
        ledger.trimmed();
    }
    Ok(())
}
