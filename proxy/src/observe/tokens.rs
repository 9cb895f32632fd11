//! Metrics about tokens and the keys that they are verified with.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, &'static str)>;

/// What tokens turned out to be.
#[derive(Clone, Debug)]
pub struct TokenCounts([Counter; 4]);

impl TokenCounts {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let tokens = Family::<Labels, Counter>::default();
        registry.register(
            "tokens",
            "Tokens that requests carried, by what they turned out to be",
            tokens.clone(),
        );
        let results = ["verified", "unknown", "other", "invalid"];
        Self(results.map(|result| tokens.get_or_create_owned(&vec![("result", result)])))
    }

    /// It holds.
    pub fn verified(&self) {
        self.0[0].inc();
    }

    /// Its key is not at hand.
    pub fn unknown(&self) {
        self.0[1].inc();
    }

    /// It is of somebody else, and is ignored.
    pub fn other(&self) {
        self.0[2].inc();
    }

    /// The request was refused for it.
    pub fn invalid(&self) {
        self.0[3].inc();
    }
}

/// Sources of keys.
#[derive(Clone, Debug)]
pub struct JwksCounts {
    fetches: [Counter; 2],
    sources: Gauge,
    unusable: Gauge,
}

impl JwksCounts {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let fetches = Family::<Labels, Counter>::default();
        registry.register("jwks_fetches", "Looks at sources of issuers' keys, by result", fetches.clone());
        let (sources, unusable) = (Gauge::default(), Gauge::default());
        registry.register("jwks_sources", "Sources of keys that the documents name", sources.clone());
        registry.register(
            "jwks_unusable",
            "Sources of keys without any that is young enough: claims of their tokens are unknown",
            unusable.clone(),
        );
        let fetches = ["ok", "failed"].map(|result| fetches.get_or_create_owned(&vec![("result", result)]));
        Self { fetches, sources, unusable }
    }

    /// A source was looked at.
    pub fn fetched(&self, is_good: bool) {
        self.fetches[usize::from(!is_good)].inc();
    }

    /// So many sources there are, and so many of them have keys.
    pub fn state(&self, sources: usize, usable: usize) {
        self.sources.set(i64::try_from(sources).unwrap_or(i64::MAX));
        self.unusable.set(i64::try_from(sources.saturating_sub(usable)).unwrap_or(i64::MAX));
    }
}
