//! `postern-init` will write the redirect rules of a pod and leave. This version of Postern has an explicit outbound
//! proxy and no redirection, so there is nothing to write; saying so beats succeeding without effect.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "postern-init: this version redirects nothing: point the workload's http_proxy at its sidecar's outbound listener"
    );
    ExitCode::FAILURE
}
