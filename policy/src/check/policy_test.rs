//! PolicyTest: requests, and what the rules must say to them. A sidecar checks them for form and runs none.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use crate::yaml::Location;
use jiff::Timestamp;
use postern_svid::SpiffeId;

use super::egress_case::{self, CallOut};
use super::expect::{Beside, Expected, expectation};
use super::peer::{bad_name, is_account};
use super::{NO_PORT, Page, Rules, is_name, jwt, no_spiffe_id};
use crate::diagnostic::Place;
use crate::doc::{CaseDoc, Document, LineDoc, List, RequestDoc, Sp, TestSpec, TestedDoc};
use crate::fields::HeaderFields;
use crate::norm::{CanonHost, CanonMethod, CanonPath, NormError, PathOptions};
use crate::prove::Invariant;
use crate::question::ToldToken;
use crate::upgrade::Upgrade;
use crate::verdict::Workload;
use crate::yaml;

/// What Kubernetes calls the account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// A checked PolicyTest.
pub(crate) struct Test {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) workload: Workload,
    pub(crate) cases: Vec<Case>,
    pub(crate) invariants: Vec<Invariant>,
}

/// A request and what is expected.
pub(crate) struct Case {
    pub(crate) name: Box<str>,
    pub(crate) place: Place,
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) request: Request,
    pub(crate) at: Option<SystemTime>,
    pub(crate) expected: Expected,
    pub(crate) beside: Beside,
}

pub(crate) enum Request {
    Tcp,
    /// With its server name, if it asks for one.
    Tls(Option<CanonHost>),
    /// As it is sent: what a sidecar makes of it depends on the port.
    Http {
        method: Box<str>,
        target: Box<str>,
        host: Option<Box<str>>,
        fields: HeaderFields,
        upgrade: Option<Upgrade>,
        token: ToldToken,
    },
    /// A call of the workload itself.
    Out(CallOut),
}

/// Checks a PolicyTest.
pub(crate) fn policy_test(page: &mut Page<'_>, document: &Document<TestSpec>, rules: &Rules<'_>) -> Test {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    page.names(metadata);
    let own = metadata.namespace.value.as_str();
    let TestSpec { workload, cases: written, invariants } = &spec.value;
    let TestedDoc { namespace, service_account, labels, port } = &workload.value;
    if let Some(namespace) = namespace {
        page.name(namespace);
    }
    if let Some(account) = service_account
        && !is_account(&account.value)
    {
        page.mistake(account.referenced, bad_name("a service account", &account.value));
    }
    let workload = Workload {
        namespace: namespace.as_ref().map_or(own, |name| &name.value).to_owned(),
        service_account: service_account.as_ref().map_or(DEFAULT_ACCOUNT, |name| &name.value).to_owned(),
        labels: labels.as_ref().map(|labels| labels.value.clone()).unwrap_or_default(),
    };
    let port = port.as_ref().map(|port| number(page, port));
    if written.is_none() && invariants.is_none() {
        page.error_with(
            spec.referenced,
            "this test tests nothing",
            "write `cases` (requests and what is expected), or `invariants`",
        );
    }
    let mut seen = HashSet::new();
    let mut cases = Vec::new();
    let written = written.as_ref().map_or(&[][..], |list| page.items(list, "cases"));
    for entry in written {
        let name = &entry.value.name;
        let line = page.title(name, "a case");
        if !seen.insert(line) {
            page.error_with(
                name.referenced,
                format!("the case `{}` stands here twice", yaml::printable(line)),
                "give each its own name",
            );
        }
        cases.extend(case(page, entry, own, &workload.namespace, port, rules));
    }
    let invariants = invariants.as_ref().map(|list| super::invariant::invariants(page, list, own, rules));
    Test {
        namespace: own.into(),
        name: metadata.name.value.as_str().into(),
        workload,
        cases,
        invariants: invariants.unwrap_or_default(),
    }
}

