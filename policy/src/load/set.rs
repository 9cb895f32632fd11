//! All files of a set together: what no single one shows.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::file::{CheckedFile, Content, Head, ReadFile};
use super::{Known, MAX_DOCUMENTS, Terms, no_documents, parallel, read_all};
use crate::check::{self, EgressPolicy, LimitPolicy, Policy, Settled, Test};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, SourceFile};
use crate::doc::{self, DefaultsSpec, Document};
use crate::istio;
use crate::norm::EscapedSlashes;
use crate::services::Service;
use crate::text::Text;
use crate::verdict::{DocumentSummary, RuleName, Scope};
use crate::yaml;

/// A set that has been read, and is to be checked.
pub(super) struct Set<'a> {
    files: Vec<(&'a SourceFile, State<'a>)>,
    pub(super) errors: Diagnostics,
}

enum State<'a> {
    /// Checked before, under terms that may be others.
    Known(Arc<CheckedFile>),
    Read(ReadFile<'a>),
}

impl State<'_> {
    fn heads(&self) -> impl Iterator<Item = &Head> {
        let (known, read) = match self {
            Self::Known(file) => (Some(&file.documents), None),
            Self::Read(file) => (None, Some(&file.documents)),
        };
        let known = known.into_iter().flatten().map(|(head, _)| head);
        known.chain(read.into_iter().flatten().map(|(head, _)| head))
    }

    fn defaults(&self) -> impl Iterator<Item = (&Head, &Document<DefaultsSpec>)> {
        let (known, read) = match self {
            Self::Known(file) => (Some(&file.documents), None),
            Self::Read(file) => (None, Some(&file.documents)),
        };
        let known = known.into_iter().flatten().filter_map(|(head, content)| match content {
            Content::Defaults(body) => Some((head, &**body)),
            _ => None,
        });
        known.chain(read.into_iter().flatten().filter_map(|(head, body)| match body {
            super::Body::Defaults(body) => Some((head, &**body)),
            _ => None,
        }))
    }
}

