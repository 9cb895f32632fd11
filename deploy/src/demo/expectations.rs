//! What must hold for the demo to succeed: a list of scenes, each with the expectations that it settles.
//!
//! A new expectation is a scene of its own in a file below, or one more entry of an existing scene, and a line in one of
//! the lists here. Its name is stable: tests break the mesh on purpose and demand that name.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::time::timeout;

use crate::demo::failure::{Explain, Failure};
use crate::demo::mesh::Mesh;
use crate::demo::plan::Service;

mod around;
mod broken_policy;
mod calls;
mod captured;
mod events;
mod forgery;
mod intruders;
mod load;
mod outage;
mod policy_edit;
mod rate_limit;
mod renewal;
mod rules;
mod upkeep;
mod way_out;

/// Evidence that an expectation holds, or why it does not.
pub(crate) type Finding = Result<String, Failure>;

/// One thing that must hold.
#[derive(Debug)]
pub(crate) struct Expectation {
    /// Stable, in kebab case.
    pub(crate) name: &'static str,
    /// What holds, as a sentence without its full stop.
    pub(crate) claim: &'static str,
}

/// Something that is done to the mesh, and what must come of it.
pub(crate) struct Scene {
    pub(crate) expectations: &'static [Expectation],
    /// Longest run; a scene that hangs has failed.
    limit: Duration,
    /// Gives one finding for each expectation, in their order.
    play: for<'a> fn(&'a Mesh) -> Playing<'a>,
}

/// What came of one expectation.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) expectation: &'static Expectation,
    pub(crate) finding: Finding,
    /// Of the whole scene.
    pub(crate) took: Duration,
}

type Playing<'a> = Pin<Box<dyn Future<Output = Vec<Finding>> + 'a>>;

/// Before everything else: nothing can be looked at in a mesh that does not come up.
pub(crate) const FIRST: &Scene = &upkeep::COMES_UP;

/// What is played on one ground, after [`FIRST`].
pub(crate) struct Play {
    /// Takes longest, so the scenes in turn happen while it runs; none of them may cost it a request.
    pub(crate) alongside: Option<&'static Scene>,
    /// One after the other.
    pub(crate) in_turn: &'static [&'static Scene],
    /// When the rest is over: they kill processes, or look back.
    pub(crate) last: &'static [&'static Scene],
}

/// On loopback.
pub(crate) const LOOPBACK: Play =
    Play { alongside: Some(&renewal::SCENE), in_turn: IN_TURN, last: &[&outage::SCENE, &upkeep::ALL_WELL] };

/// In namespaces: that nobody gets around a sidecar.
pub(crate) const NAMESPACES: Play = Play {
    alongside: None,
    in_turn: &[
        &calls::ALLOWED,
        &captured::CALLS,
        &captured::REFUSED,
        &calls::OTHER_IDENTITY,
        &way_out::WRONG_ENDPOINT,
        &captured::STRANGER,
        &captured::TO_STRANGER,
        &intruders::PLAINTEXT,
        &intruders::NO_CERTIFICATE,
        &intruders::FOREIGN_CERTIFICATE,
        &around::UDP,
        &around::QUIC,
        &around::DNS,
        &around::IMPOSTOR,
        &around::NEIGHBOURS_LOOPBACK,
    ],
    last: &[&rules::KILLED_SIDECAR, &rules::FLUSHED, &rules::TWICE, &upkeep::ALL_WELL],
};

const IN_TURN: &[&Scene] = &[
    &calls::ALLOWED,
    &calls::DENIED_METHOD,
    &calls::DEFAULT_DENY,
    &calls::OTHER_IDENTITY,
    &rate_limit::SCENE,
    &way_out::UNKNOWN_SERVICE,
    &way_out::WRONG_ENDPOINT,
    &forgery::SCENE,
    &intruders::PLAINTEXT,
    &intruders::NO_CERTIFICATE,
    &intruders::FOREIGN_CERTIFICATE,
    &policy_edit::SCENE,
    &broken_policy::SCENE,
];

impl Play {
    /// Every scene.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static Scene> + use<> {
        let in_turn = self.in_turn.iter().copied();
        [FIRST].into_iter().chain(in_turn).chain(self.alongside).chain(self.last.iter().copied())
    }
}

impl Scene {
    /// Plays the scene. Whatever happens in it, a panic too, every expectation gets its finding.
    pub(crate) async fn settle(&'static self, mesh: &Mesh) -> Vec<Settled> {
        let begun = Instant::now();
        // Findings are values: a scene that unwinds leaves nothing half done that another one reads.
        let playing = AssertUnwindSafe((self.play)(mesh)).catch_unwind();
        let findings = match timeout(self.limit, playing).await {
            Ok(Ok(findings)) => findings,
            Ok(Err(panic)) => {
                self.all_fail(&Failure::new(format!("the check itself broke: {}", message(&*panic))))
            }
            Err(_) => self.all_fail(&Failure::new(format!("not settled within {:?}", self.limit))),
        };
        self.pair(findings, begun.elapsed())
    }

    /// Every expectation fails, because the scene could not be played.
    pub(crate) fn unplayed(&'static self, why: &Failure) -> Vec<Settled> {
        self.pair(self.all_fail(why), Duration::ZERO)
    }

    fn all_fail(&self, why: &Failure) -> Vec<Finding> {
        self.expectations.iter().map(|_| Err(why.clone())).collect()
    }

    fn pair(&'static self, findings: Vec<Finding>, took: Duration) -> Vec<Settled> {
        let mut findings = findings.into_iter();
        let nothing = || Err(Failure::new("the check gave no finding"));
        self.expectations
            .iter()
            .map(|expectation| Settled {
                expectation,
                finding: findings.next().unwrap_or_else(nothing),
                took,
            })
            .collect()
    }
}

impl Mesh {
    /// How often a request with this mark reached a service.
    async fn seen(&self, service: Service, marker: &str) -> Result<u64, Failure> {
        let reply = self.direct(service).get(&format!("/demo/seen/{marker}"), &[]).await;
        let reply = reply.explain(format!("cannot ask {service} what it saw"))?;
        reply.json()["seen"]
            .as_u64()
            .explain(format!("{service} does not say what it saw: {}", reply.excerpt()))
    }
}

/// A mark that no other request of this demo bears.
fn marker() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("mark-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_in_kebab_case() {
        for play in [LOOPBACK, NAMESPACES] {
            let mut seen = BTreeSet::new();
            for expectation in play.all().flat_map(|scene| scene.expectations) {
                let name = expectation.name;
                assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{name}");
                assert!(seen.insert(name), "{name} twice");
                assert!(!expectation.claim.ends_with('.'), "{name}");
            }
        }
    }

    #[test]
    fn a_missing_finding_fails() {
        let settled = FIRST.pair(Vec::new(), Duration::ZERO);
        assert_eq!(settled.len(), FIRST.expectations.len());
        assert!(settled.iter().all(|one| one.finding.is_err()));
    }
}
