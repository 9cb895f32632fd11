//! Ports in policies that no Service of the set leads to.

use super::file::Content;
use super::set::{CheckedSet, text};
use crate::check::Leads;
use crate::diagnostic::{Diagnostics, SourceFile};
use crate::text::Text;

impl CheckedSet<'_> {
    pub(super) fn warnings_about_ports(&self) -> Diagnostics {
        let mut warnings = Diagnostics::new();
        let leads = Leads::of(self.documents().filter_map(|(_, _, content)| match content {
            Content::Service(service) => Some(service),
            _ => None,
        }));
        // A file may hold many documents, and its lines are counted once.
        let mut open: Option<(&SourceFile, Text<'_>)> = None;
        for (file, head, content) in self.documents() {
            let (ports, namespaces) = match content {
                Content::Policy(policy) => (&policy.ports, policy.meant_namespaces()),
                Content::Limit(policy) => (&policy.ports, policy.meant_namespaces()),
                _ => continue,
            };
            if open.as_ref().is_none_or(|(opened, _)| !std::ptr::eq(*opened, file)) {
                open = Some((file, text(file)));
            }
            let Some((_, text)) = &open else { continue };
            let mut page = head.page(text);
            leads.warn_about(&mut page, ports, &namespaces);
            warnings.extend(page.warnings);
        }
        warnings
    }
}
