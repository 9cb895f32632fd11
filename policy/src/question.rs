//! A question about a call to a workload, as a person puts it, and the answer that its sidecar would give: what it refuses
//! before any rule is asked, in the order in which it does, and then what the rules say.

mod port;
mod token;

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::diagnostic::Place;
use crate::explain::Explanation;
use crate::fields::{HeaderFields, HeaderLines};
use crate::generation::Generation;
use crate::norm::{self, CanonHost, CanonMethod, CanonPath, NormError, PathOptions};
use crate::not_asked::NotAsked;
use crate::services::Protocol;
use crate::tokens::TokenSet;
use crate::upgrade::Upgrade;
use crate::verdict::{Operation, Source};

pub use port::Declared;
pub use token::ToldToken;

/// A question about a call.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Who calls.
    pub source: Source<'a>,
    /// The workload's port.
    pub port: u16,
    /// What is declared of the port. `None`: not known, and nothing is refused for it.
    pub declared: Option<Declared<'a>>,
    /// What is sent.
    pub told: Told<'a>,
    /// When. `None`: not known.
    pub at: Option<SystemTime>,
}

/// What is sent, as it is sent.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// Opaque bytes.
    Tcp,
    /// A TLS handshake that asks for this server name, or for none.
    Tls {
        /// The name.
        sni: Option<&'a CanonHost>,
    },
    /// An HTTP request.
    Http {
        /// Its method.
        method: &'a str,
        /// Its target: path, query, and a fragment if somebody sends one.
        target: &'a str,
        /// Whom it is addressed to. `None`: not told.
        host: Option<&'a str>,
        /// Its header fields. `None`: not told.
        fields: Option<&'a HeaderFields>,
        /// What it asks to turn into.
        upgrade: Option<&'a Upgrade>,
        /// The token in its issuer's header field.
        token: &'a ToldToken,
    },
}

/// What is asked of the rules.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    stream: Stream<'a>,
    at: SystemTime,
    /// What holds besides, for people.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug)]
enum Stream<'a> {
    Opaque(Operation<'a>),
    Http {
        method: CanonMethod,
        path: CanonPath,
        host: Option<CanonHost>,
        fields: Option<&'a HeaderFields>,
        upgrade: Option<Upgrade>,
        tokens: TokenSet,
    },
}

impl Asked<'_> {
    /// The operation.
    pub fn operation(&self) -> Operation<'_> {
        match &self.stream {
            Stream::Opaque(operation) => *operation,
            Stream::Http { method, path, host, fields, upgrade, tokens } => Operation::Http {
                method,
                path,
                host: host.as_ref(),
                headers: fields.map(|fields| fields as &dyn HeaderLines),
                upgrade: upgrade.as_ref(),
                tokens: tokens.at(self.at),
            },
        }
    }
}

/// An answer before any rule is asked.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What the sidecar says.
    pub why: NotAsked,
    /// Why, for people.
    pub text: String,
    /// Where what it follows from is written.
    pub place: Option<Place>,
    /// The way out.
    pub help: Option<String>,
}

impl From<NormError> for Refusal {
    fn from(error: NormError) -> Self {
        Self { why: NotAsked::BadRequest(error), text: error.to_string(), place: None, help: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (status, label) = (self.why.status(), self.why.label());
        write!(f, "denied: the sidecar answers {status} before any rule is asked ({label}): {}", self.text)?;
        if let Some(place) = &self.place {
            write!(f, " ({place})")?;
        }
        match &self.help {
            Some(help) => write!(f, "\nto allow it: {help}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Verdict {
            allowed: bool,
            reason: &'static str,
            status: u16,
        }
        #[derive(Serialize)]
        struct Shown<'r> {
            verdict: Verdict,
            error: &'r str,
            #[serde(skip_serializing_if = "Option::is_none")]
            place: Option<&'r Place>,
            #[serde(skip_serializing_if = "Option::is_none")]
            help: Option<&'r str>,
        }
        let Self { why, text, place, help } = self;
        let verdict = Verdict { allowed: false, reason: why.label(), status: why.status() };
        Shown { verdict, error: text, place: place.as_ref(), help: help.as_deref() }.serialize(serializer)
    }
}

/// What the sidecar would answer.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// No rule is asked.
    Refused(Box<Refusal>),
    /// The rules' answer.
    Explained(Box<Explanation>),
}