/// `None` if something in it is wrong, which has been told then.
fn case(
    page: &mut Page<'_>,
    entry: &Sp<CaseDoc>,
    own: &str,
    tested: &str,
    port: Option<u16>,
    rules: &Rules<'_>,
) -> Option<Case> {
    let CaseDoc { name, request, expect } = &entry.value;
    let (at, sent) = (request.referenced, &request.value);
    if let Some(url) = &sent.egress {
        return egress_case::case(page, entry, url, tested);
    }
    let identity = caller(page, at, sent, own, rules);
    let address = sent.address.as_ref().map_or(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), |text| {
        let parsed = text.value.parse().ok();
        if parsed.is_none() {
            page.error_with(
                text.referenced,
                format!("`{}` is no address", yaml::printable(&text.value)),
                "write an IP address such as 10.0.0.7 or 2001:db8::7",
            );
        }
        parsed
    });
    let port = sent.port.as_ref().map(|port| number(page, port)).or(port);
    if port.is_none() {
        page.error_with(
            at,
            "the request has no port",
            "write `port` here, or under `workload` for all cases",
        );
    }
    let time = sent.at.as_ref().map(|text| time(page, text));
    let what = what(page, at, sent, rules);
    let (expected, beside) = expectation(page, expect, tested);
    Some(Case {
        name: name.value.trim().into(),
        place: page.place(name.referenced),
        identity: identity?,
        address: address?,
        port: port?,
        request: what?,
        at: match time {
            Some(time) => Some(time?),
            None => None,
        },
        expected: expected?,
        beside,
    })
}

fn number(page: &mut Page<'_>, port: &Sp<u16>) -> u16 {
    if port.value == 0 {
        page.error_with(port.referenced, "0 is no port", NO_PORT);
    }
    port.value
}

pub(super) fn time(page: &mut Page<'_>, text: &Sp<String>) -> Option<SystemTime> {
    let parsed = text.value.parse::<Timestamp>().ok();
    let seconds = parsed.and_then(|time| u64::try_from(time.as_second()).ok());
    match seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))) {
        Some(time) => Some(time),
        None => {
            page.error_with(
                text.referenced,
                "not a point in time",
                "write it like `2026-11-27T10:00:00Z`, or with an offset instead of `Z`",
            );
            None
        }
    }
}

/// Who calls; the inner `None` is a peer without an identity.
fn caller(
    page: &mut Page<'_>,
    at: Location,
    request: &RequestDoc,
    own: &str,
    rules: &Rules<'_>,
) -> Option<Option<SpiffeId>> {
    let (text, flag) = match (&request.from, &request.unauthenticated) {
        (None, Some(flag)) => {
            if !flag.value {
                page.error_with(
                    flag.referenced,
                    "`unauthenticated` can only be true",
                    "write `from` instead",
                );
            }
            return Some(None);
        }
        (Some(text), flag) => (text, flag),
        (None, None) => {
            page.error_with(at, "the request has no caller", "write `from`, or `unauthenticated: true`");
            return None;
        }
    };
    if let Some(flag) = flag {
        page.error_with(
            flag.referenced,
            "a peer without an identity has no name",
            "leave out `from` or `unauthenticated`",
        );
    }
    let parsed = if text.value.starts_with("spiffe:") {
        SpiffeId::parse(&text.value).map_err(|error| no_spiffe_id(&text.value, error))
    } else {
        let (namespace, name) = text.value.split_once('/').unwrap_or((own, &text.value));
        let kind = "a caller (`name`, `namespace/name` or a SPIFFE id)";
        if is_name(namespace) && is_account(name) {
            SpiffeId::service_account(&rules.domains.canonical, namespace, name)
                .map_err(|error| format!("not a caller: {error}").into())
        } else {
            Err(bad_name(kind, &text.value))
        }
    };
    parsed.map(Some).map_err(|error| page.mistake(text.referenced, error)).ok()
}

