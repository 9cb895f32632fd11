//! A pair of Envoys, as Envoy's own pages on benchmarking and on edge proxies advise: one worker, TLS 1.3 on both
//! sides, no request ids, no per-route statistics, no access log, circuit breakers out of the way, connection buffers of
//! 32 KiB. Between them HTTP/2 over mutual TLS, each pinned to the other's SPIFFE id; inbound an RBAC filter with one
//! policy, and `x-forwarded-client-cert` with the caller's URI.

use std::net::SocketAddr;
use std::path::Path;

use postern_tests::Process;

use super::{CALLEE, CALLER, Contender, HOST, Stage, write};
use crate::certificates::spiffe_id;
use crate::{Failure, install, process};

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// Starts the pair; `filters` judge requests, inbound.
pub(crate) fn start(stage: &Stage, envoy: &Path, filters: &str) -> Result<Contender, Failure> {
    let [outbound, inbound] = stage.pair_addresses(0);
    let run = |name: &str, config: &str| -> Result<Process, Failure> {
        let config = write(stage, &format!("{name}.yaml"), config)?;
        let log = stage.directory().join(format!("{name}.log"));
        Ok(process::start(process::PROXIES, name, envoy, &log, |command| {
            command.args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "error",
                "--config-path",
            ]);
            command.arg(&config);
        }))
    };
    let pair = [
        run("envoy-outbound", &outbound_config(stage, outbound, inbound))?,
        run("envoy-inbound", &inbound_config(stage, inbound, filters))?,
    ];
    Ok(Contender {
        name: "envoy",
        what: format!("{}, RBAC with one policy, x-forwarded-client-cert, h2 between", version(envoy)),
        front: outbound,
        pair: Some(pair),
    })
}

fn version(envoy: &Path) -> String {
    // "<path>  version: <commit>/<version>/Clean/RELEASE/BoringSSL"
    let said = install::version(envoy);
    let version = said.split('/').rev().nth(3).unwrap_or_default();
    format!("Envoy {version}")
}

fn outbound_config(stage: &Stage, own: SocketAddr, peer: SocketAddr) -> String {
    let manager = manager("outbound", "codec_type: HTTP1", HOST, "mesh", "");
    let tls = tls(stage, CALLER, CALLEE);
    let cluster = cluster("mesh", peer, &format!("http2_protocol_options: {H2}"));
    format!(
        "static_resources:
  listeners:
  - name: outbound
    address: {address}
    per_connection_buffer_limit_bytes: 32768
    filter_chains:
    - filters:
{manager}
  clusters:
{cluster}
    transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          \"@type\": {EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext
{tls}
",
        address = address(own),
    )
}

/// An RBAC filter with one policy.
pub(crate) fn one_policy() -> String {
    format!(
        "          - name: envoy.filters.http.rbac
            typed_config:
              \"@type\": {EXTENSIONS}.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  reads:
                    permissions:
                    - and_rules:
                        rules:
                        - header: {{name: ':method', string_match: {{exact: GET}}}}
                        - url_path: {{path: {{prefix: /v1/orders}}}}
                    principals: [{{authenticated: {{principal_name: {{exact: '{}'}}}}}}]
",
        spiffe_id(CALLER)
    )
}

fn inbound_config(stage: &Stage, own: SocketAddr, filters: &str) -> String {
    let manager = manager(
        "inbound",
        &format!(
            "codec_type: HTTP2
          http2_protocol_options: {H2}
          forward_client_cert_details: SANITIZE_SET
          set_current_client_cert_details: {{uri: true}}"
        ),
        "'*'",
        "workload",
        filters,
    );
    let tls = tls(stage, CALLEE, CALLER);
    let cluster = cluster("workload", stage.backend, "http_protocol_options: {}");
    format!(
        "static_resources:
  listeners:
  - name: inbound
    address: {address}
    per_connection_buffer_limit_bytes: 32768
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          \"@type\": {EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
{tls}
      filters:
{manager}
  clusters:
{cluster}
",
        address = address(own),
    )
}

/// Flow-control windows as Envoy's page on edge proxies gives them.
const H2: &str = "{max_concurrent_streams: 250, initial_stream_window_size: 65536, initial_connection_window_size: 1048576}";

fn manager(name: &str, codec: &str, domain: &str, cluster: &str, filters: &str) -> String {
    format!(
        "      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": {EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          {codec}
          generate_request_id: false
          route_config:
            name: routes
            virtual_hosts:
            - name: all
              domains: [{domain}]
              routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]
          http_filters:
{filters}          - name: envoy.filters.http.router
            typed_config:
              \"@type\": {EXTENSIONS}.filters.http.router.v3.Router
              dynamic_stats: false"
    )
}

fn cluster(name: &str, to: SocketAddr, protocol: &str) -> String {
    format!(
        "  - name: {name}
    type: STATIC
    connect_timeout: 1s
    per_connection_buffer_limit_bytes: 32768
    circuit_breakers:
      thresholds:
      - {{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000, max_retries: 1000000}}
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": {EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{{protocol}}}",
        address = address(to),
    )
}

fn tls(stage: &Stage, own: &str, peer: &str) -> String {
    let certificates = &stage.certificates;
    format!(
        "          common_tls_context:
            tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}
            alpn_protocols: [h2]
            tls_certificates:
            - certificate_chain: {{filename: {certificate}}}
              private_key: {{filename: {key}}}
            validation_context:
              trusted_ca: {{filename: {root}}}
              match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: '{peer}'}}}}]",
        certificate = certificates.certificate(own).display(),
        key = certificates.key(own).display(),
        root = certificates.root.display(),
        peer = spiffe_id(peer),
    )
}

fn address(of: SocketAddr) -> String {
    format!("{{socket_address: {{address: {}, port_value: {}}}}}", of.ip(), of.port())
}
