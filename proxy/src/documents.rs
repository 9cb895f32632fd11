//! The directory of documents: watched, read as one set, loaded whole or not at all, published, and judged again.
//!
//! Editors write in place, tools rename, Kubernetes swaps the symbolic link `..data`. So events only say *when* to look;
//! what is there is told by reading, and by reading it twice until two readings agree. A slow poll reads everything and
//! backs the events up, because a watch on a directory that is replaced goes silent.

use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_policy::{Diagnostics, Generation};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::rejudge;
use crate::sidecar::Sidecar;
use commands::Commands;
use compiler::{Compiler, Loaded};
use keeper::{Disk, Keeper, OVERDUE, Set as ToKeep};
use opening::Overlays;
use read::{Readings, digest};
use steer::Event;
use store::{Store, Stored};
use watched::Watched;

mod commands;
mod compiler;
pub mod glass;
mod history;
mod keeper;
pub mod opening;
mod read;
pub mod stale;
mod steer;
mod store;
mod warnings;
mod watched;

pub use commands::{Command, Done, Refusal, Steering};
pub(crate) use compiler::scope;
pub use history::{History, Moment, Origin, Pin, Refused, Remembered, Set};
pub use read::read_directory;

/// Events come in bursts; after the first, this much quiet is waited for, but never long.
const QUIET: Duration = Duration::from_millis(10);
const AT_MOST: Duration = Duration::from_millis(100);
/// How often the directory is read without any event.
const POLL: Duration = Duration::from_secs(2);

/// Loads the directory and follows it until `stop`. `loaded` says when the first set has been tried.
pub async fn follow(sidecar: Arc<Sidecar>, loaded: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
    let directory = sidecar.config.documents.clone();
    let (events, mut changed) = watch::channel(());
    let mut watcher = Watched::start(&directory, events);
    let store = Arc::new(Store::new(&sidecar.config));
    let mut loader = Loader::new(sidecar, store);
    loader.recall().await;
    loader.look().await;
    loaded.send_replace(true);
    loop {
        crate::runtime::select! {
            _ = stop.changed() => return,
            changed = changed.changed() => if changed.is_err() {
                return;
            },
            event = loader.event() => match event {
                Event::Stored(answer) => {
                    loader.take_stored(answer);
                    continue;
                }
                Event::Asked(asked) => loader.obey(asked).await,
            },
            () = tokio::time::sleep(POLL) => {
                watcher.renew(&directory);
                loader.end_overlays().await;
                loader.poll().await;
                continue;
            }
        }
        loader.end_overlays().await;
        // The first of the two readings is done while more events may come, so it costs no time.
        loader.glance();
        let deadline = Instant::now() + AT_MOST;
        while timeout_at(deadline.min(Instant::now() + QUIET), changed.changed()).await.is_ok() {}
        watcher.renew(&directory);
        loader.look().await;
    }
}

struct Loader {
    sidecar: Arc<Sidecar>,
    readings: Arc<Mutex<Readings>>,
    policies: Arc<Mutex<postern_policy::Loader>>,
    disk: Arc<dyn Disk>,
    keeper: Keeper,
    number: u64,
    /// What was read first, to be compiled by now, and its digest.
    ahead: Option<mpsc::Receiver<(Loaded, String)>>,
    /// Of the set that was read last, good or bad.
    digest: Option<String>,
    /// Whether that one is good.
    is_good: bool,
    /// What is in force, what was opened aside.
    base: Option<Arc<Set>>,
    /// What an operator opened through the socket.
    overlays: Overlays,
    /// What operators ask for.
    commands: Commands,
    /// When the set in force was handed to the keeper.
    kept: Option<Moment>,
    /// The store is asked once, and only if the directory's first set is refused.
    asked_store: bool,
    /// Its answer, while it is still to come.
    asking: Option<JoinHandle<FromStore>>,
    /// Looks for what is to be warned of in the set in force.
    warning: Option<JoinHandle<()>>,
}

/// What the store has for a start without good documents, or why it has nothing.
type FromStore = Result<Option<(Stored, Arc<Generation>)>, String>;
/// What a look at the directory found.
enum Found {
    /// Nothing: no descriptor was left to read with.
    Nothing,
    /// The same as last time.
    Same,
    /// Another set: its digest, and what came of it.
    Other(String, Loaded),
}

impl Loader {
    fn new(sidecar: Arc<Sidecar>, disk: Arc<dyn Disk>) -> Self {
        let keeper = Keeper::start(Arc::clone(&sidecar), Arc::clone(&disk));
        let readings = Arc::new(Mutex::new(Readings::new(sidecar.config.documents.clone())));
        let policies = Arc::default();
        let commands = sidecar.steering.commands();
        Self {
            sidecar,
            readings,
            policies,
            disk,
            keeper,
            number: 0,
            ahead: None,
            digest: None,
            is_good: false,
            base: None,
            overlays: Overlays::default(),
            commands,
            kept: None,
            asked_store: false,
            asking: None,
            warning: None,
        }
    }

