//! MeshDefaults.

use std::time::Duration;

use postern_svid::TrustDomain;

use super::{Page, issuers};
use crate::doc::{DefaultsSpec, Document, HttpDefaults, OnChangeDoc, TrustDomains};
use crate::issuers::Jwt;
use crate::norm::EscapedSlashes;
use crate::verdict::OnChange;
use crate::yaml::Span;

/// A grace longer than this is a permission, not a grace.
const MAX_GRACE: Duration = Duration::from_secs(3_600);
/// A sidecar reads its documents every two seconds; a bound much nearer to that would bite on a slow disk.
const MIN_STALE: Duration = Duration::from_secs(10);

/// What a MeshDefaults document settles.
#[derive(Default)]
pub(crate) struct Settled {
    pub(crate) aliases: Vec<TrustDomain>,
    pub(crate) slashes: EscapedSlashes,
    pub(crate) on_change: OnChange,
    pub(crate) jwt: Jwt,
    pub(crate) stale_after: Option<Duration>,
}

/// Checks a MeshDefaults document.
pub(crate) fn defaults(
    page: &mut Page<'_>,
    document: &Document<DefaultsSpec>,
    root_namespace: &str,
    trust_domain: &TrustDomain,
) -> Settled {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    page.names(metadata);
    if metadata.namespace.value != root_namespace {
        page.error_with(
            metadata.namespace.referenced,
            format!("MeshDefaults stand only in the root namespace `{root_namespace}`"),
            format!("write `namespace: {root_namespace}` if the whole mesh is meant"),
        );
    }
    let DefaultsSpec { trust_domains, http, on_change, stale_after, jwt } = &spec.value;
    let mut settled = Settled::default();
    if let Some(section) = jwt {
        settled.jwt = issuers::jwt(page, section);
    }
    if let Some(section) = trust_domains {
        let TrustDomains { canonical, aliases } = &section.value;
        if let Some(name) = canonical
            && name.value != trust_domain.as_str()
        {
            page.error_with(
                name.referenced,
                "this is not the trust domain of this mesh",
                format!("it is `{trust_domain}`"),
            );
        }
        if let Some(list) = aliases {
            // `aliases: []` says what it means: there is none.
            for item in &list.value {
                match TrustDomain::parse(&item.value) {
                    Ok(alias) if alias == *trust_domain => {
                        page.error_with(
                            item.referenced,
                            "this is the trust domain itself, not an alias",
                            "leave it out",
                        );
                    }
                    Ok(alias) => settled.aliases.push(alias),
                    Err(error) => page.mistake(item.referenced, super::no_trust_domain(error)),
                }
            }
        }
    }
    if let Some(section) = http {
        let HttpDefaults { escaped_slashes } = &section.value;
        if let Some(word) = escaped_slashes {
            settled.slashes = page.word(word, &EscapedSlashes::WORDS).unwrap_or_default();
        }
    }
    if let Some(section) = on_change {
        let OnChangeDoc { tcp, streams, grace } = &section.value;
        // One word each for now; a word that a sidecar cannot obey is refused, never skipped.
        if let Some(word) = tcp {
            page.word(word, &[("Close", ())]);
        }
        if let Some(word) = streams {
            page.word(word, &[("Reset", ())]);
        }
        if let Some(grace) = grace {
            let Span(length) = grace.value;
            if length > MAX_GRACE {
                page.error_with(
                    grace.referenced,
                    "a grace is at most 1h",
                    "what has lost permission for longer was not meant to lose it: write a rule for it",
                );
            }
            settled.on_change.grace = length;
        }
    }
    if let Some(written) = stale_after {
        let Span(length) = written.value;
        if !length.is_zero() && length < MIN_STALE {
            page.error_with(
                written.referenced,
                format!("`staleAfter` is at least {}s", MIN_STALE.as_secs()),
                "0s, or leaving it out, means never",
            );
        }
        settled.stale_after = Some(length).filter(|length| !length.is_zero());
    }
    settled
}
