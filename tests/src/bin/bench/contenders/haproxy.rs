//! A pair of HAProxies, the fastest general-purpose proxy we know: one thread, TLS 1.3 with client certificates, HTTP/2
//! between them, connections reused, one rule, the caller's name for the backend. HAProxy 2.6 does not read URIs out of
//! certificates, so the rule is on the common name.

use std::path::Path;

use postern_tests::{Process, TRUST_DOMAIN};

use super::{CALLEE, CALLER, Contender, Stage, write};
use crate::{Failure, install, process};

const COMMON: &str = "\
global
  nbthread 1
  maxconn 8192
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode http
  http-reuse always
  timeout connect 1s
  timeout client 600s
  timeout server 600s
";

pub(super) fn start(stage: &Stage, haproxy: &Path) -> Result<Contender, Failure> {
    let [outbound, inbound] = stage.pair_addresses(1);
    let certificates = &stage.certificates;
    let root = certificates.root.display();
    let outbound_config = format!(
        "{COMMON}frontend outbound
  bind {outbound}
  default_backend mesh
backend mesh
  server peer {inbound} ssl crt {own} ca-file {root} verify required verifyhost {CALLEE} alpn h2
",
        own = certificates.both(CALLER).display(),
    );
    let inbound_config = format!(
        "{COMMON}frontend inbound
  bind {inbound} ssl crt {own} ca-file {root} verify required alpn h2
  acl caller ssl_c_s_dn(CN) -m str {CALLER}
  acl reads method GET
  acl orders path_beg /v1/orders
  http-request deny unless caller reads orders
  http-request set-header x-forwarded-client-cert URI=spiffe://{TRUST_DOMAIN}/ns/shop/sa/%[ssl_c_s_dn(CN)]
  default_backend workload
backend workload
  server nginx {backend}
",
        own = certificates.both(CALLEE).display(),
        backend = stage.backend,
    );
    let run = |name: &str, config: &str| -> Result<Process, Failure> {
        let config = write(stage, &format!("{name}.cfg"), config)?;
        let log = stage.directory().join(format!("{name}.log"));
        Ok(process::start(process::PROXIES, name, haproxy, &log, |command| {
            command.args(["-db", "-f"]).arg(&config);
        }))
    };
    let pair = [run("haproxy-outbound", &outbound_config)?, run("haproxy-inbound", &inbound_config)?];
    let version = install::version(haproxy);
    let version = version.split_whitespace().nth(2).unwrap_or_default();
    Ok(Contender {
        name: "haproxy",
        what: format!("HAProxy {version}, one ACL, one header set, h2 between"),
        front: outbound,
        pair: Some(pair),
    })
}