    /// Reads what is there at the first sign of a change, and compiles it while it is waited for and read again.
    fn glance(&mut self) {
        let (readings, compiler, known) = (Arc::clone(&self.readings), self.compiler(), self.digest.clone());
        let (compiled, ahead) = mpsc::channel();
        drop(crate::runtime::blocking(move || {
            let set = readings.lock().glance().clone();
            let digest = digest(&set);
            if known.as_ref() != Some(&digest) {
                let _ = compiled.send((compiler.compile(&digest, set), digest));
            }
        }));
        self.ahead = Some(ahead);
    }

    /// Loads although nothing said that anything changed.
    async fn poll(&mut self) {
        self.readings.lock().poll();
        self.look().await;
    }

    fn compiler(&self) -> Compiler {
        Compiler {
            policies: Arc::clone(&self.policies),
            scope: scope(&self.sidecar),
            number: self.number + 1,
            end_marks: self.sidecar.config.end_marks,
            overlays: self.overlays.files(),
            last: self.base.clone(),
        }
    }

    async fn load(&mut self) {
        let (readings, compiler) = (Arc::clone(&self.readings), self.compiler());
        let (known, ahead) = (self.digest.clone(), self.ahead.take());
        let task = crate::runtime::blocking(move || -> Found {
            let Some(set) = readings.lock().stable(known.as_deref()) else { return Found::Nothing };
            let digest = digest(&set);
            if known.as_ref() == Some(&digest) {
                return Found::Same;
            }
            let loaded = match ahead.and_then(|ahead| ahead.recv().ok()) {
                Some((loaded, first)) if first == digest => loaded,
                _ => compiler.compile(&digest, set),
            };
            Found::Other(digest, loaded)
        });
        match self.beside(task).await {
            // An operator changed what is in force meanwhile: this was made to follow something else.
            Ok(Found::Other(_, Ok((generation, _)))) if generation.number() != self.number + 1 => {
                self.digest = None;
                self.commands.again();
            }
            Ok(Found::Other(digest, Ok((generation, set)))) => {
                self.digest = Some(digest);
                self.is_good = true;
                self.sidecar.metrics.policy_loads[0].inc();
                self.confirm();
                if self.is_pinned() {
                    self.wait(&set);
                    self.heal();
                } else {
                    let set = Arc::new(set);
                    self.put_in_force(Arc::clone(&set), generation, Origin::Directory);
                    // In force it is already: a slow disk must not delay a withdrawal, this one or the next.
                    self.keep(&set);
                }
            }
            Ok(Found::Other(digest, Err(diagnostics))) => {
                self.refuse(digest, diagnostics);
                self.ask_store().await;
            }
            Ok(Found::Same) if self.is_good => {
                self.confirm();
                self.heal();
            }
            Ok(Found::Same | Found::Nothing) => {}
            // A panic while compiling must not take the last good set away.
            Err(error) => {
                tracing::error!(%error, "loading the documents failed");
                self.ask_store().await;
            }
        }
    }

    fn put_in_force(&mut self, set: Arc<Set>, mut generation: Arc<Generation>, origin: Origin) {
        let sidecar = &self.sidecar;
        self.number = generation.number();
        let now = sidecar.clock.wall();
        let forgotten = {
            let mut history = sidecar.history.lock();
            // Nobody else has it yet. What is counted goes on, over a set that went stale too.
            if let (Some(next), Some(previous)) = (Arc::get_mut(&mut generation), history.newest()) {
                next.inherit_limits(previous);
            }
            history.opened = self.overlays.names();
            let digest = self.overlays.digest(&set);
            let mark = Remembered { number: self.number, digest, loaded_at: now, origin };
            history.push(Arc::clone(&generation), Arc::clone(&set), mark)
        };
        self.base = Some(set);
        if let Some(forgotten) = forgotten {
            sidecar.decisions.name_rules(&forgotten);
        }
        let _ = generation.tell_time(now);
        sidecar.metrics.rate_limits.follow(&generation);
        let rule_counts = sidecar.metrics.rules.follow(&generation);
        let is_stale = steer::is_stale(sidecar, &generation);
        let mut before = None;
        sidecar.snapshots.publish(|snapshot| {
            let policy = (!is_stale).then(|| Arc::clone(&generation));
            before = std::mem::replace(&mut snapshot.policy, policy);
            snapshot.is_stale = is_stale;
            snapshot.rule_counts = rule_counts;
        });
        let pinned = sidecar.history.lock().pinned.is_some();
        sidecar.metrics.policy_pinned.set(i64::from(pinned));
        sidecar.metrics.policy_from_store.set(i64::from(origin == Origin::Store));
        sidecar.metrics.policy_failed_closed.set(0);
        sidecar.metrics.policy_generation.set(i64::try_from(self.number).unwrap_or(i64::MAX));
        sidecar.metrics.policy_loaded_at.set(seconds(now));
        if is_stale {
            return stale::told(sidecar, &generation);
        }
        tracing::info!(generation = self.number, source = origin.label(), "documents in force");
        glass::tell(sidecar);
        match before {
            Some(before) => rejudge::changed(sidecar, &before, &generation),
            None => rejudge::all(sidecar, &generation),
        }
        // Looking for rules that crowd takes longer than compiling them, and nothing waits for it.
        let log = tracing::dispatcher::get_default(Clone::clone);
        let warning = crate::runtime::blocking(move || {
            tracing::dispatcher::with_default(&log, || warnings::tell(&generation));
        });
        // One that has not begun yet would tell of a set that is no more in force.
        if let Some(last) = self.warning.replace(warning) {
            last.abort();
        }
    }

