//! What goes wrong in a simulation, and when: all of it drawn from the seed before it begins.

use crate::policy::NAMES;
use crate::seed::Rng;

/// The control plane's place among the hosts; the pods come before.
pub(crate) const CONTROL: usize = NAMES.len();
const HOSTS: usize = CONTROL + 1;
/// How long things go wrong.
pub(crate) const LASTS_MS: u64 = 18_000;
/// The slowest link.
const SLOWEST_MS: u64 = 2_000;

/// Something that the driver does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Nothing passes between two hosts, and what is under way is lost.
    Part(usize, usize),
    /// Nothing passes from one to the other.
    PartOneWay(usize, usize),
    /// What is sent waits.
    Hold(usize, usize),
    /// All is well between them, and what waited arrives.
    Heal(usize, usize),
    /// Messages take so many milliseconds.
    Slow(usize, usize, u64),
    /// The process is gone, with all its connections.
    Crash(usize),
    /// It starts anew, with what its disk has.
    Bounce(usize),
    /// A clock goes wrong by so many milliseconds.
    Skew(usize, i64),
    /// A new version of the documents reaches these pods, as bits.
    Publish(u8),
    /// A file that is no document comes into a pod's directory, or leaves it.
    Spoil(usize, bool),
    /// A workload's id is denied, or no longer.
    Deny(usize, bool),
}

/// Steps with their times, from the first fault on.
pub(crate) fn draw(rng: &mut Rng) -> Vec<(u64, Step)> {
    let mut steps = Vec::new();
    let mut links = [[0_u64; HOSTS]; HOSTS];
    let (mut down, mut skewed, mut spoilt) = ([0_u64; HOSTS], [0_u64; HOSTS], [0_u64; HOSTS]);
    let mut denied = 0;
    for _ in 0..rng.between(8, 18) {
        let from = rng.between(0, LASTS_MS - 2_000);
        let to = (from + rng.between(300, 9_000)).min(LASTS_MS - 500);
        let host = rng.below(HOSTS);
        let other = (host + 1 + rng.below(HOSTS - 1)) % HOSTS;
        let (a, b) = (host.min(other), host.max(other));
        let mut lasting = |free: &mut u64, begin: Step, end: Step| {
            // Faults of one kind at one place come one after the other.
            if *free <= from {
                *free = to + 1;
                steps.push((from, begin));
                steps.push((to, end));
            }
        };
        match rng.below(13) {
            0 => lasting(&mut links[a][b], Step::Part(a, b), Step::Heal(a, b)),
            1 => lasting(&mut links[a][b], Step::PartOneWay(host, other), Step::Heal(a, b)),
            2 => lasting(&mut links[a][b], Step::Hold(a, b), Step::Heal(a, b)),
            3 => {
                let (slow, calm) = (rng.between(50, SLOWEST_MS + 1), rng.between(1, 40));
                lasting(&mut links[a][b], Step::Slow(a, b, slow), Step::Slow(a, b, calm));
            }
            4 | 5 => lasting(&mut down[host], Step::Crash(host), Step::Bounce(host)),
            6 => {
                let skew = i64::try_from(rng.between(0, 16_000)).expect("it is small") - 8_000;
                lasting(&mut skewed[host], Step::Skew(host, skew), Step::Skew(host, 0));
            }
            7 if host < CONTROL => {
                lasting(&mut spoilt[host], Step::Spoil(host, true), Step::Spoil(host, false))
            }
            8 if host < CONTROL => lasting(&mut denied, Step::Deny(host, true), Step::Deny(host, false)),
            _ => steps.push((from, Step::Publish(u8::try_from(rng.between(1, 8)).expect("three bits")))),
        }
    }
    steps.sort_by_key(|(at, _)| *at);
    // Sometimes the last denial stays.
    if rng.percent(20) {
        let last = steps.iter().rposition(|(_, step)| matches!(step, Step::Deny(_, false)));
        if let Some(last) = last {
            steps.remove(last);
        }
    }
    steps
}
