//! What operators change by hand, through the admin socket: an earlier set back in force, and glass broken for a while.
//!
//! Whoever loads documents obeys, one command after the other, between two looks at the directory and during one: a
//! directory that hangs must not keep an operator from mending what it did.

use std::sync::Arc;

use postern_policy::{Generation, SourceFile};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

use super::commands::{Asked, Command, Done, Refusal};
use super::history::{Moment, Origin, Pin, Set};
use super::opening::{MAX_OVERLAYS, Opening, Overlay, Overlays, fresh_name};
use super::{FromStore, Loader, OVERDUE, scope, stale};
use crate::sidecar::Sidecar;

/// What the loader waits for beside the directory.
pub(super) enum Event {
    Stored(FromStore),
    Asked(Asked),
}

impl Loader {
    /// May be dropped and asked for again.
    pub(super) async fn event(&mut self) -> Event {
        let Self { asking, commands, .. } = self;
        let stored = async {
            match asking {
                Some(asking) => asking.await.unwrap_or_else(|error| Err(error.to_string())),
                None => std::future::pending().await,
            }
        };
        let event = crate::runtime::select! {
            answer = stored => Event::Stored(answer),
            asked = commands.next() => Event::Asked(asked),
        };
        if matches!(event, Event::Stored(_)) {
            self.asking = None;
        }
        event
    }

    /// Waits for a task, and obeys meanwhile.
    pub(super) async fn beside<T>(&mut self, mut task: JoinHandle<T>) -> Result<T, JoinError> {
        loop {
            crate::runtime::select! {
                biased;
                ended = &mut task => return ended,
                asked = self.commands.next() => self.obey(asked).await,
            }
        }
    }

    /// Reads the directory, and once more if a command came in its way; then tells those who waited for that.
    pub(super) async fn look(&mut self) {
        self.load().await;
        while std::mem::take(&mut self.commands.again) {
            self.load().await;
        }
        let is_followed = self.is_good && !self.is_pinned();
        for answer in std::mem::take(&mut self.commands.resumed) {
            let _ = answer.send(Ok(Done::Resumed { generation: self.number, is_followed }));
        }
    }

    pub(super) async fn obey(&mut self, (command, answer): Asked) {
        tracing::info!(?command, "an operator asks through the admin socket");
        let done = match command {
            Command::Rollback(to) => self.roll_back(to).await,
            Command::Resume => match self.resume() {
                Ok(()) => return self.commands.resumed.push(answer),
                Err(refusal) => Err(refusal),
            },
            Command::Open(opening) => self.open(&opening).await,
            Command::Close(name) => self.close(name.as_deref()).await,
        };
        if let Err(refusal) = &done {
            tracing::info!(?refusal, "it is refused");
        }
        let _ = answer.send(done);
    }

    async fn roll_back(&mut self, to: Option<u64>) -> Result<Done, Refusal> {
        let (to, set) = self.earlier(to)?;
        let generation = compile(&self.sidecar, &set, &self.overlays, self.number + 1).await?;
        let waiting = self.digest.clone().filter(|digest| self.is_good && *digest != set.digest);
        let since = self.sidecar.clock.wall();
        self.sidecar.history.lock().pinned = Some(Pin { to: Some(to), since, waiting });
        self.put_in_force(Arc::clone(&set), generation, Origin::Rollback);
        self.keep(&set);
        tracing::warn!(
            generation = self.number,
            "the documents of generation {to} are in force again, whatever comes into the directory, until `postern policy rollback --resume`"
        );
        Ok(Done::RolledBack { generation: self.number, to })
    }

    fn earlier(&self, to: Option<u64>) -> Result<(u64, Arc<Set>), Refusal> {
        let history = self.sidecar.history.lock();
        let kept = || history.kept().map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
        let Some(base) = &self.base else {
            return Err(Refusal::Conflict("no documents were ever in force here".to_owned()));
        };
        let to = match to {
            Some(to) => to,
            None => {
                let from = history.pinned.as_ref().and_then(|pin| pin.to).unwrap_or(self.number);
                history.before(from, base).ok_or_else(|| {
                    Refusal::Conflict(format!(
                        "no generation with other documents is kept (kept: {})",
                        kept()
                    ))
                })?
            }
        };
        let set = history
            .set(to)
            .cloned()
            .ok_or_else(|| Refusal::Unknown(format!("generation {to} is not kept: these are: {}", kept())))?;
        Ok((to, set))
    }

