//! The running mesh: a control plane, three services, three sidecars, each a process of its own.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::process;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::demo::admin::Admin;
use crate::demo::documents::PAYMENTS;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::files::Files;
use crate::demo::http::{Client, Host, Peer};
use crate::demo::netns::{self, Who};
use crate::demo::plan::{Apart, Ground, NAMESPACE, Place, Plan, Service};
use crate::demo::process::{Process, output_of, run_to_end};

/// A sidecar is ready in a tenth of a second; this is for a machine that has everything else to do.
const READY_DEADLINE: Duration = Duration::from_secs(20);
const READY_POLL: Duration = Duration::from_millis(10);

/// A process of the mesh, by what it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Role {
    Control,
    Service(Service),
    Sidecar(Service),
    /// Says what arrives in a namespace that should not.
    Sink(Place),
}

/// The processes, their addresses and files.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) plan: Plan,
    pub(crate) files: Files,
    processes: Mutex<BTreeMap<Role, Process>>,
}

impl Role {
    /// Everything that a mesh runs, in the order in which it starts.
    pub(crate) fn all(ground: Ground) -> impl Iterator<Item = Self> {
        let services =
            Service::ALL.into_iter().flat_map(|service| [Self::Service(service), Self::Sidecar(service)]);
        let sinks: &[Place] = match ground {
            Ground::Loopback => &[],
            Ground::Namespaces(_) => &[Place::Control, Place::Service(Service::Orders), Place::Outsider],
        };
        [Self::Control].into_iter().chain(services).chain(sinks.iter().copied().map(Self::Sink))
    }

    const fn place(self) -> (Place, Who) {
        match self {
            Self::Control => (Place::Control, Who::Own),
            Self::Service(service) => (Place::Service(service), Who::Workload),
            Self::Sidecar(service) => (Place::Service(service), Who::Sidecar),
            Self::Sink(place) => (place, Who::Sink),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Control => "control".to_owned(),
            Self::Service(service) => service.name().to_owned(),
            Self::Sidecar(service) => format!("{service}-sidecar"),
            Self::Sink(place) => format!("{}-sink", place.name()),
        }
    }
}

impl Mesh {
    /// A mesh of which nothing runs yet.
    pub(crate) fn new(plan: Plan, files: Files) -> Self {
        Self { plan, files, processes: Mutex::default() }
    }

    /// Starts everything and waits until all of it is ready.
    pub(crate) async fn come_up(&self) -> Result<(), Failure> {
        self.start(Role::Control).await?;
        self.ready(Role::Control).await?;
        self.hand_out_trust().await?;
        for role in Role::all(self.plan.ground).filter(|role| *role != Role::Control) {
            self.start(role).await?;
        }
        for role in Role::all(self.plan.ground) {
            self.ready(role).await?;
        }
        Ok(())
    }

    /// Starts one process; it need not be ready when this returns.
    pub(crate) async fn start(&self, role: Role) -> Result<(), Failure> {
        let name = role.name();
        let owned = self.arguments(role);
        let arguments: Vec<&str> = owned.iter().map(String::as_str).collect();
        let (place, who) = role.place();
        let within = match self.plan.ground {
            Ground::Loopback => Vec::new(),
            Ground::Namespaces(_) => netns::within(&self.files, &self.plan, place, who),
        };
        let started = Process::start(&name, &within, &arguments, self.files.log(&name))?;
        self.processes.lock().await.insert(role, started);
        Ok(())
    }

