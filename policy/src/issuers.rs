//! Who issues tokens, as the mesh's defaults say. Keys are fetched and signatures checked elsewhere.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// What the mesh's defaults say about tokens.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Jwt {
    /// The issuers whose tokens are read.
    pub issuers: Arc<[Issuer]>,
    /// What becomes of a request with another token where one of an issuer is read.
    pub other_tokens: OtherTokens,
}

impl Jwt {
    /// One issuer, by its exact name.
    pub fn issuer(&self, name: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| *issuer.name == *name)
    }
}

/// What becomes of a request with a token that is no JWT, or that names an issuer that is not configured, in a header
/// field where tokens are read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OtherTokens {
    /// It is refused: a workload that trusts the mesh to have checked tokens must not see one that nobody checked.
    #[default]
    Reject,
    /// Such a token counts as none, and is forwarded as it came.
    Ignore,
}

/// An issuer of tokens.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Issuer {
    /// `iss` of its tokens, compared byte by byte.
    pub name: Box<str>,
    /// One of these must be in `aud`; any will do if there are none here, as Istio's documents allow.
    pub audiences: Box<[Box<str>]>,
    /// Algorithms with which its tokens may be signed.
    pub algorithms: Box<[Algorithm]>,
    /// Where its keys are.
    pub keys: KeySource,
    /// How far clocks may differ.
    pub clock_skew: Duration,
    /// Where its tokens stand in a request.
    pub header: TokenHeader,
    /// Whether the workload sees its tokens.
    pub forward: bool,
}

impl Issuer {
    /// Whether both take the same tokens and do the same with them, apart from clocks, algorithms and how long keys serve.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        let Self { name, audiences, algorithms: _, keys, clock_skew: _, header, forward } = self;
        *name == other.name
            && *audiences == other.audiences
            && keys.is_same_place(&other.keys)
            && *header == other.header
            && *forward == other.forward
    }
}

/// Where tokens stand in a request.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TokenHeader {
    /// A header field's name, in lower case.
    pub name: Box<str>,
    /// What stands before the token, compared without regard to case.
    pub prefix: Box<str>,
}

impl Default for TokenHeader {
    /// RFC 6750 2.1.
    fn default() -> Self {
        Self { name: "authorization".into(), prefix: "Bearer ".into() }
    }
}

/// Where an issuer's keys are: a JWK set (RFC 7517 5).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum KeySource {
    /// A file on the sidecar's machine.
    File {
        /// Its path, absolute.
        path: Box<str>,
        /// For how long the keys that were read last may be used when the file can no longer be read.
        max_stale: Duration,
    },
    /// A server.
    Url {
        /// `https://`, or `http://` on a loopback address.
        url: Box<str>,
        /// A file with the certificates that the server is trusted by; the platform's if `None`.
        ca_file: Option<Box<str>>,
        /// For how long the keys that were fetched last may be used when no others can be fetched.
        max_stale: Duration,
    },
    /// Written in the document: JSON text.
    Inline(Box<str>),
}

impl KeySource {
    /// Whether the keys are the same, however long they serve.
    pub(crate) fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { path, max_stale: _ }, Self::File { path: own, max_stale: _ }) => path == own,
            (Self::Url { url, .. }, Self::Url { url: own, .. }) => url == own,
            (Self::Inline(text), Self::Inline(own)) => text == own,
            _ => false,
        }
    }
}

/// A signature algorithm (RFC 7518 3.1, RFC 8037 3.1). Only those with a public key: whoever can check a MAC can make one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are the registry's")]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
}

impl Algorithm {
    /// Their names.
    pub const WORDS: [(&str, Self); 10] = [
        ("RS256", Self::RS256),
        ("RS384", Self::RS384),
        ("RS512", Self::RS512),
        ("PS256", Self::PS256),
        ("PS384", Self::PS384),
        ("PS512", Self::PS512),
        ("ES256", Self::ES256),
        ("ES384", Self::ES384),
        ("ES512", Self::ES512),
        ("EdDSA", Self::EdDSA),
    ];

    /// By its name, compared byte by byte.
    pub fn parse(name: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(word, _)| *word == name).map(|(_, algorithm)| *algorithm)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::WORDS.iter().find(|(_, algorithm)| *algorithm == self).map_or("", |(word, _)| word)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