    fn resume(&mut self) -> Result<(), Refusal> {
        let Some(pin) = self.sidecar.history.lock().pinned.take() else {
            return Err(Refusal::Conflict("the directory is followed already".to_owned()));
        };
        tracing::warn!(since_unix = super::seconds(pin.since), "the directory is followed again");
        self.sidecar.metrics.policy_pinned.set(0);
        // As if its set had never been read: it comes into force, or is refused once more.
        self.digest = None;
        if let Some(base) = self.base.clone() {
            self.keep(&base);
        }
        self.commands.again();
        Ok(())
    }

    async fn open(&mut self, opening: &Opening) -> Result<Done, Refusal> {
        let config = &self.sidecar.config;
        if opening.namespace() != config.namespace {
            return Err(Refusal::Bad(format!(
                "this is the sidecar of {}: nothing in the namespace {} would open",
                config.identity,
                opening.namespace()
            )));
        }
        if self.overlays.len() >= MAX_OVERLAYS {
            return Err(Refusal::Conflict(format!("{MAX_OVERLAYS} openings are enough: close one first")));
        }
        let name = fresh_name();
        let now = Moment::now(&*self.sidecar.clock);
        let overlay = Overlay::new(name.clone(), opening, &config.root_namespace, now);
        let until = overlay.until();
        self.lay(self.overlays.with(overlay)).await?;
        Ok(Done::Opened { name, until, generation: self.number })
    }

    async fn close(&mut self, name: Option<&str>) -> Result<Done, Refusal> {
        let Some(rest) = self.overlays.without(name) else {
            let name = name.map_or_else(|| "nothing".to_owned(), |name| format!("no {name}"));
            return Err(Refusal::Unknown(format!(
                "{name} was opened through this socket (what a document opens ends with the document)"
            )));
        };
        self.lay(rest).await?;
        Ok(Done::Closed { generation: self.number })
    }

    /// Ends what is over. The rules in it hold no more by then.
    pub(super) async fn end_overlays(&mut self) {
        let Some(rest) = self.overlays.still_open(Moment::now(&*self.sidecar.clock)) else { return };
        if let Err(refusal) = self.lay(rest).await {
            tracing::error!(?refusal, "what was opened is over, and stays among the documents");
        }
    }

    /// Puts the present set in force anew, with these openings over it.
    async fn lay(&mut self, overlays: Overlays) -> Result<(), Refusal> {
        let Some(base) = self.base.clone() else {
            return Err(Refusal::Conflict(
                "no good documents were ever in force here, so there is nothing to open: mend the directory"
                    .to_owned(),
            ));
        };
        let generation = compile(&self.sidecar, &base, &overlays, self.number + 1).await?;
        self.overlays = overlays;
        let origin = self.sidecar.history.lock().origin.unwrap_or(Origin::Directory);
        self.put_in_force(base, generation, origin);
        Ok(())
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.sidecar.history.lock().pinned.is_some()
    }

    /// Notes a good set of the directory that does not come into force, because an earlier one was put back.
    pub(super) fn wait(&self, set: &Set) {
        let is_same = self.base.as_ref().is_some_and(|base| base.digest == set.digest);
        if let Some(pin) = &mut self.sidecar.history.lock().pinned {
            pin.waiting = Some(set.digest.clone()).filter(|_| !is_same);
        }
        if !is_same {
            tracing::warn!(
                digest = set.digest,
                "the directory holds other documents: they wait, until `postern policy rollback --resume`"
            );
        }
    }

    /// Notes that the directory holds a good set now.
    pub(super) fn confirm(&mut self) {
        let now = Moment::now(&*self.sidecar.clock);
        {
            let mut history = self.sidecar.history.lock();
            history.confirmed = Some(now);
            history.refused = None;
        }
        self.sidecar.metrics.policy_stale.set(0);
        self.sidecar.metrics.policy_confirmed_at.set(super::seconds(now.wall));
    }

