//! Wiring: state, CA, listeners, tasks; and how all of it stops.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_ca::authority::{Authority, AuthorityError, ImportError, Lives, RootError};
use postern_ca::bundle::Acknowledgements;
use postern_ca::issue::{IssueError, Issuer, LeafPolicy};
use postern_ca::jwt::{self, JwtAuthority, JwtAuthorityError, JwtLives};
use postern_ca::keys::{self, KeyError};
use postern_ca::ledger::SEGMENT;
use postern_ca::metrics::Metrics;
use postern_ca::store::shared::Shared;
use postern_ca::store::{Authority as Row, ControlStore, Kind, ReplicaKeys, Replicated, Sqlite, StoreError};
use postern_ca_etcd::Etcd;
use postern_svid::{Clock, SystemClock};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::accept::{Door, accept};
use crate::admin::Admin;
use crate::attest::{self, Sources};
use crate::config::{Config, Log, LogFormat, LogLevel};
use crate::connection::Connection;
use crate::federation::{Federation, FederationError};
use crate::health::Health;
use crate::identity::{Api, CALL};
use crate::limits::{Limits, Quota};
use crate::lock::{Lock, LockError};
use crate::net::{Listener, TcpListener};
use crate::own::{Own, OwnError};
use crate::replicas::Replicas;
use crate::rotation::{Renewal, Rotation};
use crate::site::{Site, serve};
use crate::socket;
use crate::task::{self, Tasks};
use crate::upkeep::{Upkeep, round_of, sign_heads};

/// Said where a configuration that was put together by hand forgets it.
const NAMELESS: &str = "replica: name this replica, as in replica: control-1";
/// The trust bundle, for operators to hand to sidecars.
pub(crate) const BUNDLE: &str = "bundle.pem";
/// How long calls under way may take when we stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Calls and streams per connection. A sidecar needs two; fewer than a hundred would break clients that open streams before
/// they have heard of a limit (RFC 9113, 6.5.2).
const STREAMS: u32 = 100;
/// PING interval and answer.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));
/// Finished handshakes that wait for the server.
const READY: usize = 64;

/// The whole process: log, runtime, signals. Returns when it was told to stop and has.
pub fn main(config: Config) -> Result<(), StartError> {
    init_log(config.log);
    // Keys are in memory: no core dumps, no debugger of another process of this user.
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "the process stays dumpable");
    }
    let runtime = task::runtime().map_err(StartError::Runtime)?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).map_err(StartError::Runtime)?;
        let mut int = signal(SignalKind::interrupt()).map_err(StartError::Runtime)?;
        let stop = async move {
            crate::task::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        run(config, stop).await
    })
}

/// Starts, and stops when `stop` resolves.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), StartError> {
    let running = start(config).await?;
    stop.await;
    tracing::info!("stopping");
    running.shutdown().await;
    Ok(())
}

/// Starts within the current runtime. Every listener is bound and the CA has proven itself when this returns.
pub async fn start(config: Config) -> Result<Running, StartError> {
    start_with(config, Arc::new(SystemClock)).await
}

/// As [`start`], with a clock.
pub async fn start_with(config: Config, clock: Arc<dyn Clock>) -> Result<Running, StartError> {
    start_sharing(config, clock, None).await
}

