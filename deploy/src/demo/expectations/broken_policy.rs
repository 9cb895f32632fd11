//! A policy file that does not compile is refused as a whole, and says where.

use std::time::{Duration, Instant};

use hyper::Method;
use tokio::time::sleep;

use super::{Expectation, Finding, Scene};
use crate::demo::admin::Mistake;
use crate::demo::documents::{Broken, ORDERS_FILE, broken_orders, orders, widening};
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::{Client, request};
use crate::demo::mesh::{Mesh, within};
use crate::demo::plan::{NAMESPACE, Service};

/// As long as an edit may take to be in force: the refused one must not come into force in that time.
const WATCHED: Duration = Duration::from_secs(1);

pub(super) const SCENE: Scene = Scene {
    expectations: &[Expectation {
        name: "broken-policy",
        claim: "A broken policy file is refused with file, line and column; the old policy stays in force",
    }],
    limit: Duration::from_secs(20),
    play: |mesh| Box::pin(async move { vec![broken(mesh).await] }),
};

async fn broken(mesh: &Mesh) -> Finding {
    let mut places = Vec::new();
    for broken in broken_orders() {
        let refused = refused(mesh, &broken).await;
        let (extra, _) = widening();
        // Not there if the check failed early.
        let _ = mesh.files.withdraw(extra);
        mesh.files.publish(ORDERS_FILE, &orders(true))?;
        places.push(refused.map_err(|failure| Failure::new(format!("{}: {failure}", broken.what)))?);
        for service in Service::ALL {
            within(Duration::from_secs(2), "the mended policy", async || {
                let policy = mesh.admin(service).policy().await?;
                ensure!(policy.mistakes.is_empty(), "{service} still reports {:?}", policy.mistakes);
                Ok(())
            })
            .await?;
        }
    }
    Ok(format!("refused by all three sidecars: {}", places.join("; ")))
}

async fn refused(mesh: &Mesh, broken: &Broken) -> Finding {
    let mut generations = Vec::new();
    for service in Service::ALL {
        generations.push(mesh.admin(service).policy().await?.generation);
    }
    mesh.files.publish(ORDERS_FILE, &broken.text)?;
    let mut complaint = String::new();
    for service in Service::ALL {
        let (mistakes, _) = within(Duration::from_secs(2), "the refusal", async || {
            let mistakes = mesh.admin(service).policy().await?.mistakes;
            ensure!(!mistakes.is_empty(), "{service} reports no mistake");
            Ok(mistakes)
        })
        .await?;
        let pointed = mistakes.iter().find(|mistake| points_at(mistake, broken));
        let place = format!("the mistake is in {ORDERS_FILE}:{}", broken.line);
        let pointed = pointed.explain(format!("{place}, {service} points at {mistakes:?}"))?;
        complaint = format!("{ORDERS_FILE}:{}:{}: {}", pointed.line, pointed.column, pointed.message);
        let ready =
            Client::tcp(mesh.plan.health(service)).get("/ready", &[]).await.explain("cannot ask /ready")?;
        let told = ready.status.is_success() && ready.excerpt().contains("documents_refused");
        ensure!(told, "{service}'s /ready does not tell of it: {} {}", ready.status, ready.excerpt());
    }
    // A directory is one set: while one file is broken, no change to another comes into force.
    let (name, text) = widening();
    mesh.files.publish(name, &text)?;
    let begun = Instant::now();
    while begun.elapsed() < WATCHED {
        for (method, expected) in [(Method::GET, 200), (Method::DELETE, 403), (Method::PUT, 403)] {
            let uri = format!("http://orders.{NAMESPACE}/v1/orders/42");
            let call = request(method.clone(), &uri, &[]).explain("cannot build the request")?;
            let reply =
                mesh.through(Service::Storefront).call(call).await.explain(format!("{method} {uri}"))?;
            let status = reply.status.as_u16();
            ensure!(
                status == expected,
                "{method} gives {status} while the file is broken, {expected} before"
            );
        }
        sleep(Duration::from_millis(20)).await;
    }
    for (service, before) in Service::ALL.into_iter().zip(generations) {
        let now = mesh.admin(service).policy().await?.generation;
        ensure!(now == before, "{service} went from generation {before} to {now}");
    }
    Ok(complaint)
}

/// In this very file and line, and in some column.
fn points_at(mistake: &Mistake, broken: &Broken) -> bool {
    let file = std::path::Path::new(&mistake.file).file_name().is_some_and(|name| name == ORDERS_FILE);
    file && usize::try_from(mistake.line) == Ok(broken.line) && mistake.column > 0
}
