//! One simulation: three pods and a control plane on turmoil's network, faults, and what must be true all the while.

mod course;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_ca::store::{Sqlite, Store as _};
use postern_ca::token::Token;
use postern_svid::{SpiffeId, TrustDomain, spread};
use rustls_pki_types::CertificateDer;
use turmoil::{Protocol, Segment};

use crate::book::{Book, DEADLINE_MS};
use crate::faults::CONTROL;
use crate::pod::{self, Spec};
use crate::policy::{DOMAIN, FILE, NAMES, Version, id, services};
use crate::seed::{HostClock, Rng, Time};

/// A step of the simulation.
const TICK_MS: u64 = 10;
/// Messages on a link take so long while nothing goes wrong, less or more.
const CALM_MS: u64 = 20;
/// Life of the certificates: each is renewed once or twice.
const TTL: Duration = Duration::from_secs(40);
/// Until a mesh has started.
const START_MS: u64 = 15_000;
const CONTROL_PORT: u16 = 24_150;

/// What became of a simulation.
pub(crate) struct Ran {
    pub(crate) lines: Vec<String>,
    pub(crate) broken: Vec<String>,
    pub(crate) requests: u64,
    pub(crate) arrived: u64,
    pub(crate) ended_ms: u64,
    pub(crate) converged_ms: u64,
    pub(crate) certificates: usize,
}

/// Runs the simulation of a seed.
pub(crate) fn run(seed: u64) -> Ran {
    spread::seed(Some(seed));
    let ran = Driver::new(seed).run();
    spread::seed(None);
    ran
}

struct Driver {
    sim: turmoil::Sim<'static>,
    time: Time,
    clocks: Vec<HostClock>,
    book: Arc<Mutex<Book>>,
    rng: Rng,
    directory: tempfile::TempDir,
    running: [bool; CONTROL + 1],
    denied: Option<usize>,
    /// The sequence of the bundle that everybody is to have in the end.
    sequence: u64,
    next_order: u64,
    orders: u32,
    wire: u64,
}

impl Driver {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let sim = turmoil::Builder::new()
            .tick_duration(Duration::from_millis(TICK_MS))
            .simulation_duration(Duration::from_secs(600))
            .tcp_capacity(1_024)
            .enable_random_order()
            .rng_seed(rng.next())
            .build();
        let time = Time::new();
        let clocks: Vec<_> = (0..=CONTROL).map(|_| HostClock::new(&time)).collect();
        let book = Arc::new(Mutex::new(Book::new(TTL)));
        let directory = tempfile::tempdir_in(memory()).expect("a directory can be made");
        let addresses: Vec<IpAddr> = NAMES.iter().map(|name| sim.lookup(*name)).collect();
        let control = sim.lookup("control");
        let mut driver = Self {
            time,
            clocks,
            book,
            rng,
            directory,
            running: [true; CONTROL + 1],
            denied: None,
            sequence: 0,
            next_order: 0,
            orders: 0,
            wire: 0,
            sim,
        };
        driver.files(&addresses);
        driver.control();
        for (index, name) in NAMES.into_iter().enumerate() {
            let spec = Spec {
                index,
                yaml: yaml(driver.directory.path(), index, control),
                bundle: driver.state().join("bundle.pem"),
                clock: driver.clocks[index].clone(),
                book: Arc::clone(&driver.book),
            };
            driver.sim.host(name, move || pod::run(spec.clone()));
        }
        // A link's latency is one for all its messages, until a step changes it: drawn for each, it would depend on the order
        // in which the tasks of a host send within one instant, which tokio does not promise.
        for a in 0..CONTROL {
            for b in a + 1..=CONTROL {
                let calm = Duration::from_millis(driver.rng.between(1, 2 * CALM_MS));
                driver.sim.set_link_latency(name(a), name(b), calm);
            }
        }
        driver
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    fn documents(&self, pod: usize) -> PathBuf {
        self.directory.path().join(format!("{}-documents", NAMES[pod]))
    }

