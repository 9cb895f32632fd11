//! What happens in a simulation, one after the other: faults, recovery, a denial.

use std::fs;
use std::time::Duration;

use postern_ca::store::{Reason, Revocation, Sqlite, Store as _};
use postern_svid::{Revoked, TrustDomain};

use super::{Driver, name, write};
use crate::book::{Order, Outcome};
use crate::faults::{self, CONTROL, LASTS_MS, Step};
use crate::policy::{Call, DOMAIN, NAMES, PATHS, Version, id};

/// Until everything is well again when nothing goes wrong any more.
const CONVERGES_MS: u64 = 30_000;
/// Until a denial holds everywhere in a mesh in which nothing goes wrong.
const PROPAGATES_MS: u64 = 2_000;
/// How long is looked whether it does.
const AFTER_DENIAL_MS: u64 = 4_000;
/// Parts of a body at most: 5 s.
const LONGEST_BODY: u32 = 20;

impl Driver {
    /// Faults, and calls all the while.
    pub(super) fn go_wrong(&mut self) {
        let mut steps = faults::draw(&mut self.rng).into_iter().peekable();
        let start = self.now();
        while self.now() < start + LASTS_MS && self.book.lock().broken.is_empty() {
            while let Some((_, step)) = steps.next_if(|(at, _)| start + at <= self.now()) {
                self.step(step);
            }
            if self.next_order <= self.now() {
                self.next_order = self.now() + self.rng.between(50, 400);
                let call = self.any_call();
                // Where the body is slow the workload is not: both take 5 s at most.
                let has_body = call.post && self.rng.percent(60);
                let parts = if has_body { self.rng.between(1, u64::from(LONGEST_BODY) + 1) } else { 0 };
                let thinks_ms =
                    if !has_body && self.rng.percent(50) { self.rng.between(100, 5_000) } else { 0 };
                self.order(call, u32::try_from(parts).expect("they are few"), thinks_ms);
            }
            self.tick();
        }
        // Whatever did not end by then ends now.
        for (_, step) in steps {
            if !matches!(step, Step::Deny(..)) {
                self.step(step);
            }
        }
        let newest = self.book.lock().versions.last().map(Version::text);
        self.hand_out(u8::MAX, &newest.expect("there is a version"));
        // What everybody is told now says that every stream is up again: one that a cut link has left dead is noticed by a PING.
        self.sequence = self.change_trust("nobody", true);
        self.book.lock().line("nothing goes wrong any more");
    }

    fn any_call(&mut self) -> Call {
        let from = self.rng.below(NAMES.len());
        let to = (from + 1 + self.rng.below(NAMES.len() - 1)) % NAMES.len();
        Call { from, to, post: self.rng.percent(60), path: self.rng.below(PATHS.len()) }
    }

    /// A call, if there is somebody to make it. Gives its number.
    fn order(&mut self, call: Call, parts: u32, thinks_ms: u64) -> Option<u32> {
        if !self.running[call.from] {
            return None;
        }
        self.orders += 1;
        self.book.lock().order(Order { number: self.orders, call, parts, thinks_ms });
        Some(self.orders)
    }

    fn step(&mut self, step: Step) {
        self.book.lock().line(&format!("{step:?}"));
        match step {
            Step::Part(a, b) => self.sim.partition(name(a), name(b)),
            Step::PartOneWay(a, b) => self.sim.partition_oneway(name(a), name(b)),
            Step::Hold(a, b) => self.sim.hold(name(a), name(b)),
            Step::Heal(a, b) => self.sim.release(name(a), name(b)),
            Step::Slow(a, b, ms) => self.sim.set_link_latency(name(a), name(b), Duration::from_millis(ms)),
            Step::Crash(host) => {
                self.running[host] = false;
                self.sim.crash(name(host));
                if host < CONTROL {
                    self.book.lock().crashed(host);
                }
            }
            Step::Bounce(host) => {
                self.running[host] = true;
                self.sim.bounce(name(host));
            }
            Step::Skew(host, ms) => self.clocks[host].skew(ms),
            Step::Publish(pods) => self.publish(pods),
            Step::Spoil(pod, begins) => {
                let path = self.documents(pod).join("spoilt.yaml");
                if begins {
                    write(&path, "kind: Nonsense\n")
                } else {
                    fs::remove_file(path).expect("it is there")
                }
            }
            Step::Deny(pod, begins) => self.deny(pod, begins),
        }
    }

