//! What callers are told apart by.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use crate::verdict::{Operation, Source};

/// One part of a limit's key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum KeyPart {
    Identity,
    Namespace,
    Address,
    Header(Box<str>),
}

pub(crate) const IDENTITY: &str = "source.identity";
pub(crate) const NAMESPACE: &str = "source.namespace";
pub(crate) const ADDRESS: &str = "source.address";
pub(crate) const HEADER: &str = "request.header.";

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str(IDENTITY),
            Self::Namespace => f.write_str(NAMESPACE),
            Self::Address => f.write_str(ADDRESS),
            Self::Header(name) => write!(f, "{HEADER}{name}"),
        }
    }
}

/// What a header field can be besides its lines. Neither is any line's count.
const UNKNOWN: usize = usize::MAX;

/// A keyed hash of what the parts are of this question, and of the quota: an override has buckets of its own.
///
/// Whatever is not there - an identity, a field - is one value like any other: those who lack it share a bucket, and
/// leaving something out never leads around a limit.
pub(crate) fn tag(
    secret: &RandomState,
    parts: &[KeyPart],
    quota: usize,
    source: Source<'_>,
    operation: Operation<'_>,
) -> u64 {
    let mut hasher = secret.build_hasher();
    quota.hash(&mut hasher);
    for part in parts {
        match part {
            KeyPart::Identity => source.identity.map(|id| id.as_str()).hash(&mut hasher),
            KeyPart::Namespace => {
                let known = source.identity.map(|id| {
                    let namespace = id.namespace_and_account().map(|(namespace, _)| namespace);
                    (id.trust_domain_name(), namespace)
                });
                known.hash(&mut hasher);
            }
            KeyPart::Address => source.address.to_canonical().hash(&mut hasher),
            KeyPart::Header(name) => header(name, operation, &mut hasher),
        }
    }
    hasher.finish()
}

fn header(name: &str, operation: Operation<'_>, hasher: &mut impl Hasher) {
    let mut lines = 0;
    let known = match operation {
        Operation::Http { headers: Some(headers), .. } => headers.each(name, &mut |line| {
            line.hash(hasher);
            lines += 1;
        }),
        Operation::Http { headers: None, .. } | Operation::Tcp | Operation::Tls { .. } => false,
    };
    if known { lines } else { UNKNOWN }.hash(hasher);
}
