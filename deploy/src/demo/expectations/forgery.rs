//! What a caller writes about its own identity never reaches the callee.

use std::time::Duration;

use serde_json::Value;

use super::{Expectation, Finding, Scene};
use crate::demo::credential::Credential;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::Reply;
use crate::demo::intruder::{Outcome, tls_request};
use crate::demo::mesh::Mesh;
use crate::demo::plan::{NAMESPACE, Service, spiffe_id};

const IDENTITY_FIELD: &str = "x-forwarded-client-cert";

pub(super) const SCENE: Scene = Scene {
    expectations: &[Expectation {
        name: "forged-identity-header",
        claim: "A forged identity header is stripped; the callee sees the caller's proven identity alone",
    }],
    limit: Duration::from_secs(15),
    play: |mesh| Box::pin(async move { vec![forged(mesh).await] }),
};

/// Each forgery once as a request that the storefront's sidecar carries, and once past it, by somebody who holds the
/// storefront's key: what the callee's own sidecar lets through must not depend on the caller's.
async fn forged(mesh: &Mesh) -> Finding {
    let lie = format!("URI={}", spiffe_id("admin"));
    let attempts: [&[(&str, &str)]; 3] = [
        &[(IDENTITY_FIELD, &lie)],
        &[(IDENTITY_FIELD, &lie), ("X-Forwarded-Client-Cert", &lie)],
        // CGI and WSGI fold `_` and `-` into one name.
        &[("x_forwarded_client_cert", &lie), ("X-Forwarded_Client-Cert", &lie)],
    ];
    let stolen = Credential::stolen_from(&mesh.files.svid(Service::Storefront))?;
    for fields in attempts {
        let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        check(&carried(mesh, fields).await?, &lie)
            .explain(format!("forged {names:?}, through the sidecar"))?;
        check(&by_hand(mesh, &stolen, fields).await?, &lie).explain(format!("forged {names:?}, by hand"))?;
    }
    // RFC 9110 7.6.1: a proxy removes what Connection names. Who would have our own field removed is refused.
    let named = [("connection", "x-forwarded-client-cert, keep-alive"), (IDENTITY_FIELD, lie.as_str())];
    let reply = ask(mesh, &named).await?;
    let status = reply.status.as_u16();
    ensure!(status == 400, "named in Connection it gets {status}: {}", reply.excerpt());
    let (count, truth) = (attempts.len() * 2, Service::Storefront.spiffe_id());
    Ok(format!("{count} forgeries, orders sees {IDENTITY_FIELD}: URI={truth}; named in Connection: {status}"))
}

/// The one true field, once, and no trace of the lie.
fn check(seen: &[(String, String)], lie: &str) -> Result<(), Failure> {
    let truth = format!("URI={}", Service::Storefront.spiffe_id());
    let identities: Vec<&str> =
        seen.iter().filter(|(name, _)| name == IDENTITY_FIELD).map(|(_, value)| value.as_str()).collect();
    ensure!(identities == [truth.as_str()], "orders sees {IDENTITY_FIELD} {identities:?}");
    if let Some((name, value)) = seen.iter().find(|(name, value)| name.contains('_') || value.contains(lie)) {
        return Err(Failure::new(format!("orders sees {name}: {value}")));
    }
    Ok(())
}

type Fields = Vec<(String, String)>;

async fn carried(mesh: &Mesh, fields: &[(&str, &str)]) -> Result<Fields, Failure> {
    seen_by_orders(&ask(mesh, fields).await?)
}

async fn ask(mesh: &Mesh, fields: &[(&str, &str)]) -> Result<Reply, Failure> {
    let uri = format!("http://orders.{NAMESPACE}/whoami");
    mesh.through(Service::Storefront).get(&uri, fields).await.explain(format!("GET {uri}"))
}

async fn by_hand(mesh: &Mesh, stolen: &Credential, fields: &[(&str, &str)]) -> Result<Fields, Failure> {
    match tls_request(mesh.plan.mesh(Service::Orders), Some(stolen), "/whoami", fields).await? {
        Outcome::Answered(reply) => seen_by_orders(&reply),
        Outcome::Refused(how) => Err(Failure::new(format!("refused with the storefront's own key: {how}"))),
    }
}

/// Every header field that reached the service, from its own answer.
fn seen_by_orders(reply: &Reply) -> Result<Fields, Failure> {
    ensure!(reply.status.is_success(), "{}: {}", reply.status, reply.excerpt());
    let body = reply.json();
    let seen = body["headers"].as_array().explain("orders does not say what it saw")?;
    let pair = |field: &Value| Some((field.get(0)?.as_str()?.to_owned(), field.get(1)?.as_str()?.to_owned()));
    Ok(seen.iter().filter_map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_true_field_passes() {
        let truth = (IDENTITY_FIELD.to_owned(), format!("URI={}", Service::Storefront.spiffe_id()));
        let lie = format!("URI={}", spiffe_id("admin"));
        assert!(check(std::slice::from_ref(&truth), &lie).is_ok());
        assert!(check(&[], &lie).is_err());
        assert!(check(&[truth.clone(), truth.clone()], &lie).is_err());
        assert!(check(&[truth.clone(), ("x_other".to_owned(), String::new())], &lie).is_err());
        assert!(check(&[truth, ("x-other".to_owned(), lie.clone())], &lie).is_err());
    }
}