    /// Waits until a process says that it is ready, and gives how long that took.
    pub(crate) async fn ready(&self, role: Role) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let mut last = String::from("nothing listens there");
        while begun.elapsed() < READY_DEADLINE {
            let (client, path) = match role {
                Role::Control => (Client::tcp(self.plan.control_health()), "/ready"),
                Role::Sidecar(service) => (Client::tcp(self.plan.health(service)), "/ready"),
                Role::Service(service) => (self.direct(service), "/demo/about"),
                Role::Sink(_) if self.printed(role).await.contains("listening") => return Ok(begun.elapsed()),
                Role::Sink(_) => {
                    self.still_runs(role).await?;
                    sleep(READY_POLL).await;
                    continue;
                }
            };
            match client.get(path, &[]).await {
                Ok(reply) if reply.status.is_success() => return Ok(begun.elapsed()),
                Ok(reply) => last = format!("{path} says {}: {}", reply.status.as_u16(), reply.excerpt()),
                Err(error) => last = error.to_string(),
            }
            self.still_runs(role).await?;
            sleep(READY_POLL).await;
        }
        let processes = self.processes.lock().await;
        let words = processes.get(&role).map(Process::last_words).unwrap_or_default();
        Err(Failure::new(format!("{} is not ready after {READY_DEADLINE:?}: {last}; {words}", role.name())))
    }

    /// Ends a process as a crash would.
    pub(crate) async fn crash(&self, role: Role) -> Result<(), Failure> {
        let removed = self.processes.lock().await.remove(&role);
        removed.explain(format!("{} does not run", role.name()))?.kill().await
    }

    /// Fails if any process ended by itself or panicked.
    pub(crate) async fn all_well(&self) -> Result<String, Failure> {
        let mut processes = self.processes.lock().await;
        for role in Role::all(self.plan.ground) {
            let process = processes.get_mut(&role).explain(format!("{} does not run", role.name()))?;
            if let Some(status) = process.exited() {
                return Err(Failure::new(format!(
                    "{} ended ({status}): {}",
                    process.name(),
                    process.last_words()
                )));
            }
            if let Some(line) = process.panic_line() {
                return Err(Failure::new(format!("{} panicked: {line}", process.name())));
            }
        }
        Ok(format!("{} processes, none ended or panicked", processes.len()))
    }

    /// Processes that have ended by themselves since this was asked last, and what they said.
    pub(crate) async fn ended(&self) -> Vec<String> {
        let mut ended = Vec::new();
        self.processes.lock().await.retain(|_, process| {
            let Some(status) = process.exited() else { return true };
            ended.push(format!(
                "{} ended ({status}), and everything else goes on: {}",
                process.name(),
                process.last_words()
            ));
            false
        });
        ended
    }

    /// Stops everything, sidecars before the services they serve.
    pub(crate) async fn shut_down(&self) {
        let mut processes = self.processes.lock().await;
        for process in processes.values_mut() {
            process.ask_to_stop();
        }
        for process in processes.values_mut() {
            process.stop().await;
        }
        processes.clear();
    }

    /// A client whose calls go through a service's sidecar, as the service's own would.
    pub(crate) fn through(&self, service: Service) -> Client {
        let hosts = Self::hosts().into_iter().map(|host| format!("--host={host}"));
        match self.plan.ground {
            Ground::Loopback => Client::tcp(self.plan.outbound(service)),
            Ground::Namespaces(_) => Client::new(Peer::Probe(
                self.probe(Place::Service(service), "call").into_iter().chain(hosts).collect(),
            )),
        }
    }

    /// A client of the service itself, past its sidecar: on loopback nothing hinders that, wherever the loopback is.
    pub(crate) fn direct(&self, service: Service) -> Client {
        match self.plan.ground {
            Ground::Loopback => Client::tcp(self.plan.service(service)),
            Ground::Namespaces(_) => {
                let mut words = self.probe(Place::Service(service), "call");
                words.push(format!("--to=127.0.0.1:{}", self.plan.service(service).port()));
                Client::new(Peer::Probe(words))
            }
        }
    }

    /// The words that start a probe as an ordinary process of a namespace.
    pub(crate) fn probe(&self, place: Place, verb: &str) -> Vec<String> {
        let mut words = netns::within(&self.files, &self.plan, place, Who::Workload);
        words.extend(["demo-probe".to_owned(), verb.to_owned()]);
        words
    }

    /// What an ordinary process of a namespace says of one thing that it tries, and waits for so long.
    pub(crate) async fn tries(
        &self,
        place: Place,
        verb: &str,
        to: SocketAddr,
        patience: Duration,
    ) -> Result<String, Failure> {
        let mut words = self.probe(place, verb);
        words.extend([format!("--patience={}", patience.as_millis()), to.to_string()]);
        Ok(output_of(&words).await?.trim().to_owned())
    }

    /// A client that is an ordinary process of a namespace and dials what it is told to.
    pub(crate) fn caller(&self, place: Place) -> Client {
        Client::new(Peer::Probe(self.probe(place, "call")))
    }

    /// How much has arrived in a namespace that should not.
    pub(crate) async fn arrived(&self, place: Place) -> usize {
        self.printed(Role::Sink(place)).await.matches("arrived: ").count()
    }

    /// Where services are called that know of no proxy: of IPv4 and IPv6 addresses, one after the other.
    fn hosts() -> Vec<Host> {
        let names = Service::ALL.map(Service::name).into_iter().chain([PAYMENTS]);
        let host = |(at, name): (usize, &str)| Host {
            name: format!("{name}.{NAMESPACE}"),
            address: SocketAddr::new(Plan::called(name)[at % 2], 80),
        };
        names.enumerate().map(host).collect()
    }

    async fn printed(&self, role: Role) -> String {
        self.processes.lock().await.get(&role).map(Process::printed).unwrap_or_default()
    }

    /// The admin socket of a service's sidecar.
    pub(crate) fn admin(&self, service: Service) -> Admin {
        Admin::new(service, self.files.admin_socket(service))
    }

    async fn still_runs(&self, role: Role) -> Result<(), Failure> {
        let mut processes = self.processes.lock().await;
        let process = processes.get_mut(&role).explain(format!("{} does not run", role.name()))?;
        match process.exited() {
            Some(status) => {
                Err(Failure::new(format!("{} ended ({status}): {}", role.name(), process.last_words())))
            }
            None => Ok(()),
        }
    }

    fn arguments(&self, role: Role) -> Vec<String> {
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        match role {
            Role::Control => vec![
                "control".into(),
                "--end-with-stdin".into(),
                "--config".into(),
                text(self.files.control_config()),
            ],
            Role::Sidecar(service) => vec![
                "sidecar".into(),
                "--end-with-stdin".into(),
                "--config".into(),
                text(self.files.sidecar_config(service)),
            ],
            Role::Service(service) => {
                let mut words = vec![
                    "demo-service".into(),
                    service.name().into(),
                    format!("--listen={}", self.plan.bound(self.plan.service(service))),
                    format!("--demo={} in {}", process::id(), self.files.root().display()),
                ];
                match self.plan.ground {
                    Ground::Loopback => words.push(format!("--http-proxy={}", self.plan.outbound(service))),
                    Ground::Namespaces(_) => {
                        words.extend(Self::hosts().iter().map(|host| format!("--host={host}")));
                    }
                }
                words
            }
            Role::Sink(place) => {
                let listeners: &[&str] = match place {
                    Place::Control => &["--udp=[::]:53", "--tcp=[::]:53"],
                    Place::Service(_) => &["--tcp=127.0.0.1:7070", "--udp=[::]:9999", "--udp=[::]:443"],
                    Place::Outsider => {
                        &["--tcp=[::]:8080", "--udp=[::]:53", "--udp=[::]:443", "--udp=[::]:9999"]
                    }
                };
                ["demo-probe", "sink"].iter().chain(listeners).map(|word| (*word).to_owned()).collect()
            }
        }
    }

    /// What an operator does once: the root to every sidecar, a join token to each.
    async fn hand_out_trust(&self) -> Result<(), Failure> {
        let config = self.files.control_config();
        let config = config.to_string_lossy();
        std::fs::copy(self.files.published_bundle(), self.files.trust_bundle())
            .explain("cannot copy the trust bundle")?;
        for service in Service::ALL {
            let out = self.files.token(service);
            let out = out.to_string_lossy();
            let id = service.spiffe_id();
            run_to_end(&[
                "ca", "token", "create", "--config", &config, "--id", &id, "--ttl", "10m", "--out", &out,
            ])
            .await?;
            if self.plan.ground == Ground::Namespaces(Apart::User) {
                netns::give(&self.files.token(service))?;
            }
        }
        Ok(())
    }
}