impl<'a> Set<'a> {
    /// The files in their order; those that are not known are the next ones in `read`. An error if there is so much wrong
    /// that the rest is not worth a look.
    pub(super) fn new(
        files: impl Iterator<Item = (&'a SourceFile, Known)>,
        read: Vec<ReadFile<'a>>,
    ) -> Result<Self, Diagnostics> {
        let mut read = read.into_iter();
        let mut set = Self { files: Vec::new(), errors: Diagnostics::new() };
        let mut count = 0;
        for (file, known) in files {
            let state = match known {
                Some(known) => State::Known(known),
                None => {
                    let Some(next) = read.next() else { break };
                    set.errors.extend(next.errors.clone());
                    State::Read(next)
                }
            };
            count += state.heads().count();
            set.files.push((file, state));
            if count > MAX_DOCUMENTS && set.errors.is_empty() {
                let message = format!("at most {MAX_DOCUMENTS} documents are taken");
                set.errors.push(Diagnostic::whole(&file.name, message));
                break;
            }
            if set.errors.is_full() {
                let mut errors = set.errors.finished();
                errors.note(Diagnostic::whole("", "the rest of the set was not read: mend these first"));
                return Err(errors);
            }
        }
        if count == 0 && set.errors.is_empty() {
            set.errors.push(no_documents());
        }
        Ok(set)
    }

    pub(super) fn heads(&self) -> impl Iterator<Item = (&'a SourceFile, &Head)> {
        self.files.iter().flat_map(|(file, state)| state.heads().map(move |head| (*file, head)))
    }

    /// Mistakes that no single document shows.
    pub(super) fn check_set(&mut self, scope: &Scope) {
        let mut seen: HashMap<(&str, &str, &str), &Place> = HashMap::new();
        let mut first_defaults: Option<&Place> = None;
        let mut errors = Diagnostics::new();
        for (file, head) in self.heads() {
            let Head { kind, namespace, name, place, .. } = head;
            let mut error = |message: String, help: String| {
                let text = text(file);
                let mut page = head.page(&text);
                page.error_with(head.at, message, help);
                errors.extend(page.errors);
            };
            if let Some(earlier) = seen.get(&(*kind, &**namespace, &**name)) {
                error(
                    format!("{kind} {}/{} exists twice", yaml::printable(namespace), yaml::printable(name)),
                    format!("the first stands at {earlier}"),
                );
                continue;
            }
            seen.insert((kind, namespace, name), place);
            if *kind == doc::MESH_DEFAULTS {
                match &first_defaults {
                    Some(earlier) if **namespace == *scope.root_namespace => error(
                        "MeshDefaults exist once in a mesh".to_owned(),
                        format!("the first stand at {earlier}"),
                    ),
                    _ => first_defaults = Some(place),
                }
            }
        }
        self.errors.extend(errors);
    }

    /// Defaults come first: other documents are read in their light.
    pub(super) fn settle(&mut self, scope: &Scope) -> Settled {
        let mut settled = Settled::default();
        let mut errors = Diagnostics::new();
        for (file, state) in &self.files {
            for (head, body) in state.defaults() {
                let text = text(file);
                let mut page = head.page(&text);
                settled = check::defaults(&mut page, body, &scope.root_namespace, &scope.trust_domain);
                errors.extend(page.errors);
            }
        }
        self.errors.extend(errors);
        settled
    }

    /// Of the default and what Services' ports say, the mode that lets rules name most paths: a rule may speak of any
    /// port's, and which ports of a workload a Service leads to is its owner's to change.
    pub(super) fn widest(&self, default: EscapedSlashes) -> EscapedSlashes {
        self.heads().filter_map(|(_, head)| head.widest).fold(default, Ord::max)
    }

    /// Checks every file that is not known.
    pub(super) fn check(mut self, terms: &Arc<Terms>) -> CheckedSet<'a> {
        // Known under other terms is not known.
        let outdated = |state: &State<'_>| matches!(state, State::Known(file) if file.terms != *terms);
        let again: Vec<&SourceFile> =
            self.files.iter().filter(|(_, state)| outdated(state)).map(|(file, _)| *file).collect();
        let mut again = read_all(again).into_iter();
        for (_, state) in &mut self.files {
            if outdated(state)
                && let Some(read) = again.next()
            {
                *state = State::Read(read);
            }
        }
        let weight = |(file, state): &(&SourceFile, State<'_>)| match state {
            State::Known(_) => 0,
            State::Read(_) => file.text.len(),
        };
        let checked = parallel::map(self.files, weight, |(file, state)| match state {
            State::Known(known) => (file, known, true, Diagnostics::new()),
            State::Read(read) => {
                let parsed = read.errors.is_empty();
                let (checked, errors) = read.check(terms);
                (file, Arc::new(checked), parsed && errors.is_empty(), errors)
            }
        });
        let mut errors = self.errors;
        let files = checked.into_iter().map(|(file, checked, is_good, found)| {
            errors.extend(found);
            (file, checked, is_good)
        });
        CheckedSet { files: files.collect(), errors }
    }
}

/// A set whose documents are checked.
pub(super) struct CheckedSet<'a> {
    /// With whether nothing in it is wrong.
    files: Vec<(&'a SourceFile, Arc<CheckedFile>, bool)>,
    pub(super) errors: Diagnostics,
}

impl<'a> CheckedSet<'a> {
    pub(super) fn documents(&self) -> impl Iterator<Item = (&'a SourceFile, &Head, &Content)> {
        self.files.iter().flat_map(|(file, checked, _)| {
            checked.documents.iter().map(move |(head, content)| (*file, head, content))
        })
    }

    pub(super) fn policies(&self) -> Vec<Arc<Policy>> {
        let policy = |content: &Content| match content {
            Content::Policy(policy) => Some(Arc::clone(policy)),
            _ => None,
        };
        self.documents().filter_map(|(_, _, content)| policy(content)).collect()
    }

    pub(super) fn limits(&self) -> Vec<Arc<LimitPolicy>> {
        let policy = |content: &Content| match content {
            Content::Limit(policy) => Some(Arc::clone(policy)),
            _ => None,
        };
        self.documents().filter_map(|(_, _, content)| policy(content)).collect()
    }

    pub(super) fn services(&self) -> Vec<Service> {
        let service = |content: &Content| match content {
            Content::Service(service) => Some(service.clone()),
            _ => None,
        };
        self.documents().filter_map(|(_, _, content)| service(content)).collect()
    }

    pub(super) fn tests(&self) -> Vec<Arc<Test>> {
        let test = |content: &Content| match content {
            Content::Test(test) => Some(Arc::clone(test)),
            _ => None,
        };
        self.documents().filter_map(|(_, _, content)| test(content)).collect()
    }

