//! A stock Envoy, to compare with: a listener, a cluster, and nothing configured that it does not need.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Process, foreign, wait};

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// An Envoy to be.
#[derive(Clone, Debug)]
pub struct Envoy {
    name: String,
    at: SocketAddr,
    to: SocketAddr,
    upstream_http2: bool,
    server: Option<(String, String)>,
    admin: Option<SocketAddr>,
    domains: Vec<String>,
    refused: Vec<Value>,
}

impl Envoy {
    /// One that listens at `at` and sends everything to `to`.
    pub fn new(at: SocketAddr, to: SocketAddr) -> Self {
        Self {
            name: "envoy".to_owned(),
            at,
            to,
            upstream_http2: false,
            server: None,
            admin: None,
            domains: vec!["*".to_owned()],
            refused: Vec::new(),
        }
    }

    /// Another name, where there are several in a directory.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Speaks HTTP/2 to the cluster, on one connection for all.
    pub fn upstream_http2(mut self) -> Self {
        self.upstream_http2 = true;
        self
    }

    /// Speaks TLS with this certificate and key, in PEM.
    pub fn tls(mut self, certificate: &str, key: &str) -> Self {
        self.server = Some((certificate.to_owned(), key.to_owned()));
        self
    }

    /// Tells its figures there.
    pub fn admin(mut self, at: SocketAddr) -> Self {
        self.admin = Some(at);
        self
    }

    /// Serves this host only.
    pub fn domain(mut self, host: &str) -> Self {
        self.domains = vec![host.to_owned()];
        self
    }

    /// Answers with 403 what a route's `match` says.
    pub fn refuses(mut self, what: Value) -> Self {
        self.refused.push(json!({"match": what, "direct_response": {"status": 403}}));
        self
    }

    /// Starts it and waits until it listens.
    pub fn start(&self, directory: &Path) -> Process {
        let config = directory.join(format!("{}.json", self.name));
        std::fs::write(&config, self.document().to_string()).expect("the directory can be written to");
        let program = foreign::python("").0.with_file_name("envoy");
        let log = directory.join(format!("{}.log", self.name));
        let process = Process::start(&self.name, &program, &log, |command| {
            command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
            command.arg("--config-path").arg(&config);
        });
        wait::until("Envoy listens", Duration::from_secs(60), || {
            assert!(process.ended().is_none(), "Envoy ended: {}", process.log());
            TcpStream::connect(self.at).is_ok()
        });
        process
    }

    fn document(&self) -> Value {
        let mut chain = json!({"filters": [{"name": "http", "typed_config": self.manager()}]});
        if let Some((certificate, key)) = &self.server {
            let pair = json!({
                "certificate_chain": {"inline_string": certificate},
                "private_key": {"inline_string": key},
            });
            chain["transport_socket"] = json!({"name": "tls", "typed_config": {
                "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "common_tls_context": {"tls_certificates": [pair]},
            }});
        }
        let mut cluster = json!({
            "name": "origin",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "origin", "endpoints": [{
                "lb_endpoints": [{"endpoint": {"address": address(self.to)}}],
            }]},
        });
        if self.upstream_http2 {
            let options = json!({
                "@type": format!("{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}},
            });
            let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            cluster["typed_extension_protocol_options"] = json!({ name: options });
        }
        let mut document = json!({"static_resources": {
            "listeners": [{"address": address(self.at), "filter_chains": [chain]}],
            "clusters": [cluster],
        }});
        if let Some(at) = self.admin {
            document["admin"] = json!({"address": address(at)});
        }
        document
    }

    fn manager(&self) -> Value {
        let mut routes = self.refused.clone();
        routes.push(json!({"match": {"prefix": "/"}, "route": {"cluster": "origin"}}));
        json!({
            "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "attacked",
            "codec_type": "AUTO",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": self.domains, "routes": routes}]},
            "http_filters": [{
                "name": "router",
                "typed_config": {"@type": format!("{EXTENSIONS}.filters.http.router.v3.Router")},
            }],
        })
    }
}

fn address(of: SocketAddr) -> Value {
    json!({"socket_address": {"address": of.ip().to_string(), "port_value": of.port()}})
}
