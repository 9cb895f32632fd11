//! A call that the policy allows, and that comes too often.

use std::time::Duration;

use hyper::StatusCode;

use super::{Expectation, Finding, Scene, marker};
use crate::demo::documents::{EXPORT_LIMIT, EXPORT_PATH};
use crate::demo::failure::{Explain, ensure};
use crate::demo::mesh::Mesh;
use crate::demo::plan::{NAMESPACE, Service};
use crate::demo::process;
use crate::demo_service::MARKER;

pub(super) const SCENE: Scene = Scene {
    expectations: &[Expectation {
        name: "rate-limit",
        claim: "What comes more often than a rate limit allows is refused, and its id says by which limit",
    }],
    limit: Duration::from_secs(15),
    play: |mesh| Box::pin(async move { vec![limited(mesh).await] }),
};

/// The first export is answered, the second is one too many; another path of the same rule is counted by nobody.
async fn limited(mesh: &Mesh) -> Finding {
    let caller = mesh.through(Service::Storefront);
    let uri = format!("http://{}.{NAMESPACE}{EXPORT_PATH}", Service::Orders);
    let first = caller.get(&uri, &[]).await.explain(format!("GET {uri}"))?;
    ensure!(
        first.status == StatusCode::OK,
        "the first GET {uri} gives {}: {}",
        first.status,
        first.excerpt()
    );
    let marker = marker();
    let second = caller.get(&uri, &[(MARKER, &marker)]).await.explain(format!("GET {uri}"))?;
    ensure!(
        second.status == StatusCode::TOO_MANY_REQUESTS,
        "the second GET {uri} gives {}: {}",
        second.status,
        second.excerpt()
    );
    let wait = second.header("retry-after").explain("the refusal does not say when to come again")?;
    let seconds: u64 = wait.parse().explain(format!("`retry-after: {wait}` is no number"))?;
    ensure!((1..=60).contains(&seconds), "the caller is told to wait {seconds} s, at 1 a minute");
    let seen = mesh.seen(Service::Orders, &marker).await?;
    ensure!(seen == 0, "orders saw the refused request");
    let other = uri.replace("export", "42");
    let spared = caller.get(&other, &[]).await.explain(format!("GET {other}"))?;
    ensure!(spared.status == StatusCode::OK, "GET {other} gives {}, and no limit is about it", spared.status);

    let id = second.header("postern-decision").explain("the refusal names no decision")?;
    let socket = mesh.files.admin_socket(Service::Orders);
    let socket = socket.to_string_lossy();
    let (code, said) = process::ask(&["policy", "explain", "--sidecar", &socket, id]).await?;
    let limit = EXPORT_LIMIT.join("/");
    let is_told = code == Some(1) && said.contains("deny (rate_limited)") && said.contains(&limit);
    ensure!(is_told, "`postern policy explain {id}` does not name {limit} (exit code {code:?}): {said}");
    Ok(format!(
        "GET {}, then 429, to come again after {seconds} s; `postern policy explain {id}`: rate_limited, {limit}",
        first.status.as_u16()
    ))
}
