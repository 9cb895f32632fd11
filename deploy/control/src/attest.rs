//! What attestation rests on, kept up to date: files of keys, and the directory of registrations.
//!
//! Files are polled by content: what a watcher misses once stays missed. A reading counts when the next one finds the same, for
//! a file that is being written is none yet. What is refused changes nothing: the last good keys, or the last good set, stay.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use postern_ca::attest::{Attestation, Cluster, KeySet, Machines, Provider, Registrations, Roots};
use postern_ca::issue::Issuer;
use postern_policy::{Diagnostics, SourceFile};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::MissedTickBehavior;

use crate::config::{self, TokenIssuer};
use crate::health::Health;
use crate::registrations::{self, Terms, read_bounded};
use crate::task::{self, Tasks};

/// How often files are read: twice this after a change it is in force.
const POLL: Duration = Duration::from_secs(1);
/// A file of keys, or of roots, longer than this is none.
const MAX_KEYS: u64 = 256 * 1_024;

/// What shows how it stands.
#[derive(Clone)]
pub(crate) struct Metrics {
    registrations: Gauge,
    refused: Family<Source, Gauge>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Source {
    source: &'static str,
}

const REGISTRATIONS: &str = "registrations";
const JWKS: &str = "jwks";
const ROOTS: &str = "roots";

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self { registrations: Gauge::default(), refused: Family::default() };
        for source in [REGISTRATIONS, JWKS, ROOTS] {
            drop(metrics.refused.get_or_create(&Source { source }));
        }
        registry.register(
            "postern_control_registrations",
            "Registrations in force",
            metrics.registrations.clone(),
        );
        registry.register(
            "postern_control_attestation_refused",
            "Sources of attestation whose newest content is refused or missing: an older one is in force, or none",
            metrics.refused.clone(),
        );
        metrics
    }
}

/// The files, and what was last made of them.
pub(crate) struct Sources {
    config: config::Attestation,
    terms: Terms,
    metrics: Metrics,
    clusters: Vec<Watched<Vec<u8>, KeySet>>,
    providers: Vec<Watched<Vec<u8>, KeySet>>,
    roots: Vec<Watched<Vec<u8>, Roots>>,
    registrations: Watched<Vec<SourceFile>, Arc<Registrations>>,
}

/// A reading: content, or why there is none.
type Reading<R> = Result<R, String>;

/// One source.
struct Watched<R, T> {
    /// The last reading, and whether it has been looked at.
    last: Option<(Reading<R>, bool)>,
    /// What is in force.
    good: Option<T>,
    /// Whether what was looked at last is refused.
    is_refused: bool,
}

impl<R: PartialEq, T> Watched<R, T> {
    fn new() -> Self {
        Self { last: None, good: None, is_refused: false }
    }

    /// Takes a reading; whether something else is in force now.
    fn take(&mut self, what: &str, reading: Reading<R>, make: impl FnOnce(&R) -> Result<T, String>) -> bool {
        // The first counts at once: there is nothing yet that could stay.
        let counts = match &self.last {
            None => true,
            Some((last, looked_at)) => *last == reading && !looked_at,
        };
        if !counts {
            if self.last.as_ref().is_none_or(|(last, _)| *last != reading) {
                self.last = Some((reading, false));
            }
            return false;
        }
        let made = reading.as_ref().map_err(Clone::clone).and_then(make);
        self.last = Some((reading, true));
        self.is_refused = made.is_err();
        match made {
            Ok(made) => {
                self.good = Some(made);
                true
            }
            Err(why) => {
                let stays =
                    if self.good.is_some() { "what was in force stays" } else { "and nothing is in force" };
                tracing::error!("{what}: refused, {stays}\n{why}");
                false
            }
        }
    }
}

impl Sources {
    pub(crate) fn new(config: config::Attestation, terms: Terms, metrics: Metrics) -> Self {
        let files = |all: &[TokenIssuer]| all.iter().map(|_| Watched::new()).collect();
        let (clusters, providers) = (files(&config.kubernetes), files(&config.oidc));
        let roots = config.x509pop.iter().map(|_| Watched::new()).collect();
        Self { config, terms, metrics, clusters, providers, roots, registrations: Watched::new() }
    }

    /// Whether there is anything to keep up.
    pub(crate) fn is_empty(&self) -> bool {
        self.config == config::Attestation::default()
    }