    fn files(&mut self, addresses: &[IpAddr]) {
        let td = TrustDomain::parse(DOMAIN).expect("it is a trust domain");
        let store = Sqlite::open(&self.state(), &td).expect("a store can be made");
        for (pod, name) in NAMES.iter().enumerate() {
            let id: SpiffeId = id(name).parse().expect("it is an id");
            let out = self.directory.path().join(format!("{name}.token"));
            let (ttl, now) = (Duration::from_secs(600), self.time.wall());
            Token::create(&store, &td, &id, ttl, now, &out).expect("a token can be made");
            fs::create_dir(self.documents(pod)).expect("a directory can be made");
            write(&self.documents(pod).join("services.yaml"), &services(addresses));
        }
        self.publish(u8::MAX);
    }

    /// A new version, for some pods.
    fn publish(&mut self, pods: u8) {
        let number = u32::try_from(self.book.lock().versions.len()).expect("versions are few");
        let version = Version::random(number, &mut self.rng);
        let text = version.text();
        self.book.lock().versions.push(version);
        self.hand_out(pods, &text);
    }

    fn hand_out(&self, pods: u8, text: &str) {
        for pod in (0..NAMES.len()).filter(|pod| pods & (1 << pod) != 0) {
            write(&self.documents(pod).join(FILE), text);
        }
    }

    fn control(&mut self) {
        let td = TrustDomain::parse(DOMAIN).expect("it is a trust domain");
        let mut config = postern_control::Config::new(td, self.state(), ([0, 0, 0, 0], CONTROL_PORT).into());
        config.ttl = TTL;
        config.test = true;
        let clock = self.clocks[CONTROL].clone();
        self.sim.host("control", move || {
            let (config, clock) = (config.clone(), clock.clone());
            async move {
                // As a supervisor does, which starts again what does not start.
                let _running = loop {
                    match postern_control::start_with(config.clone(), Arc::new(clock.clone())).await {
                        Ok(running) => break running,
                        Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                    }
                };
                std::future::pending().await
            }
        });
    }

    fn run(mut self) -> Ran {
        let started = self.until(START_MS, |driver| driver.has_started());
        let mut converged_ms = 0;
        if started {
            self.go_wrong();
            let from = self.now();
            if !self.converge() {
                self.break_rule(5, "what was wrong is over, and not all is well again within 30 s");
            }
            converged_ms = self.now() - from;
            self.deny_in_peace();
            // Whoever still waits is answered, or seen not to be.
            self.until(DEADLINE_MS + 1_000, |driver| driver.book.lock().have_all_ended());
        } else {
            self.break_rule(5, "the mesh does not start");
        }
        let certificates = self.count_certificates();
        if self.wire == 0 {
            self.break_rule(2, "nothing was seen on the wire");
        }
        let ended_ms = self.now();
        let mut book = self.book.lock();
        Ran {
            lines: std::mem::take(&mut book.lines),
            broken: std::mem::take(&mut book.broken),
            requests: u64::from(self.orders),
            arrived: book.arrived,
            ended_ms,
            converged_ms,
            certificates,
        }
    }

    fn now(&self) -> u64 {
        self.time.now_ms()
    }

    fn break_rule(&self, invariant: u8, what: &str) {
        self.book.lock().broke(invariant, what);
    }

    /// Goes on until it is so, or for so long.
    fn until(&mut self, most_ms: u64, is_so: impl Fn(&Self) -> bool) -> bool {
        let end = self.now() + most_ms;
        while self.now() < end {
            if is_so(self) {
                return true;
            }
            self.tick();
            if !self.book.lock().broken.is_empty() {
                return false;
            }
        }
        is_so(self)
    }

