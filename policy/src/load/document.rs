//! From a file's text to documents of known kinds.

use serde::de::DeserializeOwned;

use crate::diagnostic::Diagnostic;
use crate::doc::{
    self, AccessSpec, DefaultsSpec, Document, EgressSpec, Header, RateLimitSpec, ServiceSpec, TestSpec,
};
use crate::istio::doc as istio;
use crate::istio::doc::{AuthorizationSpec, PeerAuthenticationSpec, RequestAuthenticationSpec};
use crate::text::{self, Text};
use crate::yaml;

pub(super) enum Body {
    Access(Document<AccessSpec>),
    Defaults(Box<Document<DefaultsSpec>>),
    Limit(Document<RateLimitSpec>),
    Egress(Document<EgressSpec>),
    Service(Document<ServiceSpec>),
    Test(Document<TestSpec>),
    Authorization(Document<AuthorizationSpec>),
    PeerAuthentication(Document<PeerAuthenticationSpec>),
    RequestAuthentication(Document<RequestAuthenticationSpec>),
}

impl Body {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Access(_) => doc::ACCESS_POLICY,
            Self::Defaults(_) => doc::MESH_DEFAULTS,
            Self::Limit(_) => doc::RATE_LIMIT_POLICY,
            Self::Egress(_) => doc::EGRESS_POLICY,
            Self::Service(_) => doc::SERVICE,
            Self::Test(_) => doc::POLICY_TEST,
            Self::Authorization(_) => istio::AUTHORIZATION_POLICY,
            Self::PeerAuthentication(_) => istio::PEER_AUTHENTICATION,
            Self::RequestAuthentication(_) => istio::REQUEST_AUTHENTICATION,
        }
    }

    pub(super) fn metadata(&self) -> &doc::Metadata {
        match self {
            Self::Access(document) => &document.metadata,
            Self::Defaults(document) => &document.metadata,
            Self::Limit(document) => &document.metadata,
            Self::Egress(document) => &document.metadata,
            Self::Service(document) => &document.metadata,
            Self::Test(document) => &document.metadata,
            Self::Authorization(document) => &document.metadata,
            Self::PeerAuthentication(document) => &document.metadata,
            Self::RequestAuthentication(document) => &document.metadata,
        }
    }
}

/// Cuts a file into its documents, each with its first line. `---` at the start of a line ends a document in every
/// YAML context, block scalars and quotes included (YAML 1.2.2, 9.1.2 and 9.1.4), so no parser is needed for it; and a
/// mistake in one document does not hide those in the next.
pub(crate) fn pieces(text: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut first_line = 1;
    let mut at = 0;
    for (n, line) in text::lines(text).enumerate() {
        let is_marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_marker && at > start {
            out.push((first_line, &text[start..at]));
            start = at;
            first_line = n + 1;
        }
        at += line.len();
    }
    out.push((first_line, &text[start..]));
    out.retain(|(_, piece)| !is_empty(piece));
    out
}

/// Nothing but markers, comments and space.
fn is_empty(piece: &str) -> bool {
    text::lines(piece).all(text::is_empty_line)
}

pub(super) fn body(text: &Text<'_>, piece: &str, first_line: usize) -> Result<Body, Diagnostic> {
    // A glance at the text saves parsing nearly every document twice; the parsed `kind` is what counts.
    let glance = text::lines(piece).find_map(|line| line.strip_prefix("kind:")).map(str::trim).unwrap_or("");
    let kind = match doc::kinds().find(|kind| *kind == glance) {
        Some(kind) => kind.to_owned(),
        None => kind(text, piece, first_line)?,
    };
    match kind.as_str() {
        doc::ACCESS_POLICY => typed(text, piece, first_line, doc::ACCESS_POLICY).map(Body::Access),
        doc::EGRESS_POLICY => typed(text, piece, first_line, doc::EGRESS_POLICY).map(Body::Egress),
        doc::MESH_DEFAULTS => typed(text, piece, first_line, doc::MESH_DEFAULTS)
            .map(|document| Body::Defaults(Box::new(document))),
        doc::POLICY_TEST => typed(text, piece, first_line, doc::POLICY_TEST).map(Body::Test),
        istio::AUTHORIZATION_POLICY => {
            typed(text, piece, first_line, istio::AUTHORIZATION_POLICY).map(Body::Authorization)
        }
        istio::PEER_AUTHENTICATION => {
            typed(text, piece, first_line, istio::PEER_AUTHENTICATION).map(Body::PeerAuthentication)
        }
        istio::REQUEST_AUTHENTICATION => {
            typed(text, piece, first_line, istio::REQUEST_AUTHENTICATION).map(Body::RequestAuthentication)
        }
        doc::RATE_LIMIT_POLICY => typed(text, piece, first_line, doc::RATE_LIMIT_POLICY).map(Body::Limit),
        _ => typed(text, piece, first_line, doc::SERVICE).map(Body::Service),
    }
}

/// The document's kind, one of [`doc::KINDS`].
fn kind(text: &Text<'_>, piece: &str, first_line: usize) -> Result<String, Diagnostic> {
    let header: Header = yaml::parse_piece(text, piece, first_line)?;
    let Header { api_version, kind } = header;
    let named = kind.as_ref().map_or("", |kind| kind.value.as_str());
    if let Some(version) = &api_version {
        check_version(text, first_line, version, named)?;
    }
    let Some(kind) = kind else {
        let start = yaml::Location::UNKNOWN;
        let message = "this document has no `kind`".to_owned();
        return Err(yaml::located(text, first_line, start, message)
            .with_help(format!("known kinds: {}", doc::kinds().collect::<Vec<_>>().join(", "))));
    };
    if doc::kinds().any(|known| known == kind.value) {
        return Ok(kind.value);
    }
    let message = format!("unknown kind `{}`", yaml::printable(&kind.value));
    Err(yaml::located(text, first_line, kind.referenced, message)
        .with_help(yaml::suggest(&kind.value, &doc::kinds().collect::<Vec<_>>())))
}

fn typed<S: DeserializeOwned>(
    text: &Text<'_>,
    piece: &str,
    first_line: usize,
    expected: &str,
) -> Result<Document<S>, Diagnostic> {
    let document: Document<S> = yaml::parse_piece(text, piece, first_line)?;
    check_version(text, first_line, &document.api_version, expected)?;
    if document.kind.value != expected {
        // Only a document in flow style can mislead the glance.
        let message =
            format!("`kind` is `{}` here and `{expected}` elsewhere", yaml::printable(&document.kind.value));
        return Err(yaml::located(text, first_line, document.kind.referenced, message)
            .with_help("write the document in block style, one field a line"));
    }
    Ok(document)
}

fn check_version(
    text: &Text<'_>,
    first_line: usize,
    version: &doc::Sp<String>,
    kind: &str,
) -> Result<(), Diagnostic> {
    let known: &[&str] = if istio::KINDS.contains(&kind) { &istio::VERSIONS } else { &[doc::API_VERSION] };
    if known.contains(&version.value.as_str()) {
        return Ok(());
    }
    let message = format!("unknown apiVersion `{}`", yaml::printable(&version.value));
    Err(yaml::located(text, first_line, version.referenced, message)
        .with_help(format!("write `{}`", known[0])))
}
