//! R18: a sidecar that the machine holds up, and one that gets no processor.

use std::num::NonZero;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use postern_tests::{Paced, is_long, wait};

use super::{alone, expect_alive, pair};

#[test]
fn a_sidecar_that_is_held_up_loses_nothing() {
    let _alone = alone();
    let (mesh, _origin) = pair(&[]);
    let (web, orders) = (mesh.sidecar("web"), mesh.sidecar("orders"));
    let serials = [web.serial(), orders.serial()];
    let held: &[u64] = if is_long() { &[1, 5] } else { &[1] };
    for (sidecar, name) in [(web, "web"), (orders, "orders")] {
        for seconds in held {
            let load = Paced::start(web.outbound(), "orders.shop", 100);
            wait::pause(Duration::from_millis(500));
            let stopped = Instant::now();
            sidecar.process().signal(Signal::SIGSTOP);
            wait::pause(Duration::from_secs(*seconds));
            sidecar.process().signal(Signal::SIGCONT);
            wait::pause(Duration::from_secs(1));
            let told = load.end();
            println!("R18 {name} stopped for {seconds} s: {}", told.line());
            told.expect_all(name, 100);
            // It really was held up.
            assert!(told.longest() > Duration::from_millis(seconds * 900), "{}", told.line());
            let after = told.between(stopped + Duration::from_millis(seconds * 1_000 + 500), Instant::now());
            assert!(after.longest() < Duration::from_millis(500), "it has caught up: {}", after.line());
        }
    }
    // Time that passed without them is no reason for new certificates, and none has been misjudged.
    assert_eq!([web.serial(), orders.serial()], serials, "they have the same certificates");
    assert!(web.is_ready() && orders.is_ready());
    expect_alive(&mesh);
}

/// A loop that never rests for every processor, ended with their test.
struct Burners(Vec<Child>);

impl Burners {
    fn start() -> Self {
        let burner = || {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--", "sh", "-c", "while :; do :; done"]);
            command.stdin(Stdio::null()).spawn().expect("a shell is everywhere")
        };
        let processors = std::thread::available_parallelism().map_or(2, NonZero::get);
        Self((0..processors).map(|_| burner()).collect())
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for burner in &mut self.0 {
            let _ = burner.kill();
            let _ = burner.wait();
        }
    }
}

#[test]
fn nor_does_one_that_gets_little_of_the_processor() {
    let _alone = alone();
    let (mesh, _origin) = pair(&[]);
    let orders = mesh.sidecar("orders").process().id().to_string();
    let reniced =
        Command::new("renice").args(["-n", "19", "-p", &orders]).output().expect("it is everywhere");
    assert!(reniced.status.success(), "{reniced:?}");
    let burners = Burners::start();
    let time = Duration::from_secs(if is_long() { 30 } else { 3 });
    let told = Paced::during(mesh.sidecar("web").outbound(), "orders.shop", 50, time);
    drop(burners);
    println!("R18 orders at nice 19 beside loops for every processor, {time:?}: {}", told.line());
    told.expect_all("starved", 50);
    expect_alive(&mesh);
}
