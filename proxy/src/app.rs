//! Wiring and order: configuration, identity, every listener bound, documents, ready, serve, drain.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use postern_agent::workload::Door;
use postern_agent::{Agent, Observer};
use postern_svid::{Clock, SystemClock};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::config::Config;
use crate::connections::Direction;
use crate::drain::Phase;
use crate::listener::{self, HandshakePermit, Permits};
use crate::net::{self, Bound};
use crate::observe::http::listen;
use crate::observe::{admin, admin_port, health, log, probes};
use crate::runtime::{self, spawn};
use crate::sidecar::{Accepting, Sidecar};
use crate::worker::Worker;
use crate::{capture, documents, identity, inbound, jwt, outbound, pressure, rejudge};

/// Why a sidecar did not start, or could not go on.
#[derive(Debug)]
pub enum StartError {
    /// The configuration is wrong: exit code 2.
    Config(String),
    /// The machine did not let it: exit code 1.
    Machine(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) | Self::Machine(text) => f.write_str(text),
        }
    }
}

/// Runs a sidecar with the configuration at `path` until a signal or `POST /v1/drain` ends it.
pub fn run(path: &Path) -> ExitCode {
    match start(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postern-proxy: {error}");
            ExitCode::from(if matches!(error, StartError::Config(_)) { 2 } else { 1 })
        }
    }
}

struct Doors {
    inbound: Bound,
    /// One; with redirection one of each family that this machine has, IPv4 first.
    outbound: Vec<Bound>,
    health: Bound,
    admin: UnixListener,
    admin_port: Option<(Bound, SocketAddr)>,
    workload_api: Option<Door>,
}

fn start(path: &Path) -> Result<(), StartError> {
    let config = Config::read(path).map_err(|diagnostics| StartError::Config(diagnostics.to_string()))?;
    log::start(&config.log).map_err(StartError::Config)?;
    listener::raise_nofile();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut instance = [0_u8; 4];
    aws_lc_rs::rand::fill(&mut instance)
        .map_err(|_| StartError::Machine("the machine gives no randomness".to_owned()))?;
    let sidecar = Arc::new(Sidecar::new(config, clock, u32::from_le_bytes(instance)));

    // Control work has a thread and a runtime of its own; this thread only waits for it.
    let control = runtime::thread("control", move || control(sidecar))
        .map_err(|error| StartError::Machine(format!("no thread: {error}")))?;
    control.join().unwrap_or_else(|_| Err(StartError::Machine("the control thread panicked".to_owned())))
}

/// Everything but the data path, and the order of a sidecar's life.
async fn control(sidecar: Arc<Sidecar>) -> Result<(), StartError> {
    let Doors { inbound, outbound, health, admin, admin_port, workload_api } = bind(&sidecar)?;
    mark(&sidecar)?;
    let agent = start_agent(&sidecar)?;
    let (stop, stopped) = watch::channel(false);
    serve_health(&sidecar, health).await?;
    spawn(admin::run(Arc::clone(&sidecar), admin));
    if let Some((bound, address)) = admin_port {
        let listener =
            bound.listener().await.map_err(|error| StartError::Machine(format!("admin.address: {error}")))?;
        admin_port::serve(&sidecar, listener, address);
    }
    spawn(signals(Arc::clone(&sidecar)));
    spawn(log::tell_left_out());
    crate::decision_log::start(&sidecar)
        .map_err(|error| StartError::Machine(format!("no thread: {error}")))?;
    spawn(pressure::watch(Arc::clone(&sidecar), listener::nofile()));

    let workload_api =
        workload_api.map(|door| spawn(serve_workload(door, agent.observer(), stopped.clone())));
    let first_load = keep_up(&sidecar, agent, stopped);

    // Nothing is accepted before there is an identity to prove and a verdict to give.
    crate::runtime::select! {
        () = wait_for_identity(&sidecar, first_load) => {}
        () = sidecar.drain.begun() => return Ok(()),
    }
    let families = capture::LOOPBACK.into_iter().take(outbound.len()).collect();
    let workers = start_workers(&sidecar, &inbound, &outbound)?;
    // The workers' copies are the last: when they stop accepting, callers are refused instead of waiting for nobody.
    drop((inbound, outbound));
    spawn(capture::watch(Arc::clone(&sidecar), families));
    tracing::info!(identity = %sidecar.config.identity, "accepting");

    let metrics = &sidecar.metrics;
    sidecar.drain.run(|| metrics.active()).await;
    tracing::info!("drained");
    stop.send_replace(true);
    if let Some(served) = workload_api {
        let _ = served.await;
    }
    for worker in workers {
        let _ = crate::runtime::blocking(move || worker.join()).await;
    }
    if sidecar.decision_log.is_some() {
        let sidecar = Arc::clone(&sidecar);
        let last_words =
            move || sidecar.decision_log.as_ref().map(crate::decision_log::DecisionLogger::flush);
        let _ = crate::runtime::blocking(last_words).await;
    }
    let _ = std::fs::remove_file(&sidecar.config.admin_socket);
    if sidecar.has_lost_worker() {
        return Err(StartError::Machine(
            "a worker accepted no longer: its last line in the log says why".to_owned(),
        ));
    }
    Ok(())
}