/// As [`start_with`], as one of the replicas that share `shared`, whatever the configuration says of where that is.
pub async fn start_sharing(
    config: Config,
    clock: Arc<dyn Clock>,
    shared: Option<Arc<dyn Shared>>,
) -> Result<Running, StartError> {
    config.check().map_err(StartError::Config)?;
    let identity = bind(config.listen, "listen").await?;
    let health_listener = bind(config.health, "health").await?;
    let admin_listener = bind(config.mesh_admin, "meshAdmin").await?;
    let endpoint = match &config.federation.endpoint {
        Some(endpoint) => Some(bind(endpoint.address, "federation.listen").await?),
        None => None,
    };
    let unix = config.listen_unix.as_deref().map(|path| {
        socket::bind(path).map_err(|error| StartError::BindUnix { path: path.to_owned(), error })
    });
    let unix = unix.transpose()?;
    let addresses = Addresses {
        identity: local(&identity, "listen")?,
        health: local(&health_listener, "health")?,
        admin: local(&admin_listener, "meshAdmin")?,
    };

    let opened = {
        let (config, clock) = (config.clone(), clock.clone());
        task::blocking(move || Core::open(&config, clock, shared)).await
    };
    let core = opened.map_err(|error| StartError::Runtime(io::Error::other(error)))??;
    let tasks = Tasks::new();
    // Three missed rounds say that something hangs.
    let every = round_of(config.ttl);
    let patience = (every * 3).max(Duration::from_secs(10));
    let health = Arc::new(Health::new(core.registry, clock.clone(), patience, config.test));
    health.tested(None);
    let (publish, bundle) = watch::channel(core.authority.bundle());
    let told = bundle.clone();
    let (hurry, renewal) =
        watch::channel(Renewal { before: core.authority.renew_before(), spread: Duration::ZERO });

    let admin = Admin {
        address: addresses.admin,
        store: core.store.clone(),
        holders: core.holders.clone(),
        bundle: bundle.clone(),
        clock: clock.clone(),
        authority: core.authority.clone(),
        mode: config.root_rotation,
    };
    let limits = Limits::of_this_process();
    if let Some(listener) = endpoint {
        let page = core.federation.page(bundle.clone(), &core.own, &tasks);
        let site = Site::Bundle(Arc::new(page));
        tasks.spawn(serve(listener, site, limits.site, health.clone(), tasks.clone()));
    }
    for (listener, site) in
        [(health_listener, Site::Health(health.clone())), (admin_listener, Site::Admin(Arc::new(admin)))]
    {
        tasks.spawn(serve(listener, site, limits.site, health.clone(), tasks.clone()));
    }

    let door = Door {
        tls: core.own.tls(),
        clock: clock.clone(),
        health: health.clone(),
        limits,
        strangers: Quota::new(limits.strangers),
        tasks: tasks.clone(),
    };
    let federated = core.federation.follow(core.store.clone(), clock.clone(), &tasks);
    let (ready, connections) = mpsc::channel(READY);
    for listener in [Some(Listener::Tcp(identity)), unix.map(Listener::Unix)].into_iter().flatten() {
        tasks.spawn(accept(listener, door.clone(), ready.clone()));
    }
    let api = Api {
        issuer: core.issuer.clone(),
        jwt: core.jwt.clone(),
        holders: core.holders.clone(),
        bundle,
        renewal,
        federated,
        clock: clock.clone(),
        metrics: core.metrics.clone(),
        tasks: tasks.clone(),
    };
    tasks.spawn(grpc(api, connections, tasks.clone()));
    if !core.sources.is_empty() {
        let (sources, issuer) = (core.sources, core.issuer.clone());
        tasks.spawn(attest::keep(sources, issuer, health.clone(), tasks.clone()));
    }
    tasks.spawn(sign_heads(core.store.clone(), core.metrics.clone(), clock.clone(), tasks.clone()));
    let bundle_path = config.state_dir.join(BUNDLE);
    let rotation = Rotation {
        authority: core.authority.clone(),
        store: core.store.clone(),
        own: core.own.clone(),
        holders: core.holders.clone(),
        metrics: core.metrics.clone(),
        health: health.clone(),
        clock: clock.clone(),
        mode: config.root_rotation,
        ttl: config.ttl,
        bundle_path: bundle_path.clone(),
        bundle: publish,
        renewal: hurry,
    };
    tasks.spawn(rotation.run(every, tasks.clone()));
    let store = core.store.clone();
    let replicas = Replicas {
        store: store.clone(),
        holders: core.holders.clone(),
        bundle: told,
        health: health.clone(),
        clock: clock.clone(),
        ttl: config.ttl,
    };
    replicas.start(&tasks);
    let upkeep = Upkeep {
        authority: core.authority,
        issuer: core.issuer,
        jwt: core.jwt,
        own: core.own,
        store: core.store,
        holders: core.holders,
        metrics: core.metrics,
        health: health.clone(),
        clock: clock.clone(),
        told: parking_lot::Mutex::default(),
    };
    tasks.spawn(upkeep.run(every, tasks.clone()));

    let Addresses { identity, health: health_address, admin } = addresses;
    tracing::info!(
        trust_domain = %config.trust_domain, %identity, health = %health_address, mesh_admin = %admin,
        connections = limits.connections,
        "control plane ready"
    );
    Ok(Running { addresses, bundle_path, tasks, health, store, clock, _lock: core.lock })
}

