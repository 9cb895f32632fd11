//! `from`: who.

use ipnet::IpNet;
use postern_svid::{SpiffeId, TrustDomain};

use super::{Mistake, Page, Rules, is_name, jwt, no_spiffe_id, no_trust_domain};
use crate::doc::{FromDoc, List, NotDoc, Sp};
use crate::rule::{Account, Excluded, OwnDomains, Peer};
use crate::verdict::Action;
use crate::yaml;

/// Checks one alternative of `from` in a document of `namespace`.
pub(super) fn peer(
    page: &mut Page<'_>,
    entry: &Sp<FromDoc>,
    namespace: &str,
    action: Action,
    rules: &Rules<'_>,
) -> Peer {
    let FromDoc { spiffe, service_accounts, namespaces, trust_domain, cidrs, unauthenticated, jwt, not } =
        &entry.value;
    let names = service_accounts.is_some() || namespaces.is_some();
    let identity = spiffe.is_some() || names || trust_domain.is_some();
    if !identity && cidrs.is_none() && unauthenticated.is_none() && jwt.is_none() && not.is_none() {
        page.error_with(entry.referenced, "this alternative is empty", "say who is meant, or leave it out");
    }
    check_scoping(page, trust_domain.as_ref(), spiffe.is_some(), names);
    if let Some(flag) = unauthenticated {
        check_unauthenticated(
            page,
            flag,
            identity || not.is_some(),
            cidrs.is_some() || jwt.is_some(),
            action,
        );
    }
    let peer = Peer {
        unauthenticated: unauthenticated.as_ref().is_some_and(|flag| flag.value),
        spiffe: spiffe.as_ref().map(|list| ids(page, list)),
        accounts: service_accounts.as_ref().map(|list| accounts(page, list, namespace)),
        namespaces: namespaces.as_ref().map(|list| namespace_names(page, list)),
        trust_domain: trust_domain.as_ref().and_then(|name| domain(page, name)),
        cidrs: cidrs.as_ref().map(|list| networks(page, list)),
        jwt: jwt.as_ref().and_then(|jwt| jwt::token(page, jwt, rules)).map(Box::new),
        not: not.as_ref().map(|not| Box::new(excluded(page, not, namespace, rules))),
    };
    if let Some(not) = not {
        warn_of_idle_exclusions(page, &not.value, &peer, rules.domains);
    }
    peer
}

/// An exclusion in a trust domain of which the alternative means nobody is one that its writer believes in.
fn warn_of_idle_exclusions(page: &mut Page<'_>, written: &NotDoc, peer: &Peer, domains: &OwnDomains) {
    let Some(not) = &peer.not else { return };
    let names = peer.accounts.is_some() || peer.namespaces.is_some();
    let mut own = [&domains.canonical].into_iter().chain(&domains.aliases);
    let means = |domain: &TrustDomain| {
        peer.spiffe.as_ref().is_none_or(|ids| ids.iter().any(|id| id.is_member_of(domain)))
            && match &peer.trust_domain {
                Some(one) => one == domain,
                None => !names || *domain == domains.canonical || domains.aliases.contains(domain),
            }
    };
    let other = "this excludes nobody: the alternative means no peer of this trust domain";
    let way = "name the trust domain of the peers that are meant, or leave it out of `not`";
    if let Some(list) = &written.spiffe
        && !not.spiffe.is_empty()
        && !not.spiffe.iter().any(|id| means(&id.trust_domain()))
    {
        page.warn(list.referenced, other, way);
    }
    match (&not.trust_domain, &written.trust_domain) {
        (Some(domain), Some(word)) if !means(domain) => page.warn(word.referenced, other, way),
        (None, None) if !own.any(means) => {
            let named = [&written.service_accounts, &written.namespaces].into_iter().flatten();
            for list in named {
                let what = "this excludes nobody: without `trustDomain` names are meant in the mesh's own trust domain";
                match &peer.trust_domain {
                    Some(domain) => {
                        let help = format!("write `trustDomain: {domain}` into `not` too");
                        page.warn(
                            list.referenced,
                            format!("{what}, and this alternative in `{domain}`"),
                            help,
                        );
                    }
                    None => page.warn(list.referenced, what, "write the peers' `trustDomain` into `not`"),
                }
            }
        }
        _ => {}
    }
}

fn excluded(page: &mut Page<'_>, entry: &Sp<NotDoc>, namespace: &str, rules: &Rules<'_>) -> Excluded {
    let NotDoc { spiffe, service_accounts, namespaces, trust_domain, cidrs, jwt } = &entry.value;
    let names = service_accounts.is_some() || namespaces.is_some();
    if spiffe.is_none() && !names && trust_domain.is_none() && cidrs.is_none() && jwt.is_none() {
        page.error_with(entry.referenced, "`not` is empty", "say who is excluded, or leave it out");
    }
    check_scoping(page, trust_domain.as_ref(), spiffe.is_some(), names);
    Excluded {
        spiffe: spiffe.as_ref().map(|list| ids(page, list)).unwrap_or_default(),
        accounts: service_accounts.as_ref().map(|list| accounts(page, list, namespace)).unwrap_or_default(),
        namespaces: namespaces.as_ref().map(|list| namespace_names(page, list)).unwrap_or_default(),
        trust_domain: trust_domain.as_ref().and_then(|name| domain(page, name)),
        cidrs: cidrs.as_ref().map(|list| networks(page, list)).unwrap_or_default(),
        jwt: jwt.as_ref().and_then(|jwt| jwt::token(page, jwt, rules)).map(Box::new),
    }
}

