//! One Envoy with every policy set: a listener for HTTP whose routes each carry one set, and one for opaque bytes whose
//! filter chains do, chosen by the server name. Mutual TLS and plaintext on the same port.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern_tests::{Process, foreign, wait, wire};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::papers::Papers;
use super::policy::Policy;
use super::rbac::rules;

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// What Envoy judges by for one set: the rules of each action.
#[derive(Default)]
pub(crate) struct Rules {
    pub(crate) http: Vec<(String, Value)>,
    pub(crate) tcp: Vec<(String, Value)>,
}

impl Rules {
    /// As Istio's control plane would write them.
    pub(crate) fn of(set: &[Policy]) -> Self {
        let all = |tcp: bool| {
            let of = |action: &str| Some((action.to_owned(), rules(set, action, tcp)?));
            ["DENY", "ALLOW"].into_iter().filter_map(of).collect()
        };
        Self { http: all(false), tcp: all(true) }
    }

    /// Out of what `postern policy export envoy` writes.
    pub(crate) fn exported(filters: &[Value]) -> Vec<(String, Value)> {
        let of = |filter: &Value| {
            let rules = &filter["typed_config"]["rules"];
            (rules["action"].as_str().expect("a filter has an action").to_owned(), rules.clone())
        };
        filters.iter().map(of).collect()
    }
}

pub(crate) struct Envoy {
    _process: Process,
    clients: HashMap<String, Arc<ClientConfig>>,
    open: HashMap<(u16, String, IpAddr), BufReader<Box<dyn Stream>>>,
    host: IpAddr,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Envoy {
    /// Starts it for these sets, on these ports of `host`: two for HTTP, one for opaque bytes.
    pub(crate) fn start(
        directory: &Path,
        papers: &Papers,
        host: IpAddr,
        ports: [u16; 3],
        sets: &[Rules],
    ) -> Self {
        let config = directory.join("envoy.json");
        let http = ports[..2].iter().map(|port| http_listener(papers, host, *port, sets));
        let all: Vec<Value> = http.chain([tcp_listener(papers, host, ports[2], sets)]).collect();
        let text = json!({"static_resources": {"listeners": all}}).to_string();
        std::fs::write(&config, text).expect("the directory can be written to");
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
        for port in ports {
            wait::until("Envoy listens", Duration::from_secs(60), || {
                assert!(process.ended().is_none(), "Envoy ended: {}", process.log());
                TcpStream::connect((host, port)).is_ok()
            });
        }
        Self { _process: process, clients: papers.clients(), open: HashMap::new(), host }
    }

    /// The status of a request to the route of a set.
    pub(crate) fn status(&mut self, id: Option<&str>, from: IpAddr, port: u16, request: &[u8]) -> u16 {
        let key = (port, id.unwrap_or_default().to_owned(), from);
        // A connection that Envoy has closed meanwhile shows at the first byte.
        for _ in 0..3 {
            let mut stream = match self.open.remove(&key) {
                Some(stream) => stream,
                None => BufReader::new(self.connect(id, from, port, "http.test")),
            };
            if stream.get_mut().write_all(request).and_then(|()| stream.get_mut().flush()).is_err() {
                continue;
            }
            let Some((status, stays)) = answer(&mut stream) else { continue };
            if stays {
                self.open.insert(key, stream);
            }
            return status;
        }
        panic!("no answer to {:?}", String::from_utf8_lossy(request))
    }

    /// Whether a byte comes back from the chain of a set.
    pub(crate) fn passes_bytes(&self, id: &str, from: IpAddr, port: u16, set: usize) -> bool {
        let mut stream = self.connect(Some(id), from, port, &format!("set-{set}.referee.test"));
        let mut byte = [0];
        match stream.write_all(b"x").and_then(|()| stream.flush()).and_then(|()| stream.read(&mut byte)) {
            Ok(read) => read == 1,
            Err(error) => match error.kind() {
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => false,
                // A handshake that fails is no answer.
                _ => panic!("{id} at set {set}: {error}"),
            },
        }
    }

    fn connect(&self, id: Option<&str>, from: IpAddr, port: u16, name: &str) -> Box<dyn Stream> {
        let stream = wire::connect_from(from, SocketAddr::new(self.host, port));
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a positive time is accepted");
        stream.set_nodelay(true).expect("TCP knows nodelay");
        let Some(id) = id else { return Box::new(stream) };
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let client =
            ClientConnection::new(Arc::clone(&self.clients[id]), name).expect("a sound configuration");
        Box::new(StreamOwned::new(client, stream))
    }
}

fn answer(stream: &mut impl BufRead) -> Option<(u16, bool)> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let status = wire::status(line.as_bytes());
    let (mut length, mut stays) = (0, true);
    loop {
        line.clear();
        stream.read_line(&mut line).ok()?;
        let lower = line.trim().to_ascii_lowercase();
        if lower.is_empty() {
            break;
        }
        if let Some(value) = lower.strip_prefix("content-length: ") {
            length = value.parse().ok()?;
        }
        stays &= lower != "connection: close";
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((status, stays))
}

fn listener(host: IpAddr, port: u16, chains: Vec<Value>) -> Value {
    json!({
        "name": format!("port-{port}"),
        "address": {"socket_address": {"address": host.to_string(), "port_value": port}},
        "listener_filters": [{
            "name": "tls-inspector",
            "typed_config": {"@type": format!("{EXTENSIONS}.filters.listener.tls_inspector.v3.TlsInspector")},
        }],
        "filter_chains": chains,
    })
}

fn tls(papers: &Papers) -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificates": [{
                    "certificate_chain": {"inline_string": papers.server.0},
                    "private_key": {"inline_string": papers.server.1},
                }],
                "validation_context": {"trusted_ca": {"inline_string": papers.root}},
            },
        },
    })
}