    fn deny(&mut self, pod: usize, begins: bool) {
        self.change_trust(NAMES[pod], begins);
        self.denied = begins.then_some(pod);
    }

    /// As `postern ca deny` and `allow-again` do it, beside the control plane. Gives the sequence of the bundle.
    fn change_trust(&self, name: &str, begins: bool) -> u64 {
        let td = TrustDomain::parse(DOMAIN).expect("it is a trust domain");
        let store = Sqlite::open(&self.state(), &td).expect("the store can be opened");
        let entry = Revoked::Id(id(name).parse().expect("it is an id"));
        let (reason, at) = (Reason::parse("as the seed says").expect("it is printable"), self.time.wall());
        if begins {
            let ends = Some(at + Duration::from_secs(3_600));
            store.revoke(Revocation { entry, reason, at, ends }).expect("the store takes it")
        } else {
            store.allow_again(entry, reason, at).expect("the store takes it").unwrap_or(0)
        }
    }

    /// Calls of every kind until all of them end as they should, and nothing in force is old.
    pub(super) fn converge(&mut self) -> bool {
        let end = self.now() + CONVERGES_MS;
        while self.now() < end && self.book.lock().broken.is_empty() {
            let next = self.now() + 1_000;
            let round: Vec<(Call, Option<u32>)> = (0..NAMES.len() * (NAMES.len() - 1) * PATHS.len())
                .map(|number| {
                    let (path, pair) = (number % PATHS.len(), number / PATHS.len());
                    let (from, step) = (pair % NAMES.len(), pair / NAMES.len());
                    let to = (from + 1 + step) % NAMES.len();
                    Call { from, to, post: false, path }
                })
                .map(|call| (call, self.order(call, 0, 0)))
                .collect();
            let left = end - self.now();
            let ended = self.until(left, |driver| {
                let book = driver.book.lock();
                round.iter().all(|(_, number)| number.is_none_or(|number| book.outcome(number).is_some()))
            });
            if ended
                && self.is_up_to_date()
                && round.iter().all(|(call, number)| self.is_right(call, *number))
            {
                return true;
            }
            self.until(next.saturating_sub(self.now()), |_| false);
        }
        false
    }

    fn is_right(&self, call: &Call, number: Option<u32>) -> bool {
        let book = self.book.lock();
        let ended = number.and_then(|number| book.outcome(number));
        let newest = book.versions.last().expect("there is a version");
        if self.denied.is_some_and(|denied| denied == call.from || denied == call.to) {
            return ended != Some(Outcome::Status(200));
        }
        ended == Some(Outcome::Status(if newest.allows(call) { 200 } else { 403 }))
    }

    fn is_up_to_date(&self) -> bool {
        let book = self.book.lock();
        let newest = book.versions.last().map(|version| version.number);
        let now = self.time.wall();
        (0..NAMES.len()).all(|pod| book.in_force(pod) == newest)
            && (0..NAMES.len()).filter(|pod| self.denied != Some(*pod)).all(|pod| {
                let seen = &book.pods[pod];
                seen.identity.is_some_and(|(_, sequence)| sequence >= self.sequence)
                    && seen.not_after.is_some_and(|not_after| not_after > now)
            })
    }

    /// Nothing goes wrong, and a workload is denied: whatever runs from it or to it ends, and nothing more is let in.
    pub(super) fn deny_in_peace(&mut self) {
        if self.denied.is_some() || !self.book.lock().broken.is_empty() {
            return;
        }
        let pod = self.rng.below(NAMES.len());
        for other in (0..NAMES.len()).filter(|other| *other != pod) {
            for path in 0..PATHS.len() {
                for (from, to) in [(pod, other), (other, pod)] {
                    self.order(Call { from, to, post: true, path }, LONGEST_BODY, 0);
                }
            }
        }
        self.until(500, |_| false);
        self.step(Step::Deny(pod, true));
        self.book.lock().silenced = Some((pod, self.now() + PROPAGATES_MS));
        let end = self.now() + AFTER_DENIAL_MS;
        while self.now() < end && self.book.lock().broken.is_empty() {
            let mut call = self.any_call();
            let other = if call.from == pod { call.to } else { call.from };
            (call.from, call.to) = if self.rng.percent(50) { (pod, other) } else { (other, pod) };
            self.order(call, 8, 0);
            self.until(200, |_| false);
        }
    }
}
