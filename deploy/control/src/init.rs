//! Makes the CA of a state directory without serving it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_ca::authority::{Authority, ExistingRoot, Lives};
use postern_ca::keys;
use postern_ca::ledger::SEGMENT;
use postern_ca::metrics::Metrics;
use postern_ca::store::{Authority as Row, Kind, Sqlite, Store as _};
use postern_svid::Clock;
use prometheus_client::registry::Registry;

use crate::app::{BUNDLE, StartError};
use crate::config::Config;
use crate::lock::Lock;

/// The CA of a state directory.
#[derive(Debug)]
pub struct Initialized {
    /// Whether it was made just now.
    pub is_new: bool,
    /// Its roots.
    pub roots: Vec<Row>,
    /// The trust bundle's file.
    pub bundle: PathBuf,
}

/// Makes the CA that `config` speaks of, with a new root or with the one in the files `root`, certificate and key. One that is
/// there already stays as it is; with another root it is refused.
pub fn init(
    config: &Config,
    root: Option<(&Path, &Path)>,
    clock: Arc<dyn Clock>,
) -> Result<Initialized, StartError> {
    config.check().map_err(StartError::Config)?;
    let (directory, td, now) = (&config.state_dir, &config.trust_domain, clock.wall());
    // Read before anything is made: files that are refused leave no trace.
    let root = root.map(|(certificate, key)| ExistingRoot::read(td, certificate, key, now)).transpose()?;
    keys::private_dir(directory)?;
    let _lock = Lock::take(directory)?;
    let keys = config.keys.open(directory, td)?;
    let metrics = Metrics::new(&mut Registry::default());
    let store = Sqlite::open_with_ledger(directory, td, keys.as_ref(), metrics, SEGMENT, now)?;
    let store = Arc::new(store);
    let found = store.authorities()?;
    let is_new = found.is_empty();
    if let Some(root) = &root {
        if is_new {
            root.install(store.as_ref(), keys.as_ref(), now)?;
        } else if !found.iter().any(|row| row.kind == Kind::Root && row.certificate == **root.certificate()) {
            return Err(StartError::OtherRoot(directory.clone()));
        }
    }
    let lives = Lives::with_leaf(config.ttl);
    let authority = Authority::open(td.clone(), store.clone(), keys, clock, lives)?;
    let bundle = directory.join(BUNDLE);
    keys::replace(&bundle, 0o644, authority.bundle().to_pem().as_bytes())?;
    store.sign_head(now)?;
    let mut roots = store.authorities()?;
    roots.retain(|row| row.kind == Kind::Root);
    Ok(Initialized { is_new, roots, bundle })
}
