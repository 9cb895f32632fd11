//! Strangers at the mesh listener.

use std::time::{Duration, Instant};

use super::{Expectation, Finding, Scene, marker};
use crate::demo::credential::Credential;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::Client;
use crate::demo::intruder::{Outcome, plaintext, tls_request};
use crate::demo::mesh::{Mesh, within};
use crate::demo::plan::Service;
use crate::demo_service::MARKER;

const LIMIT: Duration = Duration::from_secs(20);
/// Allowed for orders, so nothing but its identity can stand in an intruder's way.
const PATH: &str = "/v1/stock/42";

pub(super) const PLAINTEXT: Scene = Scene {
    expectations: &[Expectation {
        name: "plaintext-intruder",
        claim: "Plaintext at the mesh listener is refused",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![plaintext_refused(mesh).await] }),
};

pub(super) const NO_CERTIFICATE: Scene = Scene {
    expectations: &[Expectation {
        name: "no-client-certificate",
        claim: "A TLS client without a certificate is refused at the mesh listener",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![tls_refused(mesh, None, "no_certificate").await] }),
};

pub(super) const FOREIGN_CERTIFICATE: Scene = Scene {
    expectations: &[Expectation {
        name: "foreign-certificate",
        claim: "A certificate in orders' name from another CA is refused at the mesh listener",
    }],
    limit: LIMIT,
    play: |mesh| Box::pin(async move { vec![foreign_certificate(mesh).await] }),
};

/// As HTTP/1.1 and as HTTP/2 with prior knowledge.
async fn plaintext_refused(mesh: &Mesh) -> Finding {
    let marker = marker();
    let http1 = format!(
        "GET {PATH} HTTP/1.1\r\nhost: store.shop\r\npostern-port: 8080\r\n{MARKER}: {marker}\r\n\r\n"
    );
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".as_slice();
    let begun = Instant::now();
    for (what, bytes) in [("HTTP/1.1", http1.as_bytes()), ("HTTP/2", preface)] {
        let answer =
            plaintext(mesh.plan.mesh(Service::Store), bytes).await.explain(format!("plaintext {what}"))?;
        // A TLS alert (content type 21) is the one thing a listener may say to somebody who speaks no TLS.
        let silent = answer.first().is_none_or(|first| *first == 21);
        ensure!(silent, "plaintext {what} is answered: {:?}", String::from_utf8_lossy(&answer));
    }
    let seen = mesh.seen(Service::Store, &marker).await?;
    ensure!(seen == 0, "the store saw the plaintext request");
    Ok(format!("HTTP/1.1 and HTTP/2: closed without an answer after {} ms", begun.elapsed().as_millis()))
}

async fn foreign_certificate(mesh: &Mesh) -> Finding {
    let credential = Credential::from_another_ca(&Service::Orders.spiffe_id())?;
    tls_refused(mesh, Some(&credential), "untrusted").await
}

/// The listener must refuse, and for `reason`, by its own account.
async fn tls_refused(mesh: &Mesh, credential: Option<&Credential>, reason: &str) -> Finding {
    let marker = marker();
    let before = refusals(mesh, reason).await?;
    let fields = [(MARKER, marker.as_str())];
    let how = match tls_request(mesh.plan.mesh(Service::Store), credential, PATH, &fields).await? {
        Outcome::Refused(how) => how,
        Outcome::Answered(reply) => {
            return Err(Failure::new(format!("the listener lets it in and answers {}", reply.status)));
        }
    };
    let seen = mesh.seen(Service::Store, &marker).await?;
    ensure!(seen == 0, "the store saw the request");
    // It is counted after the alert was sent.
    within(Duration::from_secs(2), "the refusal is counted", async || {
        let after = refusals(mesh, reason).await?;
        ensure!(after > before, "{reason} stays at {after}");
        Ok(())
    })
    .await?;
    Ok(format!("{how}; counted as {reason}"))
}

/// Handshakes that the store's sidecar has refused for `reason`.
async fn refusals(mesh: &Mesh, reason: &str) -> Result<u64, Failure> {
    let page = Client::tcp(mesh.plan.health(Service::Store)).get("/metrics", &[]).await;
    let page = page.explain("cannot read the metrics of the store's sidecar")?;
    refusals_in(&String::from_utf8_lossy(&page.body), reason)
}

fn refusals_in(page: &str, reason: &str) -> Result<u64, Failure> {
    let sample = format!("postern_tls_refusals_total{{reason=\"{reason}\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&sample)?.parse().ok());
    value.explain(format!("the metrics have no {}", sample.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_read_for_itself() {
        let page = "postern_tls_refusals_total{reason=\"untrusted\"} 2\npostern_tls_refusals_total{reason=\"no\"} 0\n";
        assert_eq!(refusals_in(page, "untrusted").ok(), Some(2));
        assert_eq!(refusals_in(page, "no").ok(), Some(0));
        assert!(refusals_in(page, "expired").is_err());
    }
}