fn check_scoping(page: &mut Page<'_>, trust_domain: Option<&Sp<String>>, spiffe: bool, names: bool) {
    if let (Some(name), true) = (trust_domain, spiffe) {
        page.error_with(
            name.referenced,
            if names {
                "`trustDomain` cannot stand beside both ids and names"
            } else {
                "`spiffe` ids name their trust domain themselves"
            },
            "write two alternatives, or leave `trustDomain` out",
        );
    }
}

fn check_unauthenticated(page: &mut Page<'_>, flag: &Sp<bool>, other: bool, cidrs: bool, action: Action) {
    if !flag.value {
        page.error_with(
            flag.referenced,
            "`unauthenticated` can only be true",
            "leave it out: without it a peer has to be authenticated",
        );
    } else if other {
        page.error_with(
            flag.referenced,
            "a peer without an identity has no name to compare",
            "only `cidrs` and `jwt` may stand beside `unauthenticated`; write two alternatives",
        );
    } else if action == Action::Allow && !cidrs {
        page.warn(
            flag.referenced,
            "this allows anybody who can reach the port, without any identity",
            "name the addresses with `cidrs`",
        );
    }
}

fn ids(page: &mut Page<'_>, list: &List<String>) -> Vec<SpiffeId> {
    page.each(list, "spiffe", |text| SpiffeId::parse(text).map_err(|error| no_spiffe_id(text, error)))
}

fn domain(page: &mut Page<'_>, name: &Sp<String>) -> Option<TrustDomain> {
    match TrustDomain::parse(&name.value) {
        Ok(domain) => Some(domain),
        Err(error) => {
            page.mistake(name.referenced, no_trust_domain(error));
            None
        }
    }
}

fn namespace_names(page: &mut Page<'_>, list: &List<String>) -> Vec<Box<str>> {
    page.each(list, "namespaces", |text| {
        if is_name(text) { Ok(text.as_str().into()) } else { Err(bad_name("a namespace", text)) }
    })
}

/// `name` is an account of the document's own namespace, `namespace/name` of another.
fn accounts(page: &mut Page<'_>, list: &List<String>, own: &str) -> Vec<Account> {
    page.each(list, "serviceAccounts", |text| {
        let (namespace, name) = text.split_once('/').unwrap_or((own, text));
        if is_name(namespace) && is_account(name) {
            Ok(Account { namespace: namespace.into(), name: name.into() })
        } else {
            Err(bad_name("a service account (`name` or `namespace/name`)", text))
        }
    })
}

/// Kubernetes lets service accounts' names hold dots.
pub(super) fn is_account(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_name)
}

pub(super) fn bad_name(what: &str, text: &str) -> Mistake {
    let shown = yaml::printable(text);
    // A star is the mistake to expect: other meshes take patterns here.
    if text.contains('*') {
        return (
            format!("`{shown}` is not {what}; patterns are not known here"),
            "name each of them, or leave the field out to mean all",
        )
            .into();
    }
    (format!("`{shown}` is not {what}"), "names hold a-z, 0-9 and '-' (those of accounts '.' too)").into()
}

/// Networks and single addresses. Bits behind the mask are a mistake: the writer meant another network.
pub(crate) fn networks(page: &mut Page<'_>, list: &List<String>) -> Vec<IpNet> {
    page.each(list, "cidrs", |text| network(text))
}

fn network(text: &str) -> Result<IpNet, Mistake> {
    let shown = yaml::printable(text);
    // `ipnet` reads a number with a leading zero as decimal, others as octal (CVE-2021-29922): the standard library refuses it.
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    let net = match text.parse::<IpNet>() {
        Ok(net) if address.parse::<std::net::IpAddr>().is_ok() => net,
        _ => match text.parse::<std::net::IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => {
                return Err((
                    format!("`{shown}` is not a network such as 10.0.0.0/8"),
                    "write an address without zeros in front of its numbers, then `/` and how many of its first bits count",
                )
                    .into());
            }
        },
    };
    if net != net.trunc() {
        let help = format!("write {} for the network, or {address} for the one address", net.trunc());
        return Err((format!("`{shown}` has bits behind its mask"), help).into());
    }
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.network().to_ipv4_mapped() {
            Some(v4) => ipnet::Ipv4Net::new(v4, v6.prefix_len() - 96)
                .map(IpNet::V4)
                .map_err(|_| format!("`{shown}` is not a network").into()),
            None => Ok(net),
        },
        _ => Ok(net),
    }
}
