//! `probes`: questions of an orchestrator's to the workload, which come to the health listener.

use std::sync::Arc;

use http::uri::PathAndQuery;
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::File;

/// One question.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The workload's port.
    pub port: u16,
    /// What is asked for there by HTTP; none: that it accepts a connection is enough.
    pub path: Option<PathAndQuery>,
    /// It is asked once at a time, however many ask.
    pub turn: Arc<Semaphore>,
}

impl Probe {
    /// Where it is served.
    pub fn place(&self) -> String {
        format!("/probe/{}{}", self.port, self.path.as_ref().map_or("", PathAndQuery::as_str))
    }
}

/// Three for each of a few containers.
const MOST: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    port: Spanned<u16>,
    path: Option<Spanned<String>>,
}

/// Checks all of them.
pub(super) fn check(file: &SourceFile, raw: &File, wrong: &mut Diagnostics) -> Vec<Probe> {
    let mut probes: Vec<Probe> = Vec::new();
    for (at, Raw { port, path }) in raw.probes.iter().enumerate() {
        if port.value == 0 || raw.listeners().any(|(_, own)| own.value.port() == port.value) {
            wrong.push(yaml::at(file, port, format!("{} is no port of the workload's", port.value)));
        }
        let parsed = path.as_ref().and_then(|text| {
            let parsed = PathAndQuery::try_from(text.value.as_str()).ok();
            let parsed = parsed.filter(|path| path.as_str() == text.value && path.path().starts_with('/'));
            if parsed.is_none() {
                wrong.push(
                    yaml::at(file, text, format!("{:?} is no path of a request", text.value))
                        .with_help("write it as it is asked for, such as /healthz"),
                );
            }
            parsed
        });
        let probe = Probe { port: port.value, path: parsed, turn: Arc::new(Semaphore::new(1)) };
        if probes.iter().any(|other| other.place() == probe.place()) {
            wrong.push(yaml::at(file, port, "this probe stands here twice"));
        }
        if at == MOST {
            wrong.push(yaml::at(file, port, format!("at most {MOST} probes are taken")));
        }
        probes.push(probe);
    }
    probes
}
