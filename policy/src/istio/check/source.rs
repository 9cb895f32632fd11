//! `source`: who.

use super::super::doc::SourceDoc;
use super::super::{IdentityPattern, Test, Who};
use super::{Context, token};
use crate::check::{Page, networks};
use crate::doc::{List, Sp};
use crate::yaml;

/// A pair of a field and its `not`.
pub(super) type Pair<'d> = (Option<&'d List<String>>, Option<&'d List<String>>);

pub(super) fn who(page: &mut Page<'_>, entry: &Sp<SourceDoc>, context: &Context<'_>) -> Who {
    let SourceDoc {
        principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        trust_domains,
        not_trust_domains,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
    } = &entry.value;
    let lists = [
        principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        trust_domains,
        not_trust_domains,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
    ];
    if lists.iter().all(|list| list.is_none()) {
        page.error_with(entry.referenced, "`source` is empty", "say who is meant, or leave `from` out");
    }
    for list in [remote_ip_blocks, not_remote_ip_blocks].into_iter().flatten() {
        no_remote_address(page, list);
    }
    let accounts = service_accounts.as_ref().or(not_service_accounts.as_ref());
    let names = [principals, not_principals, namespaces, not_namespaces];
    if let (Some(list), true) = (accounts, names.iter().any(|list| list.is_some())) {
        page.error_with(
            list.referenced,
            "`serviceAccounts` cannot stand beside `principals` or `namespaces`",
            "write two alternatives under `from`",
        );
    }
    let mut who = Who::default();
    let mut identities = |page: &mut Page<'_>, pair: Pair<'_>, kind: Kind| {
        if pair.0.is_some() || pair.1.is_some() {
            who.identities.push(identity_test(page, pair, kind, context));
        }
    };
    identities(page, (principals.as_ref(), not_principals.as_ref()), Kind::Principal);
    identities(page, (namespaces.as_ref(), not_namespaces.as_ref()), Kind::Namespace);
    identities(page, (service_accounts.as_ref(), not_service_accounts.as_ref()), Kind::Account);
    identities(page, (trust_domains.as_ref(), not_trust_domains.as_ref()), Kind::TrustDomain);
    if ip_blocks.is_some() || not_ip_blocks.is_some() {
        who.addresses.push(address_test(page, (ip_blocks.as_ref(), not_ip_blocks.as_ref())));
    }
    if request_principals.is_some() || not_request_principals.is_some() {
        let pair = (request_principals.as_ref(), not_request_principals.as_ref());
        who.tokens.push(token::principals(page, "requestPrincipals", pair, context));
    }
    who
}

/// What a list of identities is written in.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Kind {
    Principal,
    Namespace,
    Account,
    TrustDomain,
}

pub(super) fn identity_test(
    page: &mut Page<'_>,
    (values, not): Pair<'_>,
    kind: Kind,
    context: &Context<'_>,
) -> Test<IdentityPattern> {
    let mut all = |list: Option<&List<String>>, field: &str| {
        let list = list.map(|list| page.each(list, field, |text| identities(text, kind, context)));
        list.unwrap_or_default().into_iter().flatten().collect()
    };
    Test { values: all(values, kind.field()), not: all(not, kind.field()) }
}

impl Kind {
    fn field(self) -> &'static str {
        match self {
            Self::Principal => "principals",
            Self::Namespace => "namespaces",
            Self::Account => "serviceAccounts",
            Self::TrustDomain => "trustDomains",
        }
    }
}

type Mistake = (String, &'static str);

fn identities(text: &str, kind: Kind, context: &Context<'_>) -> Result<Vec<IdentityPattern>, Mistake> {
    /// An id has at most 2,048 bytes (SPIFFE-ID 2.3).
    const LONGEST: usize = 2_048;
    if text.is_empty() || text.len() > LONGEST {
        return Err((format!("a value has 1 to {LONGEST} characters"), "`*` stands for any"));
    }
    if text.starts_with("spiffe://") {
        return Err((
            format!("`{}` begins with a scheme", yaml::printable(text)),
            "write it without `spiffe://`, as Istio does: `prod.example/ns/shop/sa/web`",
        ));
    }
    match kind {
        Kind::Principal => IdentityPattern::principals(text, context.rules.domains)
            .map_err(|what| (what, "write it like `prod.example/ns/shop/sa/web`, or with a `*` at one end")),
        Kind::Namespace => Ok(vec![IdentityPattern::namespace(text)]),
        Kind::TrustDomain => Ok(IdentityPattern::trust_domain(text, context.rules.domains)),
        Kind::Account if text.contains('*') || text.matches('/').count() > 1 => Err((
            format!("`{}` is not a service account", yaml::printable(text)),
            "write `name` or `namespace/name`; stars are not known here, but in `principals` they are",
        )),
        Kind::Account => Ok(vec![IdentityPattern::account(text, context.namespace)]),
    }
}

pub(super) fn address_test(page: &mut Page<'_>, (values, not): Pair<'_>) -> Test<ipnet::IpNet> {
    let mut all = |list: Option<&List<String>>| list.map(|list| networks(page, list)).unwrap_or_default();
    Test { values: all(values), not: all(not) }
}

pub(super) fn no_remote_address<T>(page: &mut Page<'_>, at: &Sp<T>) {
    page.error_with(
        at.referenced,
        "the original client's address is not known here: it stands in a field that any caller can write",
        "write `ipBlocks` (`source.ip`) for the address that the connection comes from, or keep this rule at the edge",
    );
}
