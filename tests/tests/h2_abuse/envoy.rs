//! An Envoy with nothing but a listener and a cluster, for comparison.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use postern_tests::{Process, foreign, wait};
use serde_json::{Value, json};

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions.filters";

/// Starts it in front of `origin`.
pub(crate) fn start(directory: &Path, at: SocketAddr, origin: SocketAddr) -> Process {
    let config = directory.join("envoy.json");
    std::fs::write(&config, document(at, origin).to_string()).expect("the directory can be written to");
    let program = foreign::python("").0.with_file_name("envoy");
    let process = Process::start("envoy", &program, &directory.join("envoy.log"), |command| {
        command.args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
            "--config-path",
        ]);
        command.arg(&config);
    });
    wait::until("Envoy listens", Duration::from_secs(60), || {
        assert!(process.ended().is_none(), "Envoy ended: {}", process.log());
        TcpStream::connect(at).is_ok()
    });
    process
}

fn document(at: SocketAddr, origin: SocketAddr) -> Value {
    let address =
        |of: SocketAddr| json!({"socket_address": {"address": of.ip().to_string(), "port_value": of.port()}});
    let router = json!({
        "name": "router",
        "typed_config": {"@type": format!("{EXTENSIONS}.http.router.v3.Router")},
    });
    let manager = json!({
        "@type": format!("{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "attacked",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "origin"}}],
        }]},
        "http_filters": [router],
    });
    json!({"static_resources": {
        "listeners": [{
            "address": address(at),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }],
        "clusters": [{
            "name": "origin",
            "type": "STATIC",
            "load_assignment": {"cluster_name": "origin", "endpoints": [{
                "lb_endpoints": [{"endpoint": {"address": address(origin)}}],
            }]},
        }],
    }})
}