fn http_listener(papers: &Papers, host: IpAddr, port: u16, sets: &[Rules]) -> Value {
    let rbac = format!("{EXTENSIONS}.filters.http.rbac.v3");
    let route = |(n, set): (usize, &Rules)| {
        let mut own = serde_json::Map::new();
        for (action, rules) in &set.http {
            let config = json!({"@type": format!("{rbac}.RBACPerRoute"), "rbac": {"rules": rules}});
            own.insert(action.clone(), config);
        }
        json!({
            "match": {"safe_regex": {"regex": ".*"}, "headers": [{"name": "x-set", "string_match": {"exact": n.to_string()}}]},
            "direct_response": {"status": 200},
            "typed_per_filter_config": own,
        })
    };
    let filter = |name: &str| json!({"name": name, "typed_config": {"@type": format!("{rbac}.RBAC")}});
    let manager = json!({
        "name": "http",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "http",
            "codec_type": "HTTP1",
            // What Istio's sidecars do where nothing else is configured.
            "normalize_path": true,
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "http_filters": [filter("DENY"), filter("ALLOW"), {
                "name": "router",
                "typed_config": {"@type": format!("{EXTENSIONS}.filters.http.router.v3.Router")},
            }],
            "route_config": {"virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": sets.iter().enumerate().map(route).collect::<Vec<_>>(),
            }]},
        },
    });
    listener(
        host,
        port,
        vec![
            json!({"filter_chain_match": {"transport_protocol": "tls"}, "filters": [manager], "transport_socket": tls(papers)}),
            json!({"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [manager]}),
        ],
    )
}

fn tcp_listener(papers: &Papers, host: IpAddr, port: u16, sets: &[Rules]) -> Value {
    let rbac = format!("{EXTENSIONS}.filters.network.rbac.v3.RBAC");
    let chain = |(n, set): (usize, &Rules)| {
        let mut filters = Vec::new();
        for (action, rules) in &set.tcp {
            filters.push(json!({
                "name": action,
                "typed_config": {"@type": rbac, "rules": rules, "stat_prefix": "tcp"},
            }));
        }
        filters.push(json!({
            "name": "echo",
            "typed_config": {"@type": format!("{EXTENSIONS}.filters.network.echo.v3.Echo")},
        }));
        json!({
            "filter_chain_match": {"server_names": [format!("set-{n}.referee.test")]},
            "filters": filters,
            "transport_socket": tls(papers),
        })
    };
    listener(host, port, sets.iter().enumerate().map(chain).collect())
}

/// A client's configuration with a certificate of its own.
pub(crate) fn client(root: &str, chain: &str, key: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(root.as_bytes()).expect("it is PEM");
    roots.add(root).expect("it is a certificate");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("it is PEM");
    let config = ClientConfig::builder().with_root_certificates(roots);
    Arc::new(config.with_client_auth_cert(chain.expect("it is PEM"), key).expect("the key fits"))
}
