//! What became of a rule's condition.

use crate::cond::{Asked, Caller, Condition};
use crate::generation::Generation;
use crate::verdict::{Operation, RuleId, Source};
use crate::yaml::printable;

/// Why a condition does not hold in some reading of the path, if it does not.
pub(super) fn failure<'a>(
    condition: &Condition,
    generation: &Generation,
    source: Source<'_>,
    port: u16,
    operation: Operation<'a>,
    readings: impl IntoIterator<Item = Option<&'a str>>,
) -> Option<String> {
    let caller = &Caller::new(source, &generation.engine.domains);
    let at = generation.engine.told();
    let outcomes =
        readings.into_iter().map(|view| condition.explain(Asked { caller, port, operation, view, at }));
    let failed = outcomes.into_iter().find(|outcome| *outcome != Ok(true))?;
    let shown = printable(&condition.to_string());
    Some(match failed {
        Ok(_) => format!("the condition `{shown}` is false"),
        Err(why) => format!("whether the condition `{shown}` holds is not known: {why}"),
    })
}

/// Why it is not known whether the condition of the rule that decided holds; none if it holds in some reading.
pub(super) fn unknown(
    generation: &Generation,
    rule: Option<RuleId>,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
) -> Option<String> {
    let condition = generation.engine.rules.get(rule?.index())?.condition.as_ref()?;
    let in_reading = |view| failure(condition, generation, source, port, operation, [view]);
    let views = operation.views();
    let failures: Option<Vec<String>> = views.into_iter().map(in_reading).collect();
    failures?.into_iter().find(|failed| failed.starts_with("whether"))
}
