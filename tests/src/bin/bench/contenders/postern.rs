//! Our own pair: control plane, two sidecars, everything on as it is by default.

use std::path::Path;
use std::time::{Duration, Instant};

use postern_tests::{Process, Sidecar, wait};

use super::{CALLEE, CALLER, Contender, Stage};
use crate::options::Options;
use crate::{Failure, build, process};

/// Starts the pair.
pub(crate) fn start(stage: &Stage, options: &Options) -> Result<Contender, Failure> {
    let proxy = &build::proxy(options)?;
    control_plane(stage, options)?;
    let outbound = sidecar(stage.mesh.sidecar(CALLER), proxy)?;
    let inbound = sidecar(stage.mesh.sidecar(CALLEE), proxy)?;
    Ok(Contender {
        name: "postern",
        what: format!(
            "postern-proxy {}, policy with one rule, x-forwarded-client-cert, metrics, decision ids, h2 between",
            env!("CARGO_PKG_VERSION")
        ),
        front: stage.mesh.sidecar(CALLER).outbound(),
        pair: Some([outbound, inbound]),
    })
}

/// Starts the mesh's control plane.
pub(crate) fn control_plane(stage: &Stage, options: &Options) -> Result<(), Failure> {
    build::control_plane(options)?;
    stage.mesh.control.start();
    Ok(())
}

/// Starts a sidecar, with a join token, and waits until it is ready.
pub(crate) fn sidecar(sidecar: &Sidecar, proxy: &Path) -> Result<Process, Failure> {
    sidecar.create_token();
    let log = sidecar.config().with_extension("bench.log");
    let running = process::start(process::PROXIES, "postern-proxy", proxy, &log, |command| {
        command.arg("run").arg("--config").arg(sidecar.config());
    });
    let start = Instant::now();
    while !sidecar.is_ready() {
        if let Some(status) = running.ended() {
            return Err(format!("postern-proxy ended with {status}:\n{}", running.log()));
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err(format!("postern-proxy does not become ready:\n{}", running.log()));
        }
        wait::pause(Duration::from_millis(20));
    }
    Ok(running)
}
