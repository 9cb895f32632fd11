//! Another trust domain's bundle, followed: fetched again and again, stored, and published to our sidecars.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_ca::store::{Federated, FederationStore, StoreError};
use postern_svid::{Bundle, Clock, Document, DocumentError, TrustDomain, spread};
use tokio::sync::watch;

use super::endpoint::EndpointError;
use super::metrics::Metrics;
use super::{Foreigners, fetch};
use crate::config::Foreign;
use crate::task::{self, Tasks};

/// If the document does not say how often it wants to be read (SPIFFE Federation, 4.1).
const HINT: Duration = Duration::from_secs(300);
/// A quarter of the hint: a bundle is read three times before its trust domain counts on it.
const PART: u32 = 4;
/// The shortest and the longest time between two looks.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3_600);
/// With `test: true`.
const SHORTEST_IN_TESTS: Duration = Duration::from_secs(1);
/// A bootstrap file larger than this is none.
const MAX_FILE: u64 = 256 * 1_024;

/// One trust domain that is followed.
pub(crate) struct Followed {
    foreign: Foreign,
    held: Option<Arc<Bundle>>,
    hint: Duration,
}

/// Takes up what the store holds of the trust domains that the configuration names, and forgets the rest. Who has no bundle in
/// the store begins with its bootstrap bundle.
pub(crate) fn open(
    foreign: &[Foreign],
    store: &dyn FederationStore,
    now: SystemTime,
) -> Result<(Vec<Followed>, Foreigners), FederationError> {
    let stored = store.federated()?;
    for row in &stored {
        if !foreign.iter().any(|one| one.name == row.trust_domain) {
            store.forget_federated(&row.trust_domain, now)?;
            tracing::warn!(trust_domain = %row.trust_domain, "no longer federated: its bundle is withdrawn from every sidecar");
        }
    }
    let (mut all, mut bundles) = (Vec::new(), Foreigners::new());
    for one in foreign {
        let row = stored.iter().find(|row| row.trust_domain == one.name);
        let (held, hint) = match (row, &one.bootstrap) {
            (Some(row), _) => {
                let read = Document::parse(one.name.clone(), &row.document);
                let read = read.map_err(|error| FederationError::Stored(one.name.clone(), error))?;
                (Some(Arc::new(read.bundle)), read.refresh_hint)
            }
            (None, Some(path)) => (Some(Arc::new(bootstrap(&one.name, path)?)), None),
            (None, None) => (None, None),
        };
        bundles.extend(held.iter().map(|held| (one.name.clone(), held.clone())));
        all.push(Followed { foreign: one.clone(), held, hint: hint.unwrap_or(HINT) });
    }
    Ok((all, bundles))
}

/// A bundle document, or PEM.
fn bootstrap(name: &TrustDomain, path: &Path) -> Result<Bundle, FederationError> {
    let unfit = |why: String| FederationError::File(path.to_owned(), why);
    let found = std::fs::metadata(path).map_err(|error| unfit(error.to_string()))?;
    if !found.is_file() || found.len() > MAX_FILE {
        return Err(unfit("not a file of at most 256 KiB".to_owned()));
    }
    let text = std::fs::read(path).map_err(|error| unfit(error.to_string()))?;
    if text.trim_ascii_start().first() == Some(&b'{') {
        let read = Document::parse(name.clone(), &text).map_err(|error| unfit(error.to_string()))?;
        return Ok(read.bundle);
    }
    Bundle::from_pem(name.clone(), 0, &text).map_err(|error| unfit(error.to_string()))
}

/// What all trust domains that are followed share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn FederationStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) publish: Arc<watch::Sender<Arc<Foreigners>>>,
    pub(crate) metrics: Metrics,
    /// Allows looks every second.
    pub(crate) test: bool,
}