/// What goes on beside the data path: identity, documents, the hours. Gives whether the documents have been tried.
fn keep_up(sidecar: &Arc<Sidecar>, agent: Agent, stopped: watch::Receiver<bool>) -> watch::Receiver<bool> {
    *sidecar.agent.lock() = Some(agent.observer());
    spawn(identity::follow(Arc::clone(sidecar), agent.identity()));
    spawn(agent.run(stopped.clone()));
    let (loaded, first_load) = watch::channel(false);
    spawn(rejudge::by_the_hour(Arc::clone(sidecar)));
    spawn(documents::stale::watch(Arc::clone(sidecar)));
    spawn(jwt::keep(Arc::clone(sidecar)));
    spawn(documents::follow(Arc::clone(sidecar), loaded, stopped));
    first_load
}

/// A sidecar on a simulated host: identity, documents and the data path, all on the host's one thread, until the host
/// crashes. What serves people and the machine stays out: health, admin, signals, memory, the workload's socket.
#[cfg(feature = "sim")]
pub async fn simulate(sidecar: Arc<Sidecar>) -> Result<(), StartError> {
    let machine = |error: io::Error| StartError::Machine(error.to_string());
    let inbound = Bound::new(sidecar.config.inbound).map_err(machine)?;
    let outbound = vec![Bound::new(sidecar.config.outbound).map_err(machine)?];
    let agent = start_agent(&sidecar)?;
    let (_stop, stopped) = watch::channel(false);
    let first_load = keep_up(&sidecar, agent, stopped);
    wait_for_identity(&sidecar, first_load).await;
    work(Arc::clone(&sidecar), Permits::new(&sidecar), inbound, outbound).await;
    Ok(())
}

async fn wait_for_identity(sidecar: &Sidecar, mut first_load: watch::Receiver<bool>) {
    let _ = first_load.wait_for(|loaded| *loaded).await;
    while sidecar.snapshots.load().identity.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn bind(sidecar: &Sidecar) -> Result<Doors, StartError> {
    let config = &sidecar.config;
    let tcp = |name: &str, address: SocketAddr| opened(name, address, Bound::new(address));
    // The usual place of the socket is in the state directory, which nobody has made before the first start.
    if config.admin_socket.parent() == Some(&config.state_dir) {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.state_dir);
        made.map_err(|error| {
            StartError::Machine(format!("stateDir {}: {error}", config.state_dir.display()))
        })?;
    }
    let admin = admin::bind(&config.admin_socket).map_err(|error| {
        let path = config.admin_socket.display();
        StartError::Machine(format!("admin.socket {path} cannot be bound: {error}"))
    })?;
    Ok(Doors {
        inbound: match &config.capture {
            Some(_) => opened("inbound", config.inbound, Bound::of_both_families(config.inbound))?,
            None => tcp("inbound", config.inbound)?,
        },
        outbound: match &config.capture {
            Some(_) => both_loopbacks(config.outbound)?,
            None => vec![tcp("outbound", config.outbound)?],
        },
        health: tcp("health", config.health)?,
        admin,
        admin_port: match config.admin_port {
            Some(address) => Some((tcp("admin", address)?, address)),
            None => None,
        },
        workload_api: match &config.workload_api {
            Some(endpoint) => {
                let door = Door::bind(endpoint.clone(), sidecar.metrics.workload_api.counts());
                Some(door.map_err(|error| StartError::Machine(format!("workloadApi.socket: {error}")))?)
            }
            None => None,
        },
    })
}

