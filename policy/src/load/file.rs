//! One file of a set: read, then checked under the terms of the whole set.
//!
//! What a file comes to depends on its bytes, its name and the [`Terms`], and on nothing else; so it can be kept as long as
//! these stay ([`super::Loader`]).

use std::sync::Arc;

use crate::yaml::Location;

use super::document::{Body, body, pieces};
use super::{MAX_DOCUMENTS, Terms};
use crate::check::{self, EgressPolicy, LimitPolicy, Page, Policy, Test};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, SourceFile};
use crate::doc::{DefaultsSpec, Document};
use crate::istio::{self, RequestPolicy};
use crate::norm::EscapedSlashes;
use crate::services::Service;
use crate::text::Text;
use crate::yaml;

/// What the set has to know of a document before any is checked.
pub(crate) struct Head {
    pub(super) kind: &'static str,
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    pub(super) place: Place,
    /// Where the name stands in the document, which begins in this line of the file.
    pub(super) at: Location,
    pub(super) first_line: usize,
    /// The mode that lets rules name most paths, of those that a Service's ports name.
    pub(super) widest: Option<EscapedSlashes>,
    /// Issuers of tokens that a RequestAuthentication names.
    pub(super) issuers: Vec<Box<str>>,
}

/// A file whose documents parsed, as far as they did.
pub(super) struct ReadFile<'a> {
    pub(super) text: Text<'a>,
    pub(super) documents: Vec<(Head, Body)>,
    pub(super) errors: Diagnostics,
}

impl<'a> ReadFile<'a> {
    pub(super) fn read(file: &'a SourceFile) -> Self {
        let (text, errors) = match yaml::text_of(file) {
            // Cut short, or written by something that failed: what stood in it is gone, and nobody said so.
            Ok(text) if text.trim().is_empty() => {
                let empty = Diagnostic::whole(&file.name, "the file is empty")
                    .with_help("remove it, or leave a comment in it if it is meant to hold nothing");
                ("", empty.into())
            }
            Ok(text) => (text, Diagnostics::new()),
            Err(error) => ("", error.into()),
        };
        let mut read = Self { text: Text::new(file, text), documents: Vec::new(), errors };
        for (first_line, piece) in pieces(text) {
            // One more than are taken: the set refuses it.
            if read.documents.len() > MAX_DOCUMENTS || read.errors.is_full() {
                break;
            }
            match body(&read.text, piece, first_line) {
                Ok(body) => read.documents.push((Head::of(&read.text, first_line, &body), body)),
                Err(error) => read.errors.push(error),
            }
        }
        read
    }

    /// Checks every document. What refuses the set comes apart from what was made of the file.
    pub(super) fn check(self, terms: &Arc<Terms>) -> (CheckedFile, Diagnostics) {
        let Self { text, documents, errors: _ } = self;
        let mut errors = Diagnostics::new();
        let mut checked =
            CheckedFile { terms: Arc::clone(terms), documents: Vec::new(), warnings: Diagnostics::new() };
        for (head, body) in documents {
            let mut page = head.page(&text);
            let rules = terms.rules();
            let content = match body {
                Body::Access(body) => Content::Policy(Arc::new(check::policy(&mut page, &body, &rules))),
                Body::Limit(body) => Content::Limit(Arc::new(check::limit_policy(&mut page, &body, &rules))),
                Body::Egress(body) => {
                    Content::Egress(Arc::new(check::egress_policy(&mut page, &body, &rules)))
                }
                Body::Service(body) => Content::Service(check::service(&mut page, &body, &rules)),
                Body::Test(body) => Content::Test(Arc::new(check::policy_test(&mut page, &body, &rules))),
                Body::Authorization(body) => {
                    Content::Policy(Arc::new(istio::authorization(&mut page, &body, &rules)))
                }
                Body::PeerAuthentication(body) => {
                    istio::peer_authentication(&mut page, &body);
                    Content::PeerAuthentication
                }
                Body::RequestAuthentication(body) => {
                    let policy = istio::request_authentication(&mut page, &body, &rules);
                    Content::RequestAuthentication(Arc::new(policy))
                }
                // Settled already: others are checked in their light.
                Body::Defaults(body) => Content::Defaults(body),
            };
            let Page { text: _, first_line: _, errors: found, warnings } = page;
            errors.extend(found);
            checked.warnings.extend(warnings);
            checked.documents.push((head, content));
        }
        (checked, errors)
    }
}

/// What a file comes to.
pub(crate) struct CheckedFile {
    /// What it was checked under.
    pub(super) terms: Arc<Terms>,
    pub(super) documents: Vec<(Head, Content)>,
    pub(super) warnings: Diagnostics,
}

/// What a document comes to.
pub(super) enum Content {
    Policy(Arc<Policy>),
    Limit(Arc<LimitPolicy>),
    Egress(Arc<EgressPolicy>),
    Service(Service),
    Test(Arc<Test>),
    Defaults(Box<Document<DefaultsSpec>>),
    RequestAuthentication(Arc<RequestPolicy>),
    /// It changes nothing.
    PeerAuthentication,
}

impl Head {
    fn of(text: &Text<'_>, first_line: usize, body: &Body) -> Self {
        let metadata = body.metadata();
        let at = metadata.name.referenced;
        let widest = match body {
            Body::Service(service) => {
                let ports = service.spec.value.ports.value.iter();
                let words = ports.filter_map(|port| port.value.escaped_slashes.as_ref());
                words.filter_map(|word| EscapedSlashes::parse(&word.value)).max()
            }
            Body::Access(_)
            | Body::Limit(_)
            | Body::Egress(_)
            | Body::Test(_)
            | Body::Defaults(_)
            | Body::Authorization(_)
            | Body::RequestAuthentication(_)
            | Body::PeerAuthentication(_) => None,
        };
        let issuers = match body {
            Body::RequestAuthentication(body) => {
                let rules = body.spec.value.jwt_rules.iter().flat_map(|list| &list.value);
                rules.map(|rule| rule.value.issuer.value.as_str().into()).collect()
            }
            _ => Vec::new(),
        };
        Self {
            kind: body.kind(),
            namespace: metadata.namespace.value.as_str().into(),
            name: metadata.name.value.as_str().into(),
            place: yaml::place(&text.file, first_line, at),
            at,
            first_line,
            widest,
            issuers,
        }
    }

    /// For findings about the document.
    pub(super) fn page<'t>(&self, text: &'t Text<'t>) -> Page<'t> {
        Page { text, first_line: self.first_line, errors: Diagnostics::new(), warnings: Diagnostics::new() }
    }
}