    pub(super) fn egress(&self) -> Vec<Arc<EgressPolicy>> {
        let policy = |content: &Content| match content {
            Content::Egress(policy) => Some(Arc::clone(policy)),
            _ => None,
        };
        self.documents().filter_map(|(_, _, content)| policy(content)).collect()
    }

    pub(super) fn warnings(&self, implied: &[Policy]) -> Diagnostics {
        let mut warnings = self.warnings_about_egress();
        warnings.extend(self.warnings_about_ports());
        warnings.extend(self.warnings_about_hosts());
        for (_, checked, _) in &self.files {
            warnings.extend(checked.warnings.clone());
        }
        for (file, head, finding) in istio::findings(self.written_policies(), implied) {
            let text = text(file);
            let mut page = head.page(&text);
            page.warn(head.at, finding.message, finding.help);
            warnings.extend(page.warnings);
        }
        warnings
    }

    fn written_policies(&self) -> Vec<((&'a SourceFile, &Head), &Policy)> {
        let documents = self.documents().filter_map(|(file, head, content)| match content {
            Content::Policy(policy) => Some(((file, head), &**policy)),
            _ => None,
        });
        documents.collect()
    }

    /// Names in tests that no rule has, or no limit.
    pub(super) fn misnamed(&self, implied: &[Policy]) -> Diagnostics {
        let mut found = Diagnostics::new();
        let tests: Vec<_> = self
            .documents()
            .filter_map(|(file, head, content)| match content {
                Content::Test(test) => Some((file, head, test)),
                _ => None,
            })
            .collect();
        if tests.is_empty() {
            return found;
        }
        let policies = self.policies();
        let policies = policies.iter().map(|policy| &**policy).chain(implied);
        let rules = policies.flat_map(|policy| policy.rules.iter().map(|(name, _)| &**name));
        let egress = self.egress();
        let rules =
            rules.chain(egress.iter().flat_map(|policy| policy.rules.iter().map(|(name, _)| &**name)));
        let rules: HashMap<String, &RuleName> = rules.map(|name| (name.to_string(), name)).collect();
        let limits = self.limits();
        let limits = limits.iter().flat_map(|policy| &policy.limits);
        let limits: BTreeSet<String> = limits.map(|limit| limit.name.to_string()).collect();
        for (file, head, test) in tests {
            let text = text(file);
            let mut page = head.page(&text);
            check::names_of_rules(&mut page, test, &rules);
            check::names_of_limits(&mut page, test, &limits);
            found.extend(page.errors);
        }
        found.finished()
    }

    pub(super) fn summaries(&self, scope: &Scope) -> Vec<DocumentSummary> {
        let summary = |(_, head, content): (_, &Head, &Content)| DocumentSummary {
            kind: head.kind,
            namespace: head.namespace.clone(),
            name: head.name.clone(),
            place: head.place.clone(),
            rules: match content {
                Content::Policy(policy) => policy.rules.len(),
                Content::Egress(policy) => policy.rules.len(),
                Content::Limit(_)
                | Content::Service(_)
                | Content::Test(_)
                | Content::Defaults(_)
                | Content::RequestAuthentication(_)
                | Content::PeerAuthentication => 0,
            },
            applies: match (content, &scope.workload) {
                // A test is about a workload of its own choice, and about nobody's traffic.
                (Content::Test(_), _) => Some(false),
                (Content::Policy(policy), Some(workload)) => Some(policy.applies_to(workload)),
                (Content::Egress(policy), Some(workload)) => Some(policy.applies_to(workload)),
                (Content::Limit(policy), Some(workload)) => Some(policy.applies_to(workload)),
                (Content::RequestAuthentication(policy), Some(workload)) => Some(policy.applies_to(workload)),
                (
                    Content::Policy(_)
                    | Content::Egress(_)
                    | Content::Limit(_)
                    | Content::RequestAuthentication(_),
                    None,
                ) => None,
                (Content::Service(_) | Content::Defaults(_) | Content::PeerAuthentication, _) => Some(true),
            },
            break_glass: match content {
                Content::Policy(policy) => policy.break_glass.clone(),
                // Only an Allow can.
                _ => None,
            },
        };
        self.documents().map(summary).collect()
    }

    /// What each file came to, if it is without a mistake.
    pub(super) fn good(self) -> Vec<Known> {
        self.files.into_iter().map(|(_, checked, is_good)| is_good.then_some(checked)).collect()
    }
}

/// The text of a file that has been read.
pub(super) fn text(file: &SourceFile) -> Text<'_> {
    Text::new(file, yaml::text_of(file).unwrap_or_default())
}
