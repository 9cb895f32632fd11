//! `store:` what replicas of a control plane share, and where.

use std::collections::BTreeSet;
use std::path::PathBuf;

use postern_ca_etcd::{Config as Etcd, Endpoint, MAX_ENDPOINTS, Prefix, Tls, User};
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use postern_svid::TrustDomain;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    etcd: Spanned<RawEtcd>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawEtcd {
    endpoints: Spanned<Vec<Spanned<String>>>,
    prefix: Option<Spanned<String>>,
    tls: Option<Spanned<RawTls>>,
    user: Option<Spanned<String>>,
    password_file: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    ca: Spanned<String>,
    cert: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
}

/// What is written under `store`, if it is.
pub(super) fn of(
    raw: Option<Raw>,
    td: Option<&TrustDomain>,
    is_replica: bool,
    file: &SourceFile,
    found: &mut Diagnostics,
) -> Option<Etcd> {
    let etcd = raw?.etcd;
    if !is_replica {
        let message = "store.etcd: `replica` is missing: which one among those that share it is this?";
        found
            .push(yaml::at(file, &etcd, message).with_help("write replica: control-1, another name at each"));
    }
    let etcd = etcd.value;
    let mut endpoints = Vec::new();
    let mut names = BTreeSet::new();
    for written in &etcd.endpoints.value {
        match Endpoint::parse(&written.value) {
            Ok(endpoint) if names.insert(endpoint.to_string()) => endpoints.push(endpoint),
            Ok(_) => {
                found.push(yaml::at(file, written, "store.etcd.endpoints: this member stands here twice"))
            }
            Err(why) => found.push(yaml::at(file, written, format!("store.etcd.endpoints: {why}"))),
        }
    }
    if etcd.endpoints.value.is_empty() || etcd.endpoints.value.len() > MAX_ENDPOINTS {
        let message = format!(
            "store.etcd.endpoints: from 1 to {MAX_ENDPOINTS} members of one cluster, such as https://etcd-1:2379"
        );
        found.push(yaml::at(file, &etcd.endpoints, message));
    }
    let prefix = match &etcd.prefix {
        None => td.map(Prefix::of),
        Some(written) => match Prefix::parse(&written.value) {
            Ok(prefix) => Some(prefix),
            Err(why) => {
                found.push(yaml::at(file, written, format!("store.etcd.prefix: {why}")));
                None
            }
        },
    };
    let needs_tls = endpoints.iter().any(Endpoint::is_tls);
    let tls =
        match etcd.tls {
            None if needs_tls => {
                let message = "store.etcd: https needs `tls`: by whom are the members' certificates signed?";
                found.push(yaml::at(file, &etcd.endpoints, message).with_help(
                    "write tls: {ca: FILE}, and cert and key if etcd asks for a client certificate",
                ));
                None
            }
            Some(tls) if !needs_tls && !endpoints.is_empty() => {
                found.push(yaml::at(file, &tls, "store.etcd.tls: no member is asked over https"));
                None
            }
            tls => tls.and_then(|tls| self::tls(tls.value, file, found)),
        };
    let user = user(etcd.user, etcd.password_file, file, found);
    Some(Etcd { endpoints, prefix: prefix?, tls, user })
}

fn tls(raw: RawTls, file: &SourceFile, found: &mut Diagnostics) -> Option<Tls> {
    let RawTls { ca, cert, key } = raw;
    for path in [Some(&ca), cert.as_ref(), key.as_ref()].into_iter().flatten() {
        if path.value.is_empty() {
            found.push(yaml::at(file, path, "store.etcd.tls: name a file"));
        }
    }
    let own = match (cert, key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert.value.into(), key.value.into())),
        (Some(alone), None) | (None, Some(alone)) => {
            found.push(yaml::at(file, &alone, "store.etcd.tls: a client certificate is `cert` and `key`"));
            return None;
        }
    };
    Some(Tls { ca: PathBuf::from(ca.value), own })
}