/// Makes sure that every address of the plan can be had, before anything starts.
pub(crate) async fn addresses_are_free(plan: &Plan) -> Result<(), Failure> {
    for (address, what) in plan.listeners() {
        let Err(error) = TcpListener::bind(address) else { continue };
        let port = address.port();
        let who = match other_demo(plan).await {
            Some(other) => format!("Another demo is running, process {other}: stop it"),
            None => format!("See who holds it with `ss -ltnp 'sport = :{port}'`"),
        };
        let elsewhere = "or let this demo use other addresses, for example with --subnet 127.0.1";
        return Err(Failure::new(format!("{address}, {what}, cannot be used: {error}. {who}, {elsewhere}.")));
    }
    Ok(())
}

/// The demo that already runs on these addresses, if its services answer.
async fn other_demo(plan: &Plan) -> Option<String> {
    for service in Service::ALL {
        if let Ok(reply) = Client::tcp(plan.service(service)).get("/demo/about", &[]).await
            && let Some(demo) = reply.json()["demo"].as_str()
        {
            return Some(demo.to_owned());
        }
    }
    None
}

/// Tries until the condition gives a value, or fails with what it said last; tells how long it took.
pub(crate) async fn within<T, F>(limit: Duration, what: &str, condition: F) -> Result<(T, Duration), Failure>
where
    F: AsyncFn() -> Result<T, Failure>,
{
    let begun = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return Ok((value, begun.elapsed())),
            Err(failure) => {
                ensure!(begun.elapsed() < limit, "{what}: not within {limit:?}, last seen: {failure}")
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_ends_is_told_once() {
        let directory = tempfile::tempdir().expect("there is room");
        let plan = Plan::new("127.0.0".parse().expect("a subnet"));
        let files = Files::lay_out(directory.path(), &plan).expect("the directory is empty");
        let mesh = Mesh::new(plan, files);
        assert!(mesh.ended().await.is_empty());
        // This very program: it lists its tests and ends.
        let log = directory.path().join("listed.log");
        let process = Process::start("orders-sidecar", &[], &["--list"], log).expect("it starts");
        mesh.processes.lock().await.insert(Role::Sidecar(Service::Orders), process);
        let told = async || {
            let told = mesh.ended().await.pop();
            told.explain("it still runs")
        };
        let (told, _) = within(READY_DEADLINE, "it ends", told).await.expect("it ends");
        assert!(told.contains("orders-sidecar ended"), "{told}");
        assert!(mesh.ended().await.is_empty());
    }
}