    /// Reads everything; what is in force now, if that is something else.
    pub(crate) fn read(&mut self) -> Option<Attestation> {
        let mut changed = false;
        let kubernetes = self.config.kubernetes.iter().zip(&mut self.clusters);
        for (issuer, keys) in kubernetes.chain(self.config.oidc.iter().zip(&mut self.providers)) {
            let path = &issuer.jwks;
            let what = format!("keys of {} ({})", issuer.name, path.display());
            let reading = read_bounded(path, MAX_KEYS).map_err(unread);
            changed |= keys.take(&what, reading, |text| KeySet::parse(text));
        }
        for (machines, roots) in self.config.x509pop.iter().zip(&mut self.roots) {
            let path = &machines.bundle;
            let what = format!("roots of {} ({})", machines.name, path.display());
            let reading = read_bounded(path, MAX_KEYS).map_err(unread);
            changed |= roots.take(&what, reading, |pem| Roots::parse(pem));
        }
        if let Some(directory) = &self.config.registrations {
            let said = |found: Diagnostics| found.to_string();
            let reading = registrations::read_directory(directory).map_err(said);
            let terms = &self.terms;
            let make =
                |files: &Vec<SourceFile>| registrations::check(files, terms).map(Arc::new).map_err(said);
            let what = format!("registrations in {}", directory.display());
            changed |= self.registrations.take(&what, reading, make);
        }
        let refused = |all: &[Watched<Vec<u8>, KeySet>]| all.iter().filter(|keys| keys.is_refused).count();
        let keys = refused(&self.clusters) + refused(&self.providers);
        self.shown(JWKS, keys);
        self.shown(ROOTS, self.roots.iter().filter(|roots| roots.is_refused).count());
        self.shown(REGISTRATIONS, usize::from(self.registrations.is_refused));
        changed.then(|| self.in_force())
    }

    /// Codes of what is refused.
    pub(crate) fn refused(&self) -> Vec<&'static str> {
        let mut codes = Vec::new();
        if self.registrations.is_refused {
            codes.push("registrations_refused");
        }
        if self.clusters.iter().chain(&self.providers).any(|keys| keys.is_refused) {
            codes.push("jwks_refused");
        }
        if self.roots.iter().any(|roots| roots.is_refused) {
            codes.push("roots_refused");
        }
        codes
    }

    fn shown(&self, source: &'static str, count: usize) {
        let gauge = self.metrics.refused.get_or_create(&Source { source });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn in_force(&self) -> Attestation {
        let keys = |watched: &Watched<Vec<u8>, KeySet>| watched.good.clone().unwrap_or_default();
        let clusters = self.config.kubernetes.iter().zip(&self.clusters).map(|(issuer, watched)| Cluster {
            name: issuer.name.clone(),
            issuer: issuer.issuer.clone(),
            audience: issuer.audience.clone(),
            keys: keys(watched),
        });
        let providers = self.config.oidc.iter().zip(&self.providers).map(|(issuer, watched)| Provider {
            name: issuer.name.clone(),
            issuer: issuer.issuer.clone(),
            audience: issuer.audience.clone(),
            keys: keys(watched),
        });
        let machines = self.config.x509pop.iter().zip(&self.roots).map(|(machines, watched)| Machines {
            name: machines.name.clone(),
            roots: watched.good.clone().unwrap_or_default(),
        });
        let registrations = self.registrations.good.clone().unwrap_or_default();
        let count = registrations.len();
        self.metrics.registrations.set(i64::try_from(count).unwrap_or(i64::MAX));
        tracing::info!(registrations = count, "attestation in force");
        Attestation {
            kubernetes: clusters.collect(),
            oidc: providers.collect(),
            x509pop: machines.collect(),
            registrations,
        }
    }
}

fn unread(error: io::Error) -> String {
    format!("it cannot be read: {error}")
}

/// Keeps the issuer up to date until everything stops.
pub(crate) async fn keep(mut sources: Sources, issuer: Arc<Issuer>, health: Arc<Health>, tasks: Tasks) {
    let stopped = tasks.stopped();
    tokio::pin!(stopped);
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        crate::task::select! {
            () = &mut stopped => return,
            _ = ticks.tick() => {}
        }
        let issuer = issuer.clone();
        let read = task::blocking(move || {
            if let Some(attestation) = sources.read() {
                issuer.attest_by(attestation);
            }
            sources
        });
        match read.await {
            Ok(back) => sources = back,
            Err(error) => {
                tracing::error!(%error, "attestation is kept up to date no more");
                return health.degraded(vec!["attestation_failed"]);
            }
        }
        health.degraded(sources.refused());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_written_is_not_read_and_the_last_good_stays() {
        let mut watched = Watched::<&str, String>::new();
        let mut take = |reading: Result<&'static str, &str>| {
            let make = |text: &&str| {
                if text.contains("bad") { Err("bad".to_owned()) } else { Ok((*text).to_owned()) }
            };
            let changed = watched.take("it", reading.map_err(str::to_owned), make);
            (changed, watched.good.clone().unwrap_or_default(), watched.is_refused)
        };
        assert_eq!(take(Ok("one")), (true, "one".to_owned(), false), "the first at once");
        assert_eq!(take(Ok("one")), (false, "one".to_owned(), false));
        assert_eq!(take(Ok("tw")), (false, "one".to_owned(), false), "perhaps it is being written");
        assert_eq!(take(Ok("two")), (false, "one".to_owned(), false));
        assert_eq!(take(Ok("two")), (true, "two".to_owned(), false));
        assert_eq!(take(Ok("bad")), (false, "two".to_owned(), false));
        assert_eq!(take(Ok("bad")), (false, "two".to_owned(), true));
        assert_eq!(take(Err("gone")), (false, "two".to_owned(), true));
        assert_eq!(take(Err("gone")), (false, "two".to_owned(), true));
        assert_eq!(take(Ok("two")), (false, "two".to_owned(), true));
        assert_eq!(take(Ok("two")), (true, "two".to_owned(), false));
    }
}
