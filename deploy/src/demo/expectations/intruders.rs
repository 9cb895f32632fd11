//! Strangers at the mesh listener.

use std::time::{Duration, Instant};

use super::{Expectation, Finding, Scene, marker};
use crate::demo::credential::Credential;
use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::intruder::{Outcome, plaintext, tls_request};
use crate::demo::mesh::Mesh;
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
    play: |mesh| Box::pin(async move { vec![tls_refused(mesh, None).await] }),
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
    tls_refused(mesh, Some(&credential)).await
}

async fn tls_refused(mesh: &Mesh, credential: Option<&Credential>) -> Finding {
    let marker = marker();
    let fields = [(MARKER, marker.as_str())];
    let how = match tls_request(mesh.plan.mesh(Service::Store), credential, PATH, &fields).await? {
        Outcome::Refused(how) => how,
        Outcome::Answered(reply) => {
            return Err(Failure::new(format!("the listener lets it in and answers {}", reply.status)));
        }
    };
    let seen = mesh.seen(Service::Store, &marker).await?;
    ensure!(seen == 0, "the store saw the request");
    Ok(how)
}