fn what(page: &mut Page<'_>, at: Location, request: &RequestDoc, rules: &Rules<'_>) -> Option<Request> {
    let RequestDoc {
        egress: _,
        from: _,
        unauthenticated: _,
        address: _,
        port: _,
        method,
        path,
        raw_path,
        host,
        headers,
        upgrade,
        tcp,
        sni,
        jwt,
        at: _,
    } = request;
    if let (Some(sni), None) = (sni, tcp) {
        page.error_with(
            sni.referenced,
            "a request that can be read is no TLS and has no server name",
            "write `tcp: true` beside it",
        );
    }
    if let Some(tcp) = tcp {
        if !tcp.value {
            page.error_with(tcp.referenced, "`tcp` can only be true", "leave it out");
        }
        let words = [method, path, raw_path, host, upgrade].into_iter().flatten().map(|word| word.referenced);
        let words = words.chain(headers.iter().map(|list| list.referenced));
        if let Some(other) = words.chain(jwt.iter().map(|jwt| jwt.referenced)).next() {
            page.error_with(
                other,
                "opaque TCP has no method, path, host, header fields, upgrade or token",
                "leave it out, or leave `tcp` out",
            );
        }
        return match sni {
            None => Some(Request::Tcp),
            Some(name) => server_name(page, name).map(Request::Tls),
        };
    }
    let upgrade = match upgrade.as_ref().map(|name| (name, Upgrade::parse(&name.value))) {
        None => None,
        Some((_, Ok(upgrade))) => Some(upgrade),
        Some((name, Err(error))) => {
            page.error_with(name.referenced, error.to_string(), error.help());
            return None;
        }
    };
    if let Some(word) = method {
        let upper = word.value.to_ascii_uppercase();
        if word.value != upper && CanonMethod::is_registered(&upper) {
            page.error_with(word.referenced, "methods are written in capitals", format!("write `{upper}`"));
        }
    }
    let method = method.as_ref().map_or("GET", |method| &method.value);
    let fields = fields(page, headers.as_ref())?;
    let token = match jwt {
        Some(jwt) => jwt::tested(page, jwt, rules)?,
        None => ToldToken::Absent,
    };
    let (written, is_raw) = match (path, raw_path) {
        (Some(path), None) => (path, false),
        (None, Some(raw)) => (raw, true),
        (Some(_), Some(raw)) => {
            page.error_with(raw.referenced, "a request has one path", "leave out `path` or `rawPath`");
            return None;
        }
        (None, None) => {
            page.error_with(at, "the request has no path", "write `path`, `rawPath`, or `tcp: true`");
            return None;
        }
    };
    if !is_raw {
        // At a port that keeps escaped slashes they may stand in a path.
        let options = PathOptions { escaped_slashes: rules.widest, ..PathOptions::default() };
        let parsed = CanonMethod::parse(method)
            .and_then(|method| CanonPath::parse_for(&method, &written.value, &options));
        match parsed {
            Ok(path) if path.is_changed() => {
                page.error_with(
                    written.referenced,
                    "this path is not in the form in which requests are judged",
                    format!(
                        "write `{}`, or `rawPath` for one as it is sent",
                        yaml::printable(path.path_and_query())
                    ),
                );
                return None;
            }
            // What is no method is none at any path.
            Ok(_) | Err(NormError::Method | NormError::MethodCase) => {}
            Err(error) => {
                page.error_with(
                    written.referenced,
                    error.to_string(),
                    "`rawPath` is for paths as they are sent",
                );
                return None;
            }
        }
    }
    Some(Request::Http {
        method: method.into(),
        target: written.value.as_str().into(),
        host: host.as_ref().map(|host| host.value.as_str().into()),
        fields,
        upgrade,
        token,
    })
}

/// The inner `None` is a handshake that asks for no server name.
fn server_name(page: &mut Page<'_>, name: &Sp<String>) -> Option<Option<CanonHost>> {
    if name.value.is_empty() {
        return Some(None);
    }
    match CanonHost::parse(&name.value) {
        Ok(host) if host.port().is_none() && host.address().is_none() => Some(Some(host)),
        Ok(_) => {
            page.error(name.referenced, "a server name of TLS has no port and is no address");
            None
        }
        Err(error) => {
            page.error(name.referenced, error.to_string());
            None
        }
    }
}

/// Fields of a request that is told in full: what is not written was not sent.
fn fields(page: &mut Page<'_>, list: Option<&List<LineDoc>>) -> Option<HeaderFields> {
    let mut out = HeaderFields::new();
    let mut good = true;
    let Some(list) = list else { return Some(out) };
    for line in page.items(list, "headers") {
        let LineDoc { name, value } = &line.value;
        if let Err(error) = out.push(&name.value, &value.value) {
            page.error(name.referenced, error.to_string());
            good = false;
        }
    }
    good.then_some(out)
}