    fn tick(&mut self) {
        self.time.set(self.now() + TICK_MS);
        self.book.lock().now_ms = self.now();
        if let Err(error) = self.sim.step() {
            self.break_rule(5, &format!("a host ended by itself: {error}"));
        }
        let mut book = self.book.lock();
        let (mut wire, mut plain) = (0, None);
        self.sim.links(|links| {
            for sent in links.flatten() {
                if let Protocol::Tcp(Segment::Data(_, bytes)) = sent.protocol() {
                    wire += 1;
                    if !is_tls(bytes) {
                        plain = Some(format!("{:?}", sent.pair()));
                    }
                }
            }
        });
        self.wire += wire;
        if let Some(pair) = plain {
            book.broke(2, &format!("bytes that are no TLS between {pair}"));
        }
        book.look();
        if let Some(what) = crate::panics() {
            book.broke(4, &format!("a task panicked: {what}"));
        }
    }

    fn has_started(&self) -> bool {
        let book = self.book.lock();
        (0..NAMES.len()).all(|pod| book.pods[pod].identity.is_some() && book.in_force(pod).is_some())
    }

    /// The CA's own list, by what stands in the certificates: no number twice, no life beyond the cap.
    fn count_certificates(&self) -> usize {
        let td = TrustDomain::parse(DOMAIN).expect("it is a trust domain");
        let store = Sqlite::open(&self.state(), &td).expect("the store can be opened");
        let all = store.valid_certificates(SystemTime::UNIX_EPOCH, &[], 10_000).expect("the store answers");
        let mut serials = BTreeSet::new();
        for one in &all {
            let leaf = CertificateDer::from(one.certificate.as_slice());
            let leaf = postern_svid::tls::peer(Some(&[leaf])).expect("the CA has made it");
            if !serials.insert(leaf.serial().to_vec()) {
                self.break_rule(3, "the CA made two certificates of one serial number");
            }
            let life = leaf.not_after().duration_since(one.issued).unwrap_or_default();
            // A control plane's own certificate lives as long as a leaf.
            if life > TTL + Duration::from_secs(1) {
                self.break_rule(3, &format!("the CA made a certificate of {life:?}"));
            }
        }
        all.len()
    }
}

fn name(host: usize) -> &'static str {
    NAMES.get(host).copied().unwrap_or("control")
}

/// Whether these bytes, which were written at once, are whole TLS records.
fn is_tls(mut bytes: &[u8]) -> bool {
    while let [kind, 3, 1 | 3, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if !(20..=23).contains(kind) || rest.len() < length {
            return false;
        }
        bytes = &rest[length..];
    }
    bytes.is_empty()
}

/// Memory, if the machine has it as a directory: nothing here is to outlive the simulation.
fn memory() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() { shared } else { std::env::temp_dir() }
}

fn write(path: &Path, text: &str) {
    // As tools do it: whole or not at all.
    let new = path.with_extension("new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).expect("a file can be written");
}

fn yaml(directory: &Path, pod: usize, control: IpAddr) -> String {
    let (name, at) = (NAMES[pod], directory.display());
    format!(
        "identity: {id}\nstateDir: {at}/{name}\ncontrolPlane:\n  address: {control}:{CONTROL_PORT}\n  \
         spiffeId: spiffe://{DOMAIN}/postern/control\n  trustBundle: {at}/control/bundle.pem\n  \
         joinToken: {at}/{name}.token\nworkload:\n  address: 127.0.0.1\n  \
         ports: [{{port: 8080, protocol: http}}]\n  labels: {{app: {name}}}\n\
         inbound: {{address: \"0.0.0.0:24143\"}}\noutbound: {{address: \"127.0.0.1:24140\"}}\n\
         health: {{address: \"127.0.0.1:24191\"}}\nadmin: {{socket: {at}/{name}.sock}}\n\
         documents: {at}/{name}-documents\nworkers: 1\ntest: true\n\
         limits: {{pingInterval: 2s, pingTimeout: 4s}}\n",
        id = id(name),
    )
}