fn user(
    name: Option<Spanned<String>>,
    password: Option<Spanned<String>>,
    file: &SourceFile,
    found: &mut Diagnostics,
) -> Option<User> {
    match (name, password) {
        (Some(name), Some(password)) => {
            for (one, what) in [(&name, "user: it has no name"), (&password, "passwordFile: name a file")] {
                if one.value.is_empty() {
                    found.push(yaml::at(file, one, format!("store.etcd.{what}")));
                }
            }
            Some(User { name: name.value, password: password.value.into() })
        }
        (None, None) => None,
        (Some(alone), None) | (None, Some(alone)) => {
            let message = "store.etcd: `user` and `passwordFile` go together; a client certificate with a user's name needs neither";
            found.push(yaml::at(file, &alone, message));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(store: &str) -> Result<Option<Etcd>, String> {
        let text = format!(
            "trustDomain: td\nstateDir: s\nlisten: {{address: \"[::1]:1\"}}\nstore: {store}\n\
             replica: control-1\nkeys: {{seal: {{keyFile: k}}}}\n"
        );
        let file = SourceFile { name: "control.yaml".to_owned(), text: text.into_bytes() };
        Config::parse(&file).map(|config| config.store).map_err(|found| found.to_string())
    }

    #[test]
    fn an_etcd_with_everything_and_with_the_least() {
        let all = "{etcd: {endpoints: [\"https://etcd-1:2379\", \"https://etcd-2:2379\"], prefix: /mesh/td, \
                   tls: {ca: ca.pem, cert: us.pem, key: us.key}, user: ca, passwordFile: /etc/postern/etcd.password}}";
        let etcd = parse(all).unwrap().unwrap();
        assert_eq!(etcd.endpoints[1].to_string(), "https://etcd-2:2379");
        assert_eq!(etcd.prefix.as_str(), "/mesh/td");
        assert_eq!(
            etcd.tls.unwrap(),
            Tls { ca: "ca.pem".into(), own: Some(("us.pem".into(), "us.key".into())) }
        );
        let user = User { name: "ca".to_owned(), password: "/etc/postern/etcd.password".into() };
        assert_eq!(etcd.user, Some(user));
        let least = parse("{etcd: {endpoints: [\"http://127.0.0.1:2379\"]}}").unwrap().unwrap();
        assert_eq!((least.prefix.as_str(), least.tls, least.user), ("/postern/td", None, None));
    }

    #[test]
    fn a_store_and_a_replica_s_name_go_together() {
        for (with, place, says) in [
            (
                "store: {etcd: {endpoints: [\"http://[::1]:2379\"]}}",
                "control.yaml:4:",
                "`replica` is missing",
            ),
            ("replica: control-1", "control.yaml:4:", "`store` is missing"),
        ] {
            let text = format!(
                "trustDomain: td\nstateDir: s\nlisten: {{address: \"[::1]:1\"}}\n{with}\nkeys: {{seal: {{keyFile: k}}}}\n"
            );
            let file = SourceFile { name: "control.yaml".to_owned(), text: text.into_bytes() };
            let error = Config::parse(&file).unwrap_err().to_string();
            assert!(error.contains(place) && error.contains(says), "{error}");
        }
    }

    #[test]
    fn what_is_no_store() {
        let https = "endpoints: [\"https://e:2379\"]";
        for (bad, says) in [
            ("{}".to_owned(), "etcd"),
            ("{etdc: {}}".to_owned(), "did you mean `etcd`"),
            ("{etcd: {endpoints: []}}".to_owned(), "from 1 to 9"),
            ("{etcd: {}}".to_owned(), "endpoints"),
            (format!("{{etcd: {{{https}}}}}"), "https needs `tls`"),
            (format!("{{etcd: {{{https}, tls: {{}}}}}}"), "ca"),
            (format!("{{etcd: {{{https}, tls: {{ca: ''}}}}}}"), "name a file"),
            (format!("{{etcd: {{{https}, tls: {{ca: a, cert: b}}}}}}"), "`cert` and `key`"),
            (format!("{{etcd: {{{https}, tls: {{ca: a}}, user: u}}}}"), "go together"),
            (format!("{{etcd: {{{https}, tls: {{ca: a}}, user: '', passwordFile: p}}}}"), "no name"),
            (format!("{{etcd: {{{https}, tls: {{ca: a}}, prefix: mesh}}}}"), "store.etcd.prefix"),
            (format!("{{etcd: {{{https}, tls: {{ca: a}}, password: p}}}}"), "did you mean `passwordFile`"),
            ("{etcd: {endpoints: [\"https://e:1\", \"https://e:1/\"], tls: {ca: a}}}".to_owned(), "twice"),
            ("{etcd: {endpoints: [\"http://e:2379\"]}}".to_owned(), "without TLS"),
            ("{etcd: {endpoints: [\"http://[::1]:2379\"], tls: {ca: a}}}".to_owned(), "asked over https"),
            ("{etcd: {endpoints: [e]}}".to_owned(), "not a URL"),
        ] {
            let error = parse(&bad).unwrap_err();
            assert!(error.contains("control.yaml:4:") && error.contains(says), "{bad}: {error}");
        }
    }
}
