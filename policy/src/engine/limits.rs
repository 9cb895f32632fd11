//! Limits: rules that are all asked, not one after another until one decides. Few concern one workload, and each costs
//! some tens of nanoseconds, so they are walked; the keys are the engine's own.

use super::clock::Clock;
use super::compile::{pack, pack_peers};
use super::keys::Keys;
use super::matching::{Asked, Layer7, Question};
use super::packed::{Packed, Writer};
use super::{Connection, Engine};
use crate::limits::{LimitRule, Matched};
use crate::tokens::Tokens;
use crate::verdict::{Action, Operation};

/// One limit.
#[derive(Debug)]
pub(super) struct CompiledLimit {
    rule: u32,
    overrides: Box<[u32]>,
}

pub(super) fn compile<'a>(
    packed: &mut Packed,
    keys: &mut Keys,
    clock: &mut Clock,
    limits: impl Iterator<Item = &'a LimitRule>,
) -> Box<[CompiledLimit]> {
    let writer = &mut Writer::new(packed);
    (0_u32..)
        .zip(limits)
        .map(|(id, limit)| CompiledLimit {
            rule: pack(writer, keys, clock, id, &limit.rule),
            // An override is a favour as often as not: it takes a peer that certainly is meant.
            overrides: limit
                .overrides
                .iter()
                .map(|one| pack_peers(writer, keys, Action::Allow, &one.from))
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
                if matched.contains(id) {
                    continue;
                }
                if self.packed.fires(&self.packed.rule(limit.rule), connection, question, &self.clock) {
                    matched.insert(id);
                }
            }
        };
        match operation {
            Operation::Tcp => judge(&Question { port, what: Asked::Tcp, tokens: Tokens::Unknown, operation }),
            Operation::Tls { sni } => {
                let what = Asked::Tls(self.keys.of_sni(sni));
                judge(&Question { port, what, tokens: Tokens::Unknown, operation });
            }
            Operation::Http { method, path, host, headers, upgrade, tokens } => {
                for view in path.views() {
                    let hits = self.keys.of_request(view, host);
                    let knows_host = host.is_some();
                    let method_bit = method.bit();
                    let layer7 =
                        Layer7 { method, method_bit, path: view, headers, knows_host, host, upgrade, hits };
                    judge(&Question { port, what: Asked::Http(layer7), tokens, operation });
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
        let tokens = match operation {
            Operation::Http { tokens, .. } => tokens,
            Operation::Tcp | Operation::Tls { .. } => Tokens::Unknown,
        };
        overrides.iter().position(|peers| self.packed.takes(*peers, connection, tokens))
    }
}
