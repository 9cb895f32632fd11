//! What all contenders share: the backend, a mesh that is written down but not started, certificates, addresses.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use postern_tests::{Mesh, Plan, Process, TRUST_DOMAIN};

use super::{CALLEE, CALLER};
use crate::certificates::Certificates;
use crate::{Failure, install, process};

/// What is asked for.
pub(crate) const PATH: &str = "/v1/orders/17";
/// Where the backend answers with the caller's identity as it was told.
pub(crate) const WHO: &str = "/v1/orders/who";
/// Where it answers with [`LARGE`] bytes.
pub(crate) const LARGE_PATH: &str = "/v1/orders/all";
/// A mebibyte.
pub(crate) const LARGE: usize = 1 << 20;
/// 101 bytes: an answer of the size of a small JSON document.
pub(crate) const BODY: &str =
    "{'order': 17, 'state': 'shipped', 'lines': [{'sku': 'A-1', 'count': 2}, {'sku': 'B-22', 'count': 1}]}";

/// The stage.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) mesh: Mesh,
    pub(crate) backend: SocketAddr,
    pub(crate) certificates: Certificates,
    pub(crate) wrk: PathBuf,
    pub(crate) wrk_version: String,
    pub(crate) nginx_version: String,
    nginx: Process,
}

impl Stage {
    /// Writes everything down, with these files of policies, and starts the backend.
    pub(crate) fn set(policies: &[(String, String)]) -> Result<Self, Failure> {
        let nginx = install::debian("nginx", "nginx-light")?;
        let wrk = install::debian("wrk", "wrk")?;
        install::debian("taskset", "util-linux")?;
        let mut plan = Plan::new();
        plan.sidecar(CALLER);
        plan.sidecar(CALLEE).serves(80, 8080, "http");
        for (name, text) in policies {
            plan.document(name, text);
        }
        let backend = SocketAddr::new(plan.address(CALLEE), 8080);
        let mesh = plan.prepare();
        let directory = mesh.directory().join("bench");
        fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let running = serve(&nginx, &directory, backend)?;
        Ok(Self {
            certificates: Certificates::make(&directory, &[CALLER, CALLEE])?,
            mesh,
            backend,
            wrk_version: install::version(&wrk).split(" Copyright").next().unwrap_or_default().to_owned(),
            wrk,
            nginx_version: install::version(&nginx).replace("nginx version: ", ""),
            nginx: running,
        })
    }

    /// For the contenders' files.
    pub(crate) fn directory(&self) -> PathBuf {
        self.mesh.directory().join("bench")
    }

    /// The backend's process.
    pub(crate) fn nginx(&self) -> u32 {
        self.nginx.id()
    }

    /// Addresses for a pair that is not ours: outbound, inbound. The latter at the workload's port, which rules name.
    pub(crate) fn pair_addresses(&self, at: usize) -> [SocketAddr; 2] {
        let address = self.mesh.spare_address(at);
        [SocketAddr::new(address, 15_001), SocketAddr::new(address, self.backend.port())]
    }
}

/// One rule, as in every contender: this caller, reading, below this path.
pub(crate) fn one_rule() -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: orders, namespace: shop}}\n\
         spec:\n  target: {{selector: {{app: {CALLEE}}}}}\n  action: Allow\n  rules:\n  - name: reads\n    \
         from: [{{spiffe: [\"spiffe://{TRUST_DOMAIN}/ns/shop/sa/{CALLER}\"]}}]\n    \
         to: [{{methods: [GET], pathPrefix: [\"/v1/orders\"]}}]\n"
    )
}

fn serve(nginx: &Path, directory: &Path, address: SocketAddr) -> Result<Process, Failure> {
    let place = directory.display();
    // One process, so that it can be held to one processor and is gone when it is killed.
    let text = format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid {place}/nginx.pid;\n\
         error_log {place}/nginx-error.log;\nevents {{ worker_connections 8192; }}\n\
         http {{\n  access_log off;\n  default_type application/json;\n  keepalive_requests 1000000000;\n  \
         keepalive_timeout 600s;\n  client_body_temp_path {place}/body;\n  proxy_temp_path {place}/proxy;\n  \
         fastcgi_temp_path {place}/fastcgi;\n  uwsgi_temp_path {place}/uwsgi;\n  scgi_temp_path {place}/scgi;\n  \
         server {{\n    listen {address} backlog=4096;\n    \
         location = {WHO} {{ return 200 $http_x_forwarded_client_cert; }}\n    \
         location = {LARGE_PATH} {{ alias {place}/large; }}\n    \
         location / {{ return 200 \"{BODY}\"; }}\n  }}\n}}\n"
    );
    let config = directory.join("nginx.conf");
    let large = directory.join("large");
    for (file, content) in [(&config, text.into_bytes()), (&large, vec![b'x'; LARGE])] {
        fs::write(file, content).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(process::start(process::LOAD, "nginx", nginx, &directory.join("nginx.log"), |command| {
        command.arg("-p").arg(directory).arg("-c").arg(&config);
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_as_long_as_the_documents_say() {
        assert_eq!(BODY.len(), 101);
        assert!(!BODY.contains(['"', '$', '\\']), "nginx would read something into it");
    }
}