    /// Has the set in force kept for the next start.
    fn keep(&mut self, set: &Set) {
        self.kept = Some(Moment::now(&*self.sidecar.clock));
        let is_pinned = self.is_pinned();
        self.keeper.keep(ToKeep { digest: set.digest.clone(), files: set.files.clone(), is_pinned });
    }

    fn refuse(&mut self, digest: String, diagnostics: Diagnostics) {
        let sidecar = &self.sidecar;
        self.digest = Some(digest.clone());
        self.is_good = false;
        // The findings stand last: a field after them would look like a part of their advice.
        match self.number {
            0 => tracing::error!(
                "documents refused, and none are in force: everything is denied:\n{diagnostics}"
            ),
            number => {
                tracing::error!("documents refused, generation {number} stays in force:\n{diagnostics}");
            }
        }
        sidecar.history.lock().refused = Some(Refused { digest, at: sidecar.clock.wall(), diagnostics });
        sidecar.metrics.policy_loads[1].inc();
        sidecar.metrics.policy_stale.set(1);
    }

    /// For a start without good documents: those that were in force last, as long as nothing else is. A disk that does
    /// not answer in time is not waited for: good documents may come first.
    async fn ask_store(&mut self) {
        if self.asked_store || self.number > 0 {
            return;
        }
        self.asked_store = true;
        let (disk, scope, number) = (Arc::clone(&self.disk), scope(&self.sidecar), self.number + 1);
        self.asking = Some(crate::runtime::blocking(move || {
            let Some(stored) = disk.read()? else { return Ok(None) };
            let generation = postern_policy::load(&stored.files, &scope, number)
                .map_err(|diagnostics| format!("they are refused by now:\n{diagnostics}"))?;
            Ok(Some((stored, Arc::new(generation))))
        }));
        match timeout(OVERDUE, self.stored()).await {
            Ok(answer) => self.take_stored(answer),
            Err(_) => tracing::warn!(
                "{}: reading the stored documents takes longer than {} s; until it ends, or good documents come, everything is denied",
                self.disk.place(),
                OVERDUE.as_secs()
            ),
        }
    }

    /// The store's answer, if one is to come; may be dropped and asked for again.
    async fn stored(&mut self) -> FromStore {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let answer = asking.await.unwrap_or_else(|error| Err(error.to_string()));
        self.asking = None;
        answer
    }

    fn take_stored(&mut self, answer: FromStore) {
        if self.number > 0 {
            return;
        }
        let place = self.disk.place();
        match answer {
            Ok(Some((stored, generation))) => {
                let refused = self.sidecar.history.lock().refused.clone();
                let why = refused.map_or_else(String::new, |refused| refused.diagnostics.to_string());
                tracing::warn!(
                    stored_at_unix =
                        stored.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
                    digest = stored.digest,
                    "{place}: the documents stored there are in force, because the present ones are refused:\n{why}"
                );
                {
                    let mut history = self.sidecar.history.lock();
                    history.stored = Some(stored.digest.clone());
                    history.confirmed =
                        Some(Moment { wall: stored.at, monotonic: self.sidecar.clock.monotonic() });
                }
                let set = Arc::new(Set::sharing(stored.digest, stored.files, None));
                self.put_in_force(set, generation, Origin::Store);
            }
            Ok(None) => tracing::warn!("{place}: no documents are stored there either: everything is denied"),
            Err(why) => {
                tracing::error!("{place}: the stored documents are ignored: {why}; everything is denied");
                self.sidecar.history.lock().store_error = Some(why);
            }
        }
    }
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(all(test, not(feature = "sim")))]
mod tests;
