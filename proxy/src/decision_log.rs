//! The decision log: one JSON object a line, for tools that count, search and replay. `docs/decision-log.md` is the schema.
//!
//! A request pays for a sampled line with a few counters and a place in a bounded queue. A thread of its own makes the
//! lines and writes them: a disk that is slow or full costs lines, which are counted, and never a request.

mod line;
mod sink;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use postern_policy::{Generation, Verdict};

use crate::config::DecisionLogConfig;
use crate::connections::Entry;
use crate::decisions::{DecisionId, Unasked};
use crate::runtime;
use crate::sidecar::Sidecar;
use line::Lines;
use sink::Sink;

/// Notes that wait, and what they may hold in all: a burst fits, and a flood takes no memory.
const QUEUE: usize = 2_048;
const QUEUE_BYTES: usize = 4 << 20;
/// How long the end of the sidecar waits for what is queued.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is to be written.
#[derive(Debug)]
pub enum Note {
    /// A decision.
    Decision {
        /// Its id.
        id: DecisionId,
        /// When.
        at: SystemTime,
        /// About what.
        entry: Arc<Entry>,
        /// The answer; `None` if no rule was asked.
        verdict: Option<Verdict>,
        /// Why none was.
        without: Option<Unasked>,
        /// Who answered.
        generation: Option<Arc<Generation>>,
    },
    /// The end of what was allowed.
    End {
        /// The decision's id.
        id: DecisionId,
        /// When.
        at: SystemTime,
        /// 0 for none.
        status: u16,
        /// Since it began.
        lasted: Duration,
        /// Of the response.
        bytes: u64,
        /// How it ended.
        outcome: &'static str,
    },
    /// Whoever sent this wants to know when all before it is written.
    Flush(SyncSender<()>),
}

/// The requests' end of the log.
#[derive(Debug)]
pub struct DecisionLogger {
    queue: SyncSender<Note>,
    waiting: Mutex<Option<Receiver<Note>>>,
    queued: Arc<AtomicUsize>,
    allow: Part,
    deny: Part,
}

/// A part of all ids.
#[derive(Clone, Copy, Debug)]
struct Part(f64);

impl Part {
    fn has(self, id: DecisionId) -> bool {
        // Both ends exactly: a float cannot hold the largest number.
        self.0 >= 1.0 || (id.spread() as f64) < self.0 * (u64::MAX as f64)
    }
}

impl DecisionLogger {
    /// A log that nobody writes yet.
    pub fn new(config: &DecisionLogConfig) -> Self {
        let (queue, waiting) = sync_channel(QUEUE);
        Self {
            queue,
            waiting: Mutex::new(Some(waiting)),
            queued: Arc::default(),
            allow: Part(config.allow),
            deny: Part(config.deny),
        }
    }

    /// Whether the decision of this id is one of those that are written: always the same answer for an id.
    pub fn samples(&self, id: DecisionId, allowed: bool) -> bool {
        if allowed { self.allow.has(id) } else { self.deny.has(id) }
    }

    /// Takes a note if there is room, and says whether there was.
    pub fn offer(&self, note: Note) -> bool {
        let bytes = weight(&note);
        if self.queued.fetch_add(bytes, Ordering::Relaxed) + bytes <= QUEUE_BYTES
            && self.queue.try_send(note).is_ok()
        {
            return true;
        }
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        false
    }

    /// Waits a moment for what is queued to be written. Blocks.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        let mut note = Note::Flush(done);
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            match self.queue.try_send(note) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => {
                    note = back;
                    std::thread::yield_now();
                }
                Err(_) => return,
            }
        }
        let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// What a note holds on to.
fn weight(note: &Note) -> usize {
    match note {
        Note::Decision { entry, .. } => 512 + entry.facts.weight(),
        Note::End { .. } => 64,
        // Not taken by `offer`, which counts.
        Note::Flush(_) => 0,
    }
}

/// Starts the thread that writes, if decisions are logged.
pub fn start(sidecar: &Arc<Sidecar>) -> std::io::Result<()> {
    let (Some(logger), Some(config)) = (&sidecar.decision_log, &sidecar.config.decision_log) else {
        return Ok(());
    };
    let Some(notes) = logger.waiting.lock().take() else { return Ok(()) };
    let (sidecar, config, queued) = (Arc::clone(sidecar), config.clone(), Arc::clone(&logger.queued));
    // A runtime of its own that nothing runs on: whoever waits for a disk must not hold up a worker.
    let thread =
        runtime::thread("decision-log", move || async move { write(&sidecar, &config, &notes, &queued) });
    thread.map(drop)
}

fn write(sidecar: &Sidecar, config: &DecisionLogConfig, notes: &Receiver<Note>, queued: &AtomicUsize) {
    let mut sink = Sink::new(config);
    let lines = Lines::new(config, sidecar.config.identity.as_str());
    let mut budget = Budget::new(config.max_bytes_per_second);
    let mut dropped = 0_u64;
    loop {
        let note = match notes.recv_timeout(Duration::from_secs(1)) {
            Ok(note) => note,
            Err(RecvTimeoutError::Timeout) => {
                sink.flush();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        queued.fetch_sub(weight(&note), Ordering::Relaxed);
        let is_denial = match note {
            Note::Flush(done) => {
                sink.flush();
                let _ = done.send(());
                continue;
            }
            Note::Decision { verdict, .. } => !verdict.is_some_and(|verdict| verdict.is_allowed()),
            Note::End { .. } => false,
        };
        let reason = if budget.has_room(is_denial) {
            // What was lost is told before what comes next, or that is lost as well.
            let told = if dropped == 0 {
                Ok(())
            } else {
                sink.write(lines.dropped(sidecar.clock.wall(), dropped).as_bytes()).map(|()| dropped = 0)
            };
            let written = told.and_then(|()| {
                let line = lines.of(&note, sidecar);
                budget.spend(line.len(), is_denial);
                sink.write(line.as_bytes())
            });
            match written {
                Ok(()) => {
                    sidecar.metrics.decision_lines.inc();
                    continue;
                }
                Err(_) => crate::observe::metrics::Dropped::Write,
            }
        } else {
            crate::observe::metrics::Dropped::Rate
        };
        dropped += 1;
        sidecar.metrics.decision_dropped[reason as usize].inc();
    }
}

/// Bytes that may be written, a second's worth at once. Denials, which anybody can cause, leave a quarter to the rest.
struct Budget {
    rate: f64,
    all: f64,
    denials: f64,
    told: Instant,
}

impl Budget {
    fn new(rate: u64) -> Self {
        let rate = rate as f64;
        Self { rate, all: rate, denials: rate * 0.75, told: Instant::now() }
    }

    fn has_room(&mut self, is_denial: bool) -> bool {
        let now = Instant::now();
        let earned = now.duration_since(self.told).as_secs_f64() * self.rate;
        self.told = now;
        self.all = (self.all + earned).min(self.rate);
        self.denials = (self.denials + earned * 0.75).min(self.rate * 0.75);
        self.all > 0.0 && (!is_denial || self.denials > 0.0)
    }

    /// May go into debt by one line.
    fn spend(&mut self, bytes: usize, is_denial: bool) {
        self.all -= bytes as f64;
        if is_denial {
            self.denials -= bytes as f64;
        }
    }
}

#[cfg(all(test, not(feature = "sim")))]
mod tests;
