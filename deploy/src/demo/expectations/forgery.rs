//! What a caller writes about its own identity never reaches the callee.

use std::time::Duration;

use serde_json::Value;

use super::{Expectation, Finding, Scene};
use crate::demo::failure::{Explain, Failure, ensure};
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

async fn forged(mesh: &Mesh) -> Finding {
    let lie = format!("URI={}", spiffe_id("admin"));
    let attempts: [(&str, &[(&str, &str)]); 4] = [
        ("as it is", &[(IDENTITY_FIELD, &lie)]),
        ("twice", &[(IDENTITY_FIELD, &lie), ("X-Forwarded-Client-Cert", &lie)]),
        // CGI and WSGI fold `_` and `-` into one name.
        ("with underscores", &[("x_forwarded_client_cert", &lie), ("X-Forwarded_Client-Cert", &lie)]),
        // RFC 9110 7.6.1: a proxy removes what Connection names; it must not take our own field away with it.
        (
            "named in Connection",
            &[("connection", "x-forwarded-client-cert, keep-alive"), (IDENTITY_FIELD, &lie)],
        ),
    ];
    for (how, fields) in attempts {
        let seen = fields_seen_by_orders(mesh, fields).await.explain(format!("forged {how}"))?;
        check(&seen, &lie).map_err(|failure| Failure::new(format!("forged {how}: {failure}")))?;
    }
    Ok(format!(
        "{} forgeries stripped, orders sees {IDENTITY_FIELD}: URI={}",
        attempts.len(),
        Service::Storefront.spiffe_id()
    ))
}

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

async fn fields_seen_by_orders(
    mesh: &Mesh,
    fields: &[(&str, &str)],
) -> Result<Vec<(String, String)>, Failure> {
    let uri = format!("http://orders.{NAMESPACE}/whoami");
    let reply = mesh.through(Service::Storefront).get(&uri, fields).await.explain("the call failed")?;
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
