//! Decides who may do what: documents become an immutable [`Generation`], and a generation answers.
//!
//! The way through this crate:
//!
//! 1. [`load`] takes the bytes of a set of documents, checks all of it and compiles the part that concerns one
//!    workload. It is all or nothing: one mistake refuses the set, and [`Diagnostics`] shows each with its place.
//! 2. [`Generation::connection`] resolves a peer once per connection.
//! 3. [`Generation::decide`] answers for one stream, from canonical forms only ([`norm`]).
//!    [`Generation::decide_egress`] answers for a call on its way out.
//! 4. [`Generation::explain`] tells a person which rule decided, or what is missing.
//! 5. [`Generation::admit`] asks the rate limits about a stream that is allowed.
//! 6. [`run_tests`] holds the PolicyTests of a set against its rules.
//!
//! The crate is pure: no sockets, no async, no file system and no clock.
//!
//! Two engines stand behind one seam: a slow interpreter that is the specification, and the compiled one that answers
//! traffic. Tests hold them against each other, because a matcher that is fast and differs is how mesh policies have
//! been passed before (CVE-2026-27588 and its kin).

mod break_glass;
mod changes;
mod check;
mod cond;
mod crowd;
mod diagnostic;
mod doc;
mod egress;
mod engine;
mod eval_ref;
mod explain;
pub mod export;
mod fields;
mod fmt;
mod generation;
mod issuers;
mod istio;
mod jwt;
mod limits;
mod load;
pub mod norm;
mod not_asked;
mod pattern;
mod port_paths;
mod prove;
mod question;
mod rule;
mod services;
mod testing;
mod text;
mod tokens;
mod upgrade;
mod verdict;
mod window;
pub mod yaml;
mod yaml_erased;
mod yaml_limits;
mod yaml_pieces;
mod yaml_spanned;
mod yaml_words;

pub use break_glass::{BREAK_GLASS, BreakGlass, MAX_OPEN, MAX_REASON, OPENED_BY, REASON};
pub use changes::Changes;
pub use diagnostic::{Diagnostic, Diagnostics, Place, Severity, SourceFile};
pub use egress::{Call, CallTarget};
pub use engine::Connection;
pub use explain::{Explanation, Miss, Shadow, Untold};
pub use fields::{FieldError, HeaderFields, HeaderLines};
pub use fmt::{Formatted, format};
pub use generation::Generation;
pub use issuers::{Algorithm, Issuer, Jwt, KeySource, OtherTokens, TokenHeader};
pub use istio::{Imported, Note, import_istio};
pub use limits::{Limit, LimitCounts, LimitId, LimitName, Refused};
pub use load::{Loader, load, trust_domain_of};
pub use not_asked::NotAsked;
pub use port_paths::PortPaths;
pub use question::{Answer, Asked, Declared, Question, Refusal, Told, ToldToken};
pub use services::{
    Endpoint, OriginateTls, Place as ServicePlace, Protocol, Service, ServiceName, ServicePort, Services,
    Transport,
};
pub use testing::{CaseResult, Coverage, InvariantResult, TestReport, run_tests};
pub use tokens::{
    BadClaims, BadToken, ClaimPath, Claims, MAX_PAYLOAD, MAX_TOKENS, Payload, TokenSet, Tokens, strict_object,
};
pub use upgrade::{BadUpgrade, MAX_UPGRADES, Upgrade, UpgradeName};
pub use verdict::{
    Action, Defaults, DenyReason, DocumentSummary, Effect, Enforcement, OnChange, Operation, RuleId,
    RuleName, Scope, Source, Stage, Tier, Verdict, Workload, Would,
};
