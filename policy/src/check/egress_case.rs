//! A case of a PolicyTest about a call out of the workload.

use std::net::{IpAddr, Ipv4Addr};

use super::Page;
use super::expect::expectation;
use super::policy_test::{Case, Request, time};
use crate::doc::{CaseDoc, RequestDoc, Sp};
use crate::egress::CallTarget;
use crate::yaml;

/// What the workload asks for, and where it would be dialled.
pub(crate) struct CallOut {
    pub(crate) target: CallTarget,
    pub(crate) addresses: Vec<IpAddr>,
    /// A request's method; its path is the target's. Nobody looks at it before the target is known: its port says how
    /// paths are read.
    pub(crate) method: Box<str>,
}

/// `None` if something in it is wrong, which has been told then.
pub(super) fn case(page: &mut Page<'_>, entry: &Sp<CaseDoc>, url: &Sp<String>, tested: &str) -> Option<Case> {
    let CaseDoc { name, request, expect } = &entry.value;
    let RequestDoc {
        egress: _,
        from,
        unauthenticated,
        address,
        port,
        method,
        path,
        raw_path,
        host,
        headers,
        upgrade,
        sni,
        jwt,
        tcp,
        at,
    } = &request.value;
    let words = [from, path, raw_path, host, upgrade, sni].into_iter().flatten().map(|word| word.referenced);
    let others = words
        .chain(unauthenticated.iter().map(|flag| flag.referenced))
        .chain(port.iter().map(|port| port.referenced))
        .chain(headers.iter().map(|list| list.referenced))
        .chain(tcp.iter().map(|flag| flag.referenced))
        .chain(jwt.iter().map(|token| token.referenced));
    for other in others {
        page.error_with(
            other,
            "the workload calls by the URL of `egress`, which says all of it but the method",
            "leave it out; `address` is where it would be dialled",
        );
    }
    let (expected, beside) = expectation(page, expect, tested);
    let at = at.as_ref().map(|text| time(page, text));
    let address = address.as_ref().map(|text| {
        let parsed = text.value.parse::<IpAddr>().ok();
        if parsed.is_none() {
            page.error(text.referenced, format!("`{}` is no address", yaml::printable(&text.value)));
        }
        parsed
    });
    let target = CallTarget::parse(&url.value).map_err(|error| page.error(url.referenced, error)).ok()?;
    if let (Some(method), None) = (method, &target.path) {
        page.error_with(
            method.referenced,
            "no method is known of what goes through a tunnel",
            "leave it out",
        );
    }
    let port = target.port;
    let request = Request::Out(CallOut {
        target,
        addresses: match address {
            Some(address) => vec![address?],
            None => Vec::new(),
        },
        method: method.as_ref().map_or("GET", |method| &method.value).into(),
    });
    Some(Case {
        name: name.value.trim().into(),
        place: page.place(name.referenced),
        identity: None,
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port,
        request,
        at: match at {
            Some(at) => Some(at?),
            None => None,
        },
        expected: expected?,
        beside,
    })
}