/// A control plane that runs. Dropping it without [`shutdown`](Self::shutdown) tells its tasks to stop and does not wait.
pub struct Running {
    addresses: Addresses,
    bundle_path: PathBuf,
    tasks: Tasks,
    health: Arc<Health>,
    store: Arc<dyn ControlStore>,
    clock: Arc<dyn Clock>,
    _lock: Lock,
}

#[derive(Clone, Copy)]
struct Addresses {
    identity: SocketAddr,
    health: SocketAddr,
    admin: SocketAddr,
}

impl Running {
    /// Where the identity API listens.
    pub fn identity_address(&self) -> SocketAddr {
        self.addresses.identity
    }

    /// Where the health endpoint listens.
    pub fn health_address(&self) -> SocketAddr {
        self.addresses.health
    }

    /// Where the mesh admin endpoint listens.
    pub fn mesh_admin_address(&self) -> SocketAddr {
        self.addresses.admin
    }

    /// The trust bundle's file, which sidecars are configured with.
    pub fn bundle_path(&self) -> &Path {
        &self.bundle_path
    }

    /// Stops: nothing new is accepted, streams are told, calls under way get a moment, the ledger gets its last head, the store is
    /// closed.
    pub async fn shutdown(self) {
        self.health.stopping();
        self.tasks.stop();
        if tokio::time::timeout(DRAIN, self.tasks.ended()).await.is_err() {
            tracing::warn!("what was still under way after the drain was broken off");
        }
        let (store, now) = (self.store.clone(), self.clock.wall());
        match task::blocking(move || store.local().sign_head(now)).await {
            Ok(Err(error)) => {
                tracing::warn!(%error, "the last records of the ledger have no signed head yet")
            }
            Err(error) => tracing::warn!(%error, "the last records of the ledger have no signed head yet"),
            Ok(Ok(())) => {}
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// Why it did not start. Each text names what is wrong and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A listener.
    #[error(
        "{field}: cannot listen on {address}: {error}. Is another process on it (ss -ltnp), or is the address not this machine's?"
    )]
    Bind {
        /// The configuration's field.
        field: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        error: io::Error,
    },
    /// The Unix socket.
    #[error("listenUnix: cannot listen on {}: {error}", path.display())]
    BindUnix {
        /// Its file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The configuration.
    #[error("{0}")]
    Config(String),
    /// The CA's test of itself.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// Other trust domains.
    #[error(transparent)]
    Federation(#[from] FederationError),
    /// The JWT authority.
    #[error(transparent)]
    Jwt(#[from] JwtAuthorityError),
    /// A file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The state directory is taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There is a CA already, with another root than the one given.
    #[error(
        "{}: has a CA with another root, which is not replaced. Give the CA another stateDir; `postern ca status` shows the root that is there", .0.display()
    )]
    OtherRoot(PathBuf),
    /// A CA that would be made with a root that it is not to have.
    #[error(
        "{}: has no CA yet, and root.offline says that its root is not made here: postern ca init --config FILE --root-cert root.pem, without --root-key (docs/offline-root.md)", .0.display()
    )]
    NoRoot(PathBuf),
    /// A root that comes by file.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Its own certificate.
    #[error(transparent)]
    Own(#[from] OwnError),
    /// The files of a root.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The runtime or its signals.
    #[error("starting the runtime failed: {0}")]
    Runtime(#[source] io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Everything that is opened from the disk.
struct Core {
    lock: Lock,
    store: Arc<dyn ControlStore>,
    authority: Arc<Authority>,
    issuer: Arc<Issuer>,
    jwt: Option<Arc<JwtAuthority>>,
    own: Arc<Own>,
    holders: Arc<Acknowledgements>,
    federation: Federation,
    metrics: Metrics,
    registry: Registry,
    sources: Sources,
}

impl Core {
    fn open(
        config: &Config,
        clock: Arc<dyn Clock>,
        shared: Option<Arc<dyn Shared>>,
    ) -> Result<Self, StartError> {
        keys::private_dir(&config.state_dir)?;
        let lock = Lock::take(&config.state_dir)?;
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let keys = config.keys.open(&config.state_dir, &config.trust_domain)?;
        let (directory, td) = (&config.state_dir, &config.trust_domain);
        let (ledger, now) = (metrics.clone(), clock.wall());
        let store = Sqlite::open_with_ledger(directory, td, keys.as_ref(), ledger, SEGMENT, now)?;
        let shared = match (shared, &config.store) {
            (None, Some(etcd)) => {
                let etcd = Etcd::new(etcd.clone(), td, &mut registry).map_err(StoreError::Shared)?;
                Some(Arc::new(etcd) as Arc<dyn Shared>)
            }
            (shared, _) => shared,
        };
        let (store, keys): (Arc<dyn ControlStore>, _) = match (shared, &config.replica) {
            (None, _) => (Arc::new(store), keys),
            (Some(_), None) => return Err(StartError::Config(NAMELESS.to_owned())),
            (Some(shared), Some(name)) => {
                let (local, td) = (Arc::new(store), td.clone());
                let joined = Replicated::open(
                    name,
                    local,
                    shared.clone(),
                    keys.clone(),
                    td,
                    clock.clone(),
                    metrics.clone(),
                )?;
                (Arc::new(joined), Arc::new(ReplicaKeys::new(keys, shared)))
            }
        };
        let is_new = store.authorities()?.is_empty();
        if is_new && config.offline_root {
            return Err(StartError::NoRoot(config.state_dir.clone()));
        }
        let authority = Arc::new(Authority::open(
            config.trust_domain.clone(),
            store.clone(),
            keys.clone(),
            clock.clone(),
            Lives::with_leaf(config.ttl),
        )?);
        if is_new {
            tell_of_new_root(&store.authorities()?, &config.state_dir);
        }
        let policy = LeafPolicy { ttl: config.ttl, test: config.test };
        let issuer =
            Arc::new(Issuer::new(authority.clone(), store.clone(), clock.clone(), policy, metrics.clone())?);
        let jwt = match &config.jwt {
            None => {
                let withdrawn = jwt::withdraw(&authority, store.as_ref(), keys.as_ref(), now)?;
                if withdrawn > 0 {
                    tracing::warn!(
                        keys = withdrawn,
                        "no `jwt` in the configuration: all JWT keys are withdrawn, and with them all tokens"
                    );
                }
                None
            }
            Some(config_of) => Some(Arc::new(JwtAuthority::open(
                authority.clone(),
                store.clone(),
                keys,
                clock.clone(),
                JwtLives::with_token(config_of.ttl, config.test),
                config_of.issuer.clone(),
                metrics.clone(),
            )?)),
        };
        let federation = Federation::open(config, store.as_ref(), &mut registry, now)?;
        let own = Arc::new(Own::new(issuer.clone(), authority.clone(), clock)?);
        let bundle = authority.bundle().to_pem();
        keys::replace(&config.state_dir.join(BUNDLE), 0o644, bundle.as_bytes())?;
        let watched = attest::Metrics::new(&mut registry);
        let mut sources = Sources::new(config.attestation.clone(), config.registration_terms(), watched);
        // Before the first request: who comes at once is not to be refused for it.
        if let Some(attestation) = sources.read() {
            issuer.attest_by(attestation);
        }
        let holders = Arc::default();
        Ok(Self { lock, store, authority, issuer, jwt, own, holders, federation, metrics, registry, sources })
    }
}

/// Right once in the life of a mesh. At any other time the state directory is the wrong one, or lost, and no sidecar will
/// trust what this CA signs.
fn tell_of_new_root(authorities: &[Row], state_dir: &Path) {
    for root in authorities.iter().filter(|row| row.kind == Kind::Root) {
        tracing::warn!(
            "a new root was made: SHA-256 {}, in {}; if there was one before, stop now and restore it",
            root.sha256(),
            state_dir.display()
        );
    }
}

async fn bind(address: SocketAddr, field: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Bind { field, address, error })
}

fn local(listener: &TcpListener, field: &'static str) -> Result<SocketAddr, StartError> {
    let unknown = SocketAddr::from(([0; 4], 0));
    listener.local_addr().map_err(|error| StartError::Bind { field, address: unknown, error })
}

async fn grpc(api: Api, connections: mpsc::Receiver<Result<Connection, Infallible>>, tasks: Tasks) {
    let served = Server::builder()
        .timeout(CALL)
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(PING.0))
        .http2_keepalive_timeout(Some(PING.1))
        .http2_max_header_list_size(16 * 1024)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .serve_with_incoming_shutdown(api.service(), ReceiverStream::new(connections), tasks.stopped())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the identity API ended");
    }
}

fn init_log(log: Log) {
    let level = match log.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr);
    // Whoever embeds this may have set one up already; theirs stays.
    let _ = match log.format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