fn opened(name: &str, address: SocketAddr, bound: io::Result<Bound>) -> Result<Bound, StartError> {
    bound.map_err(|error| {
        StartError::Machine(format!(
            "{name}.address {address} cannot be bound: {error} (is another sidecar running there? `ss -ltnp` shows it)"
        ))
    })
}

/// Where calls are redirected to. A machine without IPv6 has no such calls, and would refuse one that nobody answers.
fn both_loopbacks(outbound: SocketAddr) -> Result<Vec<Bound>, StartError> {
    let mut all = Vec::new();
    for ip in capture::LOOPBACK {
        let address = SocketAddr::new(ip, outbound.port());
        match Bound::new(address) {
            Err(error) if ip.is_ipv6() && has_no_ipv6(&error) => {
                tracing::warn!(%error, "no IPv6 here: calls over it are not answered");
            }
            bound => all.push(opened("outbound", address, bound)?),
        }
    }
    Ok(all)
}

fn has_no_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Whoever may not mark its connections would have them all redirected to itself.
fn mark(sidecar: &Sidecar) -> Result<(), StartError> {
    let Some(mark) = sidecar.config.capture.as_ref().and_then(|capture| capture.mark) else { return Ok(()) };
    net::mark_all(mark).map_err(|error| {
        StartError::Machine(format!(
            "capture.mark: a connection cannot be marked: {error} (it takes CAP_NET_ADMIN or CAP_NET_RAW; without `mark` the rules tell the sidecar apart by its user)"
        ))
    })
}

/// The workload is served as long as the sidecar lives: while it drains as well.
async fn serve_workload(door: Door, observer: Observer, stopped: watch::Receiver<bool>) {
    if let Err(error) = door.serve(observer, stopped).await {
        tracing::error!(%error, "the workload's own socket cannot be served");
    }
}

fn start_agent(sidecar: &Sidecar) -> Result<Agent, StartError> {
    let config = &sidecar.config;
    let agent = postern_agent::Config {
        control_plane: config.control_plane.clone(),
        replicas: config.control_plane_replicas.clone(),
        control_plane_id: config.control_plane_id.clone(),
        trust: config.trust.clone(),
        identity: config.identity.clone(),
        attestation: config.attestation.clone(),
        state_dir: config.state_dir.clone(),
        mark: config.capture.as_ref().and_then(|capture| capture.mark),
        test: config.test,
    };
    postern_agent::start(agent, Arc::clone(&sidecar.clock))
        .map_err(|error| StartError::Machine(error.to_string()))
}

async fn serve_health(sidecar: &Arc<Sidecar>, bound: Bound) -> Result<(), StartError> {
    let listener = bound.listener().await.map_err(|error| StartError::Machine(format!("health: {error}")))?;
    let listener = Arc::new(listener);
    let accept = move || {
        let listener = Arc::clone(&listener);
        async move { listener.accept().await.map(|(stream, _)| stream) }
    };
    let handler = {
        let sidecar = Arc::clone(sidecar);
        move |request| probes::answer(Arc::clone(&sidecar), request)
    };
    spawn(listen(Arc::clone(sidecar), health::DOOR, accept, handler));
    Ok(())
}

fn start_workers(
    sidecar: &Arc<Sidecar>,
    inbound: &Bound,
    outbound: &[Bound],
) -> Result<Vec<std::thread::JoinHandle<()>>, StartError> {
    let machine = |error: std::io::Error| StartError::Machine(format!("a worker cannot start: {error}"));
    let permits = Permits::new(sidecar);
    let mut threads = Vec::new();
    for number in 0..sidecar.config.workers {
        let inbound = inbound.duplicate().map_err(machine)?;
        let outbound =
            outbound.iter().map(Bound::duplicate).collect::<Result<Vec<_>, _>>().map_err(machine)?;
        let (sidecar, permits) = (Arc::clone(sidecar), permits.clone());
        let thread =
            runtime::thread(&format!("worker-{number}"), move || work(sidecar, permits, inbound, outbound));
        threads.push(thread.map_err(machine)?);
    }
    Ok(threads)
}