impl Followed {
    /// Looks until everything stops.
    pub(crate) async fn run(mut self, shared: Shared, tasks: Tasks) {
        let stopped = tasks.stopped();
        tokio::pin!(stopped);
        let name = self.foreign.name.clone();
        shared.metrics.begin(&name);
        // Told once when it fails and once when it goes again, however often is tried between.
        let mut failing = false;
        loop {
            let looked = crate::task::select! {
                () = &mut stopped => return,
                looked = self.look(&shared) => looked,
            };
            match looked {
                Ok(()) => {
                    shared.metrics.fetched(&name, "ok");
                    if std::mem::take(&mut failing) {
                        tracing::info!(trust_domain = %name, "its bundle can be had again");
                    }
                }
                Err(error) => {
                    shared.metrics.fetched(&name, error.result());
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            trust_domain = %name, url = %self.foreign.url,
                            "its bundle cannot be had; the one in force stays: {error}"
                        );
                    }
                }
            }
            let pause = pause(self.hint, failing, shared.test);
            crate::task::select! {
                () = &mut stopped => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn look(&mut self, shared: &Shared) -> Result<(), LookError> {
        let fetched = fetch::document(&self.foreign, self.held.as_ref(), &shared.clock).await;
        let (document, text) = fetched.map_err(LookError::Fetch)?;
        let now = shared.clock.wall();
        let sequence = document.bundle.sequence();
        self.hint = document.refresh_hint.unwrap_or(HINT);
        if !is_news(self.held.as_deref(), &document)? {
            shared.metrics.holds(&self.foreign.name, sequence, now);
            return Ok(());
        }
        let bundle = Arc::new(document.bundle);
        let row = Federated {
            trust_domain: self.foreign.name.clone(),
            sequence,
            document: text.to_vec(),
            digest: *bundle.digest(),
            fetched: now,
        };
        let store = shared.store.clone();
        // Stored first: what sidecars have, a restart must have too.
        let stored = task::blocking(move || store.put_federated(row)).await;
        stored.map_err(|_| LookError::Cut)?.map_err(LookError::Store)?;
        self.held = Some(bundle.clone());
        let name = self.foreign.name.clone();
        tracing::info!(trust_domain = %name, sequence, "a new bundle of a federated trust domain is in force");
        shared.publish.send_modify(|published| {
            let mut bundles = Foreigners::clone(published);
            bundles.insert(name.clone(), bundle);
            *published = Arc::new(bundles);
        });
        shared.metrics.holds(&name, sequence, now);
        Ok(())
    }
}

/// Whether `document` goes beyond what is held. Versions never go down, and one version never has two contents: whoever can
/// show old bundles again could bring back a root that was taken out because it was stolen.
fn is_news(held: Option<&Bundle>, document: &Document) -> Result<bool, LookError> {
    let Some(held) = held else { return Ok(true) };
    let new = &document.bundle;
    let is_same = held.digest() == new.digest() && held.jwt_keys() == new.jwt_keys();
    // 0: a file, or a trust domain that does not count its versions, of which the latest look is the newest.
    if held.sequence() == 0 && !document.has_sequence {
        return Ok(!is_same);
    }
    match new.sequence().cmp(&held.sequence()) {
        std::cmp::Ordering::Greater => Ok(true),
        std::cmp::Ordering::Equal if is_same => Ok(false),
        std::cmp::Ordering::Equal => Err(LookError::Changed(new.sequence())),
        std::cmp::Ordering::Less => Err(LookError::Older { held: held.sequence(), offered: new.sequence() }),
    }
}

/// Until the next look, a tenth less or more, so that control planes that started together do not ask together.
fn pause(hint: Duration, failing: bool, test: bool) -> Duration {
    let shortest = if test { SHORTEST_IN_TESTS } else { SHORTEST };
    let wanted = if failing { shortest } else { hint / PART };
    let wanted = if test { wanted.min(SHORTEST_IN_TESTS) } else { wanted };
    wanted.clamp(shortest, LONGEST).mul_f64(spread::fraction().mul_add(0.2, 0.9))
}

/// Why a look brought nothing.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("a bundle with the sequence {0} but other keys than the one in force is refused")]
    Changed(u64),
    #[error("writing it was cut short")]
    Cut,
    #[error("{0}")]
    Fetch(String),
    #[error("a bundle with the sequence {offered} is refused, {held} is in force")]
    Older { held: u64, offered: u64 },
    #[error(transparent)]
    Store(StoreError),
}

