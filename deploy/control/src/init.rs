//! Makes the CA of a state directory without serving it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use postern_ca::authority::{Alarm, Authority, ExistingRoot, Lives, check_root, import_root};
use postern_ca::ledger::SEGMENT;
use postern_ca::metrics::Metrics;
use postern_ca::store::{Authority as Row, DATABASE, Kind, Sqlite, State, Store as _};
use postern_ca::{bundle, keys};
use postern_svid::{Clock, TrustDomain};
use prometheus_client::registry::Registry;

use crate::app::{BUNDLE, StartError};
use crate::config::Config;
use crate::lock::{Lock, LockError};

const REPLICA: &str = "replica: control planes that share one trust cannot share an offline root yet: run one (docs/offline-root.md)";

/// The CA of a state directory.
#[derive(Debug)]
pub struct Initialized {
    /// Whether it was made just now.
    pub is_new: bool,
    /// Its roots.
    pub roots: Vec<Row>,
    /// The trust bundle's file.
    pub bundle: PathBuf,
    /// Whether its root is offline.
    pub is_offline: bool,
    /// What its operator has to bring.
    pub alarms: Vec<Alarm>,
}

/// Makes the CA that `config` speaks of, with a new root or with the one in the files `root`, certificate and key; without its
/// key a root is offline. One that is
/// there already stays as it is; with another root it is refused.
pub fn init(
    config: &Config,
    root: Option<(&Path, Option<&Path>)>,
    clock: Arc<dyn Clock>,
) -> Result<Initialized, StartError> {
    config.check().map_err(StartError::Config)?;
    let (directory, td, now) = (&config.state_dir, &config.trust_domain, clock.wall());
    // Read before anything is made: files that are refused leave no trace.
    if config.offline_root && root.is_some_and(|(_, key)| key.is_some()) {
        return Err(StartError::Config(
            "root.offline: the root's key stays where it is: give --root-cert alone".to_owned(),
        ));
    }
    let offline = root.filter(|(_, key)| key.is_none()).map(|(certificate, _)| certificate);
    if let Some(certificate) = offline {
        if config.replica.is_some() {
            return Err(StartError::Config(REPLICA.to_owned()));
        }
        check_root(td, certificate, now)?;
    }
    let root = root.and_then(|(certificate, key)| Some((certificate, key?)));
    let root = root.map(|(certificate, key)| ExistingRoot::read(td, certificate, key, now)).transpose()?;
    keys::private_dir(directory)?;
    let _lock = match Lock::take(directory) {
        // A control plane runs on it: there is nothing to be made, and nothing is touched.
        Err(LockError::InUse(_)) if directory.join(DATABASE).exists() => {
            let offline = offline.map(|certificate| check_root(td, certificate, now)).transpose()?;
            let with_key = root.as_ref().map(|root| (root.certificate().as_ref(), false));
            let given = with_key.or_else(|| offline.as_deref().map(|der| (der, true)));
            return existing(directory, td, given, now);
        }
        taken => taken?,
    };
    let keys = config.keys.open(directory, td)?;
    let metrics = Metrics::new(&mut Registry::default());
    let store = Sqlite::open_with_ledger(directory, td, keys.as_ref(), metrics, SEGMENT, now)?;
    let store = Arc::new(store);
    let found = store.authorities()?;
    let is_new = found.is_empty();
    if is_new && config.offline_root && offline.is_none() {
        return Err(StartError::NoRoot(directory.clone()));
    }
    match &root {
        Some(root) if is_new => root.install(store.as_ref(), keys.as_ref(), now)?,
        root => same(directory, &found, root.as_ref().map(|root| (root.certificate().as_ref(), false)))?,
    }
    if let Some(certificate) = offline {
        let der = check_root(td, certificate, now)?;
        if !is_new {
            same(directory, &found, Some((&der, true)))?;
        }
        import_root(td, store.as_ref(), certificate, now)?;
    }
    let rows = store.authorities()?;
    let root = rows.iter().find(|row| row.kind == Kind::Root && row.state == State::Active);
    let is_offline = root.is_some_and(|root| root.is_offline);
    let alarms = Alarm::of(&rows, now);
    // Without its first tier a CA signs nothing; its bundle can be handed out.
    let pem = if alarms.iter().any(|alarm| alarm.code == "tier_missing") {
        bundle::stored(store.as_ref(), td)?.to_pem()
    } else {
        let lives = Lives::with_leaf(config.ttl);
        Authority::open(td.clone(), store.clone(), keys, clock, lives)?.bundle().to_pem()
    };
    let bundle = directory.join(BUNDLE);
    keys::replace(&bundle, 0o644, pem.as_bytes())?;
    store.sign_head(now)?;
    let mut roots = store.authorities()?;
    roots.retain(|row| row.kind == Kind::Root);
    Ok(Initialized { is_new, roots, bundle, is_offline, alarms })
}

/// A root's certificate, and whether its key is elsewhere.
type Given<'a> = Option<(&'a [u8], bool)>;

/// The CA that a running control plane serves.
fn existing(
    directory: &Path,
    td: &TrustDomain,
    root: Given<'_>,
    now: SystemTime,
) -> Result<Initialized, StartError> {
    let mut roots = Sqlite::open(directory, td)?.authorities()?;
    if roots.is_empty() {
        // It is just being made.
        return Err(LockError::InUse(directory.to_owned()).into());
    }
    same(directory, &roots, root)?;
    let alarms = Alarm::of(&roots, now);
    roots.retain(|row| row.kind == Kind::Root);
    let is_offline = roots.iter().any(|root| root.state == State::Active && root.is_offline);
    Ok(Initialized { is_new: false, roots, bundle: directory.join(BUNDLE), is_offline, alarms })
}

/// Refuses a `root` that is none of the CA's.
fn same(directory: &Path, found: &[Row], root: Given<'_>) -> Result<(), StartError> {
    let Some((certificate, is_offline)) = root else { return Ok(()) };
    let is_it = |row: &Row| {
        row.kind == Kind::Root && row.certificate == certificate && (row.is_offline || !is_offline)
    };
    if found.iter().any(is_it) { Ok(()) } else { Err(StartError::OtherRoot(directory.to_owned())) }
}
