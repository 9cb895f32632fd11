//! Limits: rules that are all asked, not one after another until one decides. Few concern one workload, and each costs
//! some tens of nanoseconds, so they are walked; the keys are the engine's own.

use super::clock::Clock;
use super::compile::{compile_peer, compile_rule};
use super::keys::Keys;
use super::matching::{Compiled, Layer7, PeerKeys, Question, What};
use super::{Connection, Engine};
use crate::limits::{LimitRule, Matched};
use crate::tokens::Tokens;
use crate::verdict::{Action, Operation};

/// One limit.
#[derive(Debug)]
pub(super) struct CompiledLimit {
    pub(super) rule: Compiled,
    overrides: Box<[Box<[PeerKeys]>]>,
}

pub(super) fn compile<'a>(
    keys: &mut Keys,
    clock: &mut Clock,
    limits: impl Iterator<Item = &'a LimitRule>,
) -> Box<[CompiledLimit]> {
    limits
        .map(|limit| CompiledLimit {
            rule: compile_rule(keys, clock, &limit.rule),
            overrides: limit
                .overrides
                .iter()
                .map(|one| one.from.iter().map(|peer| compile_peer(keys, peer)).collect())
                .collect(),
        })
        .collect()
}

impl Engine {
    /// The limits that match in any reading of a question. One that cannot be judged matches.
    pub(crate) fn limits_that_match(
        &self,
        connection: &Connection,
        port: u16,
        operation: Operation<'_>,
    ) -> Matched {
        let mut matched = Matched::default();
        if self.limits.is_empty() {
            return matched;
        }
        if connection.instance != self.instance {
            // Resolved by other rules: nothing is known of this peer here.
            (0..self.limits.len()).for_each(|id| matched.insert(id));
            return matched;
        }
        let mut judge = |question: &Question<'_>| {
            for (id, limit) in self.limits.iter().enumerate() {
                if !matched.contains(id) && limit.rule.fires(connection, question, &self.clock) {
                    matched.insert(id);
                }
            }
        };
        match operation {
            Operation::Tcp => judge(&Question { port, what: What::Tcp, tokens: Tokens::Unknown, operation }),
            Operation::Tls { sni } => {
                let what = What::Tls(self.keys.of_sni(sni));
                judge(&Question { port, what, tokens: Tokens::Unknown, operation });
            }
            Operation::Http { method, path, host, headers, upgrade, tokens } => {
                for view in path.views() {
                    let hits = self.keys.of_request(view, host);
                    let knows_host = host.is_some();
                    let layer7 = Layer7 { method, path: view, headers, knows_host, host, upgrade, hits };
                    judge(&Question { port, what: What::Http(layer7), tokens, operation });
                }
            }
        }
        matched
    }

    /// The override of a limit that means this peer.
    pub(crate) fn override_of(
        &self,
        limit: usize,
        connection: &Connection,
        operation: Operation<'_>,
    ) -> Option<usize> {
        if connection.instance != self.instance {
            return None;
        }
        let overrides = &self.limits.get(limit)?.overrides;
        // An override is a favour as often as not: it takes a peer that certainly is meant.
        let tokens = match operation {
            Operation::Http { tokens, .. } => tokens,
            Operation::Tcp | Operation::Tls { .. } => Tokens::Unknown,
        };
        let means =
            |peer: &PeerKeys| peer.means(connection, Action::Allow) && peer.admits(Action::Allow, tokens);
        overrides.iter().position(|peers| peers.iter().any(means))
    }
}
