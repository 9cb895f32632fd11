//! How much one document may hold, and what its writer is told who goes beyond.

use serde_saphyr::Error;
use serde_saphyr::budget::BudgetBreach;

/// Levels of fields and lists within each other; documents have less than half of them.
const MAX_DEPTH: usize = 24;
/// Values, lists and fields of one document: some 50,000 rules. A set is bounded by its bytes, so many documents could hold
/// more of them than one large one can.
const MAX_NODES: usize = 1_000_000;
/// `&name` and `*name`, each.
const MAX_REFERENCES: usize = 256;
/// Uses of one `&name`.
const MAX_USES: usize = 64;
/// Values that all `*name` together stand for.
const MAX_REPEATED: usize = 20_000;
/// References within what other references stand for.
const MAX_REFERENCE_DEPTH: usize = 8;

/// How documents are read.
pub(crate) fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            // Lists and fields have an end, too.
            max_events: 2 * MAX_NODES,
            max_aliases: MAX_REFERENCES,
            max_anchors: MAX_REFERENCES,
            max_documents: 1,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        // `<<` makes it unclear which value is in force.
        merge_keys: serde_saphyr::MergeKeyPolicy::Error,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPEATED,
            max_replay_stack_depth: MAX_REFERENCE_DEPTH,
            max_alias_expansions_per_anchor: MAX_USES,
        },
        // `1_000` is a text in YAML 1.2.
        underscored_numbers_as_strings: true,
        strict_booleans: true,
        with_snippet: false,
    }
}

/// What a document has too much of, with the bound and the way out; `None` if it is another mistake.
pub(crate) fn exceeded(error: &Error) -> Option<(String, Option<String>)> {
    let repeated = |bound: String| (format!("{REPEATED}; {bound}"), WRITE_OUT);
    let (message, help) = match error {
        Error::Budget { breach, .. } => of_budget(breach),
        Error::AliasExpansionLimitExceeded { .. } => {
            repeated(format!("at most {MAX_USES} `*name` may refer to one `&name`"))
        }
        Error::AliasReplayLimitExceeded { .. } => {
            repeated(format!("all references of a document may stand for {MAX_REPEATED} values at most"))
        }
        Error::AliasReplayStackDepthExceeded { .. } => {
            repeated(format!("references may stand within others {MAX_REFERENCE_DEPTH} deep"))
        }
        // The scanner's own bound, which comes before ours where brackets are opened one behind the other.
        other if other.to_string().contains("recursion limit") => nested(),
        _ => return None,
    };
    Some((message, Some(help.to_owned())))
}

fn of_budget(breach: &BudgetBreach) -> (String, &'static str) {
    match breach {
        BudgetBreach::Documents { .. } => (
            "a second document begins here".to_owned(),
            "begin each document with `---` on a line of its own",
        ),
        BudgetBreach::Depth { .. } => nested(),
        BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. } => (
            format!("the document holds more than {MAX_NODES} values"),
            "make several documents of it: one file may hold many, parted by `---`",
        ),
        BudgetBreach::Aliases { .. } => {
            (format!("the document holds more than {MAX_REFERENCES} references (`*name`)"), WRITE_OUT)
        }
        BudgetBreach::Anchors { .. } => {
            (format!("the document holds more than {MAX_REFERENCES} `&name`s to refer to"), WRITE_OUT)
        }
        BudgetBreach::AliasAnchorRatio { .. } | BudgetBreach::RecordedAnchorEvents { .. } => {
            (REPEATED.to_owned(), WRITE_OUT)
        }
        _ => ("the document is too large".to_owned(), "make several documents of it, parted by `---`"),
    }
}

fn nested() -> (String, &'static str) {
    (
        format!("the document is nested more than {MAX_DEPTH} levels deep"),
        "write it flatter: no kind of document has so many levels; look for a `[` or `{` that is not ended",
    )
}

const REPEATED: &str = "this is repeated too often: a few lines with references can grow without bound";
const WRITE_OUT: &str = "write it out, or name what the list stands for, such as a namespace";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_says_which_bound_it_passes() {
        for (breach, words) in [
            (BudgetBreach::Nodes { nodes: 1 }, ["more than 1000000 values", "`---`"]),
            (BudgetBreach::Events { events: 1 }, ["more than 1000000 values", "`---`"]),
            (BudgetBreach::Depth { depth: 1 }, ["more than 24 levels", "flatter"]),
            (BudgetBreach::Aliases { aliases: 1 }, ["more than 256 references", "write it out"]),
            (BudgetBreach::Anchors { anchors: 1 }, ["more than 256 `&name`s", "write it out"]),
        ] {
            let (message, help) = of_budget(&breach);
            let said = format!("{message}; {}", help);
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
        }
    }
}