    /// Puts back in force what went stale and is confirmed now, and has that noted for the next start.
    pub(super) fn heal(&mut self) {
        let now = self.sidecar.clock.wall();
        let newest = self.sidecar.history.lock().newest().cloned();
        let Some(generation) = newest else { return };
        if self.sidecar.snapshots.load().is_stale {
            let _ = generation.tell_time(now);
            self.sidecar.snapshots.publish(|snapshot| {
                snapshot.policy = Some(Arc::clone(&generation));
                snapshot.is_stale = false;
            });
            self.sidecar.metrics.policy_failed_closed.set(0);
            tracing::info!(generation = generation.number(), "the documents in force are confirmed again");
        }
        // The next start counts from what is noted there.
        let Some(limit) = generation.defaults().stale_after else { return };
        let often =
            (limit / 8).clamp(std::time::Duration::from_secs(5), std::time::Duration::from_secs(3_600));
        if self.kept.is_some_and(|kept| kept.age(&*self.sidecar.clock) > often)
            && let Some(base) = self.base.clone()
        {
            self.keep(&base);
        }
    }

    /// For a start after a rollback: what was put back then comes before the directory.
    pub(super) async fn recall(&mut self) {
        let (disk, scope) = (Arc::clone(&self.disk), scope(&self.sidecar));
        let place = disk.place();
        let task = crate::runtime::blocking(move || -> Result<Option<_>, String> {
            let Some(stored) = disk.read()?.filter(|stored| stored.is_pinned) else { return Ok(None) };
            let generation =
                postern_policy::load(&stored.files, &scope, 1).map_err(|errors| errors.to_string())?;
            Ok(Some((stored, Arc::new(generation))))
        });
        // What cannot be used is said when it is needed.
        let (stored, generation) = match timeout(OVERDUE, task).await {
            Ok(Ok(Ok(Some(found)))) => found,
            Ok(Ok(Ok(None) | Err(_)) | Err(_)) => return,
            Err(_) => {
                return tracing::warn!(
                    "{place}: reading it takes longer than {} s: should an earlier set have been put back, it is not in force",
                    OVERDUE.as_secs()
                );
            }
        };
        tracing::warn!(
            "{place}: the documents that an operator put back are in force, until `postern policy rollback --resume`"
        );
        {
            let mut history = self.sidecar.history.lock();
            history.pinned = Some(Pin { to: None, since: stored.at, waiting: None });
            history.stored = Some(stored.digest.clone());
            history.confirmed = Some(Moment { wall: stored.at, monotonic: self.sidecar.clock.monotonic() });
        }
        let set = Arc::new(Set::sharing(stored.digest, stored.files, None));
        self.put_in_force(Arc::clone(&set), generation, Origin::Rollback);
    }
}

async fn compile(
    sidecar: &Sidecar,
    set: &Arc<Set>,
    overlays: &Overlays,
    number: u64,
) -> Result<Arc<Generation>, Refusal> {
    let (set, over, scope) = (Arc::clone(set), overlays.files(), scope(sidecar));
    let task = crate::runtime::blocking(move || {
        let own = set.files.iter().map(|file| SourceFile::clone(file));
        let files: Vec<SourceFile> = own.chain(over).collect();
        postern_policy::load(&files, &scope, number).map(Arc::new)
    });
    match task.await {
        Ok(Ok(generation)) => Ok(generation),
        Ok(Err(errors)) => Err(Refusal::Bad(format!("the documents do not load so:\n{errors}"))),
        Err(error) => Err(Refusal::Conflict(format!("loading failed: {error}"))),
    }
}

/// Whether a generation that comes into force is stale already, and must not decide.
pub(super) fn is_stale(sidecar: &Sidecar, generation: &Generation) -> bool {
    stale::is_due(sidecar, &sidecar.history.lock(), generation)
}

#[cfg(all(test, not(feature = "sim")))]
#[path = "steer_tests.rs"]
mod tests;
