//! The rules that webpki leaves to its caller: what a leaf, an issuing CA and a root must look like.
//!
//! Sources: SPIFFE X.509-SVID specification, sections 2 to 4; RFC 5280, 4.1 and 4.2. webpki accepts an expired root, a
//! leaf that may sign certificates, a leaf without any purpose, serial number 0 and more of that kind.

use crate::{SpiffeId, TrustDomain};

use super::Role;
use super::cert::{Facts, Name};
use super::error::VerifyError;

/// Checks a leaf for `roles`, in all but its id.
pub(super) fn leaf(facts: &Facts, roles: &[Role]) -> Result<(), VerifyError> {
    if facts.basic_constraints.is_some_and(|(value, _)| value.ca || value.path_length.is_some()) {
        return Err(VerifyError::CaAsLeaf);
    }
    if facts.key.is_none() {
        return Err(VerifyError::KeyType);
    }
    if facts.has_name_constraints {
        return Err(VerifyError::NameConstraints);
    }
    match facts.key_usage {
        None => return Err(VerifyError::KeyUsage("the leaf has no key usage")),
        Some((_, false)) => return Err(VerifyError::KeyUsage("the leaf's key usage is not critical")),
        Some((usage, true)) if usage.key_cert_sign() || usage.crl_sign() => {
            return Err(VerifyError::KeyUsage("the leaf may sign certificates or revocation lists"));
        }
        Some((usage, true)) if !usage.digital_signature() => {
            return Err(VerifyError::KeyUsage("the leaf lacks digitalSignature"));
        }
        Some(_) => {}
    }
    let purposes = facts.purposes.ok_or(VerifyError::KeyUsage("the leaf has no extended key usage"))?;
    if purposes.any {
        return Err(VerifyError::KeyUsage("the leaf is good for any purpose"));
    }
    for role in roles {
        match role {
            Role::Client if !purposes.client => {
                return Err(VerifyError::KeyUsage("the leaf lacks clientAuth"));
            }
            Role::Server if !purposes.server => {
                return Err(VerifyError::KeyUsage("the leaf lacks serverAuth"));
            }
            _ => {}
        }
    }
    authority_key_id(facts)
}

/// The one SPIFFE id of a leaf.
pub(super) fn spiffe_id(facts: &Facts) -> Result<SpiffeId, VerifyError> {
    let Some((names, critical)) = &facts.names else { return Err(VerifyError::NoSpiffeId) };
    let mut uri = None;
    for name in names {
        match name {
            Name::Uri(_) if uri.is_some() => return Err(VerifyError::SeveralIds),
            Name::Uri(text) => uri = Some(text),
            Name::Other(_) => {}
        }
    }
    let uri = uri.ok_or(VerifyError::NoSpiffeId)?;
    // A name of another type could mean something to another reader of the same certificate.
    if let Some(kind) = names.iter().find_map(|name| match name {
        Name::Other(kind) => Some(*kind),
        Name::Uri(_) => None,
    }) {
        return Err(VerifyError::OtherName(kind));
    }
    if facts.subject_is_empty() && !critical {
        return Err(VerifyError::BadEncoding(
            "the subject is empty and the subject alternative name not critical",
        ));
    }
    SpiffeId::parse(uri).map_err(VerifyError::BadSpiffeId)
}

/// Checks an issuing CA, which the path reached below a root of `td`.
pub(super) fn issuing_ca(facts: &Facts, td: &TrustDomain) -> Result<(), VerifyError> {
    authority(facts, td)?;
    authority_key_id(facts)
}

/// Checks a root of `td`. Its dates are the verifier's business: an expired root may stay in a bundle until it is removed.
pub(super) fn root(facts: &Facts, td: &TrustDomain) -> Result<(), VerifyError> {
    if facts.not_after < facts.not_before {
        return Err(VerifyError::IssuerProfile("it ends before it begins"));
    }
    authority(facts, td)?;
    // It needs no authority key id; one that it has must not lie.
    match (&facts.authority_key_id, &facts.subject_key_id) {
        (Some((_, true)), _) => Err(VerifyError::KeyIds("the authority key id is critical")),
        (Some((authority, _)), Some((subject, _))) if facts.is_self_issued() && authority != subject => Err(
            VerifyError::KeyIds("it is signed by itself, yet its authority key id is not its subject key id"),
        ),
        _ => Ok(()),
    }
}

/// Whether a CA, if it limits its purposes, has that of the leaf in `role`: webpki asks this of issuing CAs only, and of one role.
pub(super) fn purposes_of_authority(facts: &Facts, role: Role) -> Result<(), VerifyError> {
    match (facts.purposes, role) {
        (None, _) => Ok(()),
        (Some(purposes), Role::Client) if purposes.client => Ok(()),
        (Some(purposes), Role::Server) if purposes.server => Ok(()),
        _ => Err(VerifyError::IssuerProfile("its extended key usage lacks the purpose of the leaf")),
    }
}

/// Whether `child` says that the key of `parent` signed it.
pub(super) fn linked(child: &Facts, parent: &Facts) -> Result<(), VerifyError> {
    match (&child.authority_key_id, &parent.subject_key_id) {
        (Some((authority, _)), Some((subject, _))) if authority == subject => Ok(()),
        _ => Err(VerifyError::KeyIds("a certificate's authority key id is not its issuer's subject key id")),
    }
}

fn authority(facts: &Facts, td: &TrustDomain) -> Result<(), VerifyError> {
    match facts.basic_constraints {
        Some((value, true)) if value.ca => {}
        Some((value, false)) if value.ca => {
            return Err(VerifyError::IssuerProfile("its basic constraints are not critical"));
        }
        _ => return Err(VerifyError::IssuerProfile("it is no certificate authority")),
    }
    match facts.key_usage {
        Some((usage, true)) if usage.key_cert_sign() => {}
        Some((_, false)) => return Err(VerifyError::IssuerProfile("its key usage is not critical")),
        _ => return Err(VerifyError::IssuerProfile("its key usage lacks keyCertSign")),
    }
    if facts.key.is_none() {
        return Err(VerifyError::KeyType);
    }
    match &facts.subject_key_id {
        Some((id, false)) if !id.is_empty() => {}
        Some((_, true)) => return Err(VerifyError::KeyIds("an authority's subject key id is critical")),
        _ => return Err(VerifyError::KeyIds("an authority has no subject key id")),
    }
    if facts.subject_is_empty() {
        return Err(VerifyError::IssuerProfile("its subject is empty"));
    }
    // SPIFFE X.509-SVID, 3.2: an authority's id, if there is one, is the trust domain without a path.
    let uris = facts.names.iter().flat_map(|(names, _)| names).filter_map(|name| match name {
        Name::Uri(uri) => Some(uri),
        Name::Other(_) => None,
    });
    let own = td.id();
    for (at, uri) in uris.enumerate() {
        if at > 0 {
            return Err(VerifyError::SeveralIds);
        }
        if *uri != own {
            let named = uri.strip_prefix("spiffe://").and_then(|name| TrustDomain::parse(name).ok());
            return Err(VerifyError::OtherTrustDomain { named, expected: td.clone() });
        }
    }
    Ok(())
}

fn authority_key_id(facts: &Facts) -> Result<(), VerifyError> {
    match &facts.authority_key_id {
        Some((id, false)) if !id.is_empty() => Ok(()),
        Some((_, true)) => Err(VerifyError::KeyIds("the authority key id is critical")),
        _ => Err(VerifyError::KeyIds("the authority key id is missing")),
    }
}
