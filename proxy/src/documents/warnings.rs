//! What a set in force warns about, in the log.

use postern_policy::Generation;

/// Warnings that the log shows.
const SHOWN: usize = 3;

/// Says in one line what a set that was loaded warns about; `postern policy check` has all of it.
pub(super) fn tell(generation: &Generation) {
    let warnings = generation.warnings();
    if warnings.is_empty() {
        return;
    }
    let first: Vec<String> = warnings.iter().take(SHOWN).map(ToString::to_string).collect();
    tracing::warn!(
        "the documents in force have {} warnings (`postern policy check DIR` shows all), the first:\n{}",
        warnings.total(),
        first.join("\n\n")
    );
}
