//! A policy file is edited while requests and streams are under way.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::events::{End, Events};
use super::{Expectation, Finding, Scene};
use crate::demo::documents::{ORDERS_FILE, orders};
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::Client;
use crate::demo::mesh::{Mesh, within};
use crate::demo::plan::{NAMESPACE, Service};

/// The promise.
const IN_FORCE: Duration = Duration::from_secs(1);
/// How long a changed verdict is watched after that, to see that it stays.
const AFTERWARDS: Duration = Duration::from_millis(500);
const PROBE_PAUSE: Duration = Duration::from_millis(3);

pub(super) const SCENE: Scene = Scene {
    expectations: &[
        Expectation { name: "policy-edit", claim: "A policy edit is in force within a second, both ways" },
        Expectation {
            name: "allowed-stream-continues",
            claim: "A stream that is still allowed after the edit goes on without a gap",
        },
        Expectation {
            name: "revoked-stream-reset",
            claim: "A stream that lost its permission is reset within a second",
        },
    ],
    limit: Duration::from_secs(20),
    play: |mesh| {
        Box::pin(async move {
            let findings = play(mesh).await;
            // What comes after must find the documents as they were.
            let restored = mesh.files.publish(ORDERS_FILE, &orders(true));
            match findings.and_then(|findings| restored.map(|()| findings)) {
                Ok(findings) => findings.into(),
                Err(failure) => vec![Err(failure.clone()), Err(failure.clone()), Err(failure)],
            }
        })
    },
};

async fn play(mesh: &Mesh) -> Result<[Finding; 3], Failure> {
    let kept = Events::open(mesh, "/v1/events").await?;
    let lost = Events::open(mesh, "/v1/refunds/events").await?;
    for (stream, path) in [(&kept, "/v1/events"), (&lost, "/v1/refunds/events")] {
        within(Duration::from_secs(3), path, async || {
            let seen = stream.seen();
            ensure!(seen.numbers.len() >= 3, "{} events came", seen.numbers.len());
            Ok(())
        })
        .await?;
    }
    let edited = Instant::now();
    let closed = edit(mesh, false).await;
    let opened = edit(mesh, true).await;
    let both = closed.and_then(|closed| Ok((closed, opened?)));
    Ok([
        both.map(|(closed, opened)| {
            format!("refused after {} ms, allowed again after {} ms", closed.as_millis(), opened.as_millis())
        }),
        went_on(&kept),
        was_reset(&lost, edited).await,
    ])
}

/// Publishes the policy with or without the refunds and gives the time until that was in force.
async fn edit(mesh: &Mesh, refunds: bool) -> Result<Duration, Failure> {
    let (before, after) = if refunds { (403, 200) } else { (200, 403) };
    let client = mesh.through(Service::Storefront);
    let first = probe(&client).await?;
    ensure!(first == before, "before the edit the probe gives {first}, expected {before}");
    let begun = Instant::now();
    mesh.files.publish(ORDERS_FILE, &orders(refunds))?;
    let mut in_force = None;
    while begun.elapsed() < IN_FORCE + AFTERWARDS {
        let status = probe(&client).await?;
        match in_force {
            None if status == after => in_force = Some(begun.elapsed()),
            None => {
                ensure!(status == before, "during the edit the probe gives {status}");
                ensure!(begun.elapsed() < IN_FORCE, "still {before} after {:?}", begun.elapsed());
            }
            // A request sent after the first one under the new policy must never be judged by the old one.
            Some(since) => {
                ensure!(status == after, "{status} again, though the edit was in force after {since:?}")
            }
        }
        sleep(PROBE_PAUSE).await;
    }
    in_force.explain(format!("still {before} after {IN_FORCE:?}"))
}

async fn probe(client: &Client) -> Result<u16, Failure> {
    let reply =
        client.get(&format!("http://orders.{NAMESPACE}/v1/refunds/7"), &[]).await.explain("the probe")?;
    Ok(reply.status.as_u16())
}

/// Judged when both edits, seconds of events, are over.
fn went_on(kept: &Events) -> Finding {
    let seen = kept.seen();
    ensure!(seen.end.is_none(), "the stream ended: {:?}", seen.end);
    ensure!(seen.gapless(), "events are missing or doubled: {:?}", seen.numbers);
    // Three before the edits; both edits together watch for 3 s, which is 30 events.
    ensure!(seen.numbers.len() >= 20, "only {} events came", seen.numbers.len());
    Ok(format!("{} events, none missing, through both edits", seen.numbers.len()))
}

async fn was_reset(lost: &Events, edited: Instant) -> Finding {
    let seen = lost.seen();
    let came = seen.numbers.len();
    let (at, end) = seen.end.explain(format!("the stream still runs, {came} events came"))?;
    let after = at.duration_since(edited);
    ensure!(after < IN_FORCE, "the stream ended only {after:?} after the edit");
    match end {
        End::Complete => {
            Err(Failure::new("the stream ended as if it were complete, so its reader cannot tell"))
        }
        End::Broken(how) => {
            Ok(format!("reset {} ms after the edit, {came} events came ({how})", after.as_millis()))
        }
    }
}