/// One worker, from its first accept to the end of the drain.
async fn work(sidecar: Arc<Sidecar>, permits: Permits, inbound: Bound, outbound: Vec<Bound>) {
    let accepting = Accepting::new(&sidecar);
    let outbound = try_join_all(outbound.into_iter().map(Bound::listener));
    let (inbound, outbound) = match (inbound.listener().await, outbound.await) {
        (Ok(inbound), Ok(outbound)) => (inbound, outbound),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "a worker cannot accept");
            return;
        }
    };
    let worker = Worker::new(Arc::clone(&sidecar));
    spawn(Arc::clone(&worker).keep_house());
    let serve_inbound = {
        let (worker, permits) = (Arc::clone(&worker), permits.clone());
        move |stream, address: SocketAddr| {
            let (worker, permits) = (Arc::clone(&worker), permits.clone());
            async move {
                if let Some(permit) = HandshakePermit::take(&permits, &worker.sidecar, address.ip()) {
                    inbound::serve_connection(worker, stream, address, permit).await;
                }
            }
        }
    };
    let serve_outbound = {
        let worker = Arc::clone(&worker);
        move |stream, address| outbound::serve_connection(Arc::clone(&worker), stream, address)
    };
    tokio::join!(
        listener::accept_loop(
            Arc::clone(&sidecar),
            permits.clone(),
            inbound,
            Direction::Inbound,
            serve_inbound
        ),
        join_all(outbound.into_iter().map(|listener| {
            let (sidecar, permits, serve) = (Arc::clone(&sidecar), permits.clone(), serve_outbound.clone());
            listener::accept_loop(sidecar, permits, listener, Direction::Outbound, serve)
        })),
    );
    drop(accepting);
    // Accepting has ended: what still runs may end too, within the time that is left.
    let limits = &sidecar.config.limits;
    let left = limits.drain_max.saturating_sub(limits.drain_min);
    let ended = async {
        while sidecar.metrics.active() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(left, ended).await;
}

/// SIGTERM and SIGINT begin the drain; a second one ends it at once.
async fn signals(sidecar: Arc<Sidecar>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be caught");
        return;
    };
    loop {
        crate::runtime::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if sidecar.drain.phase() == Phase::Serving {
            tracing::info!("draining");
            sidecar.drain.begin();
        } else {
            std::process::exit(0);
        }
    }
}

#[cfg(all(test, not(feature = "sim")))]
mod tests {
    use super::*;

    fn sidecar() -> Arc<Sidecar> {
        let text = "identity: spiffe://demo.postern/ns/shop/sa/orders
stateDir: /s
controlPlane:
  address: 127.0.0.1:1
  spiffeId: spiffe://demo.postern/postern/control
  trustBundle: /b
  joinToken: /t
workload: {address: 127.0.0.1, ports: [{port: 8080, protocol: http}]}
inbound: {address: \"127.0.0.1:24143\"}
outbound: {address: \"127.0.0.1:24140\"}
health: {address: \"127.0.0.1:24191\"}
admin: {socket: /a}
documents: /d
limits: {drainMin: 0s, drainMax: 1s}
";
        let file = postern_policy::SourceFile { name: "sidecar.yaml".to_owned(), text: text.into() };
        let config = Config::parse(&file).unwrap_or_else(|wrong| panic!("{wrong}"));
        Arc::new(Sidecar::new(config, Arc::new(SystemClock), 1))
    }

    fn any() -> Bound {
        Bound::new(([127, 0, 0, 1], 0).into()).expect("a port is free")
    }

    #[tokio::test]
    async fn a_worker_that_cannot_accept_makes_the_sidecar_leave_unready() {
        let sidecar = sidecar();
        assert!(!health::unready(&sidecar).contains(&"worker_lost"));
        work(Arc::clone(&sidecar), Permits::new(&sidecar), any(), vec![Bound::broken()]).await;
        let codes = health::unready(&sidecar);
        assert!(codes.contains(&"worker_lost") && codes.contains(&"draining"), "{codes:?}");
        assert!(sidecar.has_lost_worker());
    }

    #[tokio::test]
    async fn so_does_one_that_panics() {
        let sidecar = sidecar();
        let accepting = Accepting::new(&sidecar);
        let worker = std::thread::spawn(move || {
            let _accepting = accepting;
            panic!("as a defect would");
        });
        assert!(worker.join().is_err());
        assert!(health::unready(&sidecar).contains(&"worker_lost"));
    }

    #[tokio::test]
    async fn a_worker_that_ends_with_its_sidecar_is_not_missed() {
        let sidecar = sidecar();
        sidecar.drain.begin();
        let working = work(Arc::clone(&sidecar), Permits::new(&sidecar), any(), vec![any()]);
        tokio::join!(working, sidecar.drain.run(|| 0));
        assert_eq!((sidecar.drain.phase(), sidecar.has_lost_worker()), (Phase::Closing, false));
    }
}
