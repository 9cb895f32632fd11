//! The control plane from outside: real sockets, real TLS, a client of its own.

mod common;

use std::time::Duration;

use common::*;

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn starts_and_issues() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(&dir);
    let running = start(&state, HOUR).await;
    let svid = join(&running, &state, "orders").await;
    assert_eq!(svid.id(), &id("orders"));
    running.shutdown().await;
}
