//! What operators ask of the one who loads documents, and what they are answered.

use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::opening::Opening;

/// Commands that wait their turn; operators are few.
const WAITING: usize = 16;

/// What an operator may ask for.
#[derive(Clone, Debug)]
pub enum Command {
    /// An earlier generation's documents, in force until `Resume`; without a number, the last that were other ones.
    Rollback(Option<u64>),
    /// Follow the directory again.
    Resume,
    /// Break the glass.
    Open(Opening),
    /// Mend it: the one of this name, or all.
    Close(Option<String>),
}

/// What was done.
#[derive(Clone, Debug)]
pub enum Done {
    /// Documents of an earlier generation are in force.
    RolledBack {
        /// The number under which.
        generation: u64,
        /// The number that they had.
        to: u64,
    },
    /// The directory was read again.
    Resumed {
        /// What is in force now.
        generation: u64,
        /// Whether that comes from the directory; its own set may be refused.
        is_followed: bool,
    },
    /// Glass is broken.
    Opened {
        /// The document's name.
        name: String,
        /// When it ends.
        until: SystemTime,
        /// The generation that says so.
        generation: u64,
    },
    /// Glass is mended.
    Closed {
        /// The generation without it.
        generation: u64,
    },
}

/// Why a command is not obeyed.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// It is wrong.
    Bad(String),
    /// What it names is not there.
    Unknown(String),
    /// As things stand it cannot be done.
    Conflict(String),
}

pub(super) type Asked = (Command, oneshot::Sender<Result<Done, Refusal>>);

/// Where operators ask, and the loader hears them.
#[derive(Debug)]
pub struct Steering {
    asking: mpsc::Sender<Asked>,
    asked: Mutex<Option<mpsc::Receiver<Asked>>>,
}

impl Default for Steering {
    fn default() -> Self {
        let (asking, asked) = mpsc::channel(WAITING);
        Self { asking, asked: Mutex::new(Some(asked)) }
    }
}

impl Steering {
    /// Asks for something, and waits until it is done.
    pub async fn ask(&self, command: Command) -> Result<Done, Refusal> {
        let gone = || Refusal::Conflict("the sidecar is leaving, or has not begun".to_owned());
        let (answer, answered) = oneshot::channel();
        self.asking.try_send((command, answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::Conflict("too many commands are waiting".to_owned())
            }
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    pub(super) fn commands(&self) -> Commands {
        Commands { asked: self.asked.lock().take(), again: false, resumed: Vec::new() }
    }
}

/// The loader's end.
#[derive(Debug)]
pub(super) struct Commands {
    asked: Option<mpsc::Receiver<Asked>>,
    pub(super) again: bool,
    /// Those who wait for the directory to have been read once more.
    pub(super) resumed: Vec<oneshot::Sender<Result<Done, Refusal>>>,
}

impl Commands {
    /// The next one; may be dropped and asked for again.
    pub(super) async fn next(&mut self) -> Asked {
        match &mut self.asked {
            Some(asked) => match asked.recv().await {
                Some(next) => next,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Has the directory read once more at once.
    pub(super) fn again(&mut self) {
        self.again = true;
    }
}