impl LookError {
    const fn result(&self) -> &'static str {
        match self {
            Self::Changed(_) | Self::Older { .. } => "refused",
            Self::Cut | Self::Fetch(_) | Self::Store(_) => "failed",
        }
    }
}

/// Why the other trust domains could not be taken up at the start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FederationError {
    /// The bundle endpoint's certificate.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// A bootstrap bundle.
    #[error("{path}: {why}; federation.trustDomains.bootstrapBundle must be a bundle document or PEM, from postern ca bundle show there", path = .0.display(), why = .1)]
    File(PathBuf, String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored cannot be read.
    #[error("the stored bundle of the trust domain {0}: {1}; restore the state directory from a backup")]
    Stored(TrustDomain, DocumentError),
}

#[cfg(test)]
mod tests {
    use postern_svid::jwt::{JwtKey, JwtKeys};
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    };

    use super::*;

    fn bundle(sequence: u64) -> Bundle {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("root {sequence}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone();
        Bundle::new(TrustDomain::parse("partner").unwrap(), sequence, vec![root]).unwrap()
    }

    fn document(bundle: &Bundle) -> Document {
        let text = Document::of(bundle, HINT);
        Document::parse(bundle.trust_domain().clone(), text.as_bytes()).unwrap()
    }

    fn key() -> JwtKeys {
        let point = KeyPair::generate().unwrap().der_bytes().to_vec();
        JwtKeys::new(vec![JwtKey::p256("a".to_owned(), &point).unwrap()]).unwrap()
    }

    #[test]
    fn versions_never_go_down_and_one_has_one_content() {
        let held = bundle(5);
        assert!(is_news(None, &document(&held)).unwrap());
        assert!(!is_news(Some(&held), &document(&held)).unwrap());
        assert!(is_news(Some(&held), &document(&bundle(6))).unwrap());
        assert_eq!(is_news(Some(&held), &document(&bundle(5))).unwrap_err().result(), "refused");
        assert_eq!(is_news(Some(&held), &document(&bundle(4))).unwrap_err().result(), "refused");
        let other_keys = held.clone().with_jwt_keys(key());
        assert!(matches!(is_news(Some(&held), &document(&other_keys)), Err(LookError::Changed(5))));

        // Who does not count versions: the latest look is the newest, unless there was a version before.
        let uncounted = |bundle: &Bundle| Document { has_sequence: false, ..document(bundle) };
        let (one, two) = (bundle(0), bundle(0));
        assert!(!is_news(Some(&one), &uncounted(&one)).unwrap());
        assert!(is_news(Some(&one), &uncounted(&two)).unwrap());
        assert!(is_news(Some(&one), &document(&held)).unwrap(), "after a bootstrap bundle from a file");
        assert!(is_news(Some(&held), &uncounted(&one)).is_err());
    }

    #[test]
    fn looks_are_neither_too_many_nor_too_few() {
        let around = |hint, failing, test, seconds: f64| {
            let pause = pause(Duration::from_secs(hint), failing, test).as_secs_f64();
            assert!((0.89 * seconds..=1.11 * seconds).contains(&pause), "{hint} {failing} {test}: {pause}");
        };
        around(300, false, false, 75.0);
        around(1, false, false, 60.0);
        around(0, false, false, 60.0);
        around(u64::MAX / 1_000, false, false, 3_600.0);
        around(86_400, true, false, 60.0);
        around(300, false, true, 1.0);
        around(300, true, true, 1.0);
    }

    #[test]
    fn a_bootstrap_bundle_is_a_document_or_pem() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("partner");
        let bundle = bundle(5);
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            bootstrap(bundle.trust_domain(), &path)
        };
        let document = read(&format!("\n{}", Document::of(&bundle, HINT))).unwrap();
        assert_eq!((document.sequence(), document.digest()), (5, bundle.digest()));
        let pem = read(&bundle.to_pem()).unwrap();
        assert_eq!((pem.sequence(), pem.digest()), (0, bundle.digest()));
        for bad in ["", "{", "{\"keys\":[]}", "-----BEGIN"] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("partner") && error.contains("postern ca bundle show"), "{error}");
        }
    }
}