impl Answer {
    /// Whether the call is known to go on.
    pub fn is_allowed(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Explained(explanation) => explanation.verdict.is_allowed(),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Explained(explanation) => explanation.fmt(f),
        }
    }
}

impl Generation {
    /// Answers a question as the workload's sidecar would, with the reason. The time must have been
    /// [told](Self::tell_time), as for any other decision.
    pub fn answer(&self, question: &Question<'_>) -> Answer {
        match self.asked(question) {
            Err(refusal) => Answer::Refused(refusal),
            Ok(asked) => {
                let mut explanation = self.explain(question.source, question.port, asked.operation());
                explanation.notes.extend(asked.notes.iter().cloned());
                Answer::Explained(Box::new(explanation))
            }
        }
    }

    /// What is asked of the rules, unless the sidecar refuses it before.
    pub fn asked<'a>(&self, question: &Question<'a>) -> Result<Asked<'a>, Box<Refusal>> {
        let Question { source: _, port, declared, told, at } = *question;
        let mut notes = Vec::new();
        let stream = match told {
            Told::Tcp => {
                port::carries(port, declared, true)?;
                if self.asks_sni(port) && declared.is_none_or(|declared| declared.protocol == Protocol::Tls) {
                    notes.push("rules ask for a server name here, which is not told: tell it (`--sni`; in a test `sni`)".to_owned());
                }
                Stream::Opaque(Operation::Tcp)
            }
            Told::Tls { sni } => {
                port::carries(port, declared, true)?;
                Stream::Opaque(port::handshake(port, declared, sni, &mut notes))
            }
            Told::Http { method, target, host, fields, upgrade, token } => {
                let parsed = host.map(CanonHost::parse).transpose().map_err(bad)?;
                port::carries(port, declared, false)?;
                let upgrade = port::upgrade(port, declared, upgrade, method, &mut notes)?;
                let options = match declared {
                    Some(declared) => declared.paths.options(self.defaults.path),
                    None => self.defaults.path,
                };
                if let Some(host) = host.filter(|_| options.preserve_raw) {
                    CanonHost::parse_raw(host).map_err(bad)?;
                }
                let method = match &upgrade {
                    Some((_, method)) => CanonMethod::parse(method),
                    None => CanonMethod::parse(method),
                };
                let method = method.map_err(bad)?;
                let path = self.path(port, &method, target, &options, &mut notes).map_err(bad)?;
                if fields.is_some_and(is_grpc) {
                    norm::check_grpc(&method, &path).map_err(bad)?;
                }
                let tokens = token::read(self, token, at, &mut notes)?;
                notes.extend(fields.and_then(|fields| self.untold_fields(fields)));
                let upgrade = upgrade.map(|(upgrade, _)| upgrade);
                Stream::Http { method, path, host: parsed, fields, upgrade, tokens }
            }
        };
        Ok(Asked { stream, at: at.unwrap_or(UNIX_EPOCH), notes })
    }

    /// With one field told, all that rules ask for are known.
    fn untold_fields(&self, fields: &HeaderFields) -> Option<String> {
        let is_told = |name: &str| {
            let mut found = false;
            fields.each(name, &mut |_| found = true);
            found
        };
        let untold: Vec<&str> =
            self.headers_named().iter().map(|name| &**name).filter(|name| !is_told(name)).collect();
        (!untold.is_empty())
            .then(|| format!("header fields that are not told count as not sent: {}", untold.join(", ")))
    }

    fn path(
        &self,
        port: u16,
        method: &CanonMethod,
        target: &str,
        options: &PathOptions,
        notes: &mut Vec<String>,
    ) -> Result<CanonPath, NormError> {
        let left = norm::without_fragment(target);
        let path = CanonPath::parse_for(method, left, options)?;
        self.check_path(port, &path)?;
        if left.len() < target.len() {
            notes.push(format!(
                "a fragment (`#…`) is no part of a request target: over HTTP/1 it is refused with 400, over HTTP/2 what is judged and forwarded is {path}"
            ));
        }
        Ok(path)
    }
}

fn bad(error: NormError) -> Box<Refusal> {
    Box::new(error.into())
}

/// As the sidecar tells a gRPC call from another request.
fn is_grpc(fields: &HeaderFields) -> bool {
    let mut first = None;
    let _known = fields.each("content-type", &mut |value| {
        first.get_or_insert_with(|| value.starts_with(b"application/grpc"));
    });
    first == Some(true)
}

#[cfg(test)]
#[path = "question/tests.rs"]
mod tests;
