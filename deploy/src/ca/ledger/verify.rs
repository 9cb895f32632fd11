//! `postern ca ledger verify`: the ledger, and the database held against it.

use std::io::{self, Write};

use postern_ca::ledger::{Head, Report};
use postern_ca::store::{Audit, Difference};
use postern_svid::{Clock as _, SystemClock};
use serde_json::{Value, json};

use super::{Failure, time_text};

/// Differences that are shown: a table that was emptied has one for each row.
const SHOWN: usize = 1_000;

pub(super) fn verify(audit: &Audit, json: bool) -> Result<(), Failure> {
    let (mut shown, mut count) = (Vec::new(), 0_u64);
    let report = audit.verify(SystemClock.wall(), &mut |one| {
        count += 1;
        if shown.len() < SHOWN {
            shown.push(one);
        }
    })?;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", object(report, &shown, count))?;
    } else {
        text(&mut out, report, &shown, count)?;
    }
    out.flush()?;
    if count == 0 { Ok(()) } else { Err(Failure::Differs(count)) }
}

fn root(head: &Head) -> String {
    postern_ca::hex(&head.tree.root())
}

fn object(report: Report, shown: &[Difference], count: u64) -> Value {
    let Report { identity, key, first, size, segments, bytes, heads, latest, waiting, .. } = report;
    let latest = latest.map(
        |head| json!({ "size": head.tree.size(), "rootHash": root(&head), "time": time_text(head.time_ms) }),
    );
    let differences: Vec<Value> = shown
        .iter()
        .map(|one| {
            let Difference { record, table, key, column, ledger, database } = one;
            json!({
                "record": record, "table": table, "key": key, "column": column, "ledger": ledger,
                "database": database,
            })
        })
        .collect();
    json!({
        "ledger": identity.origin(), "key": key.text(&identity), "first": first, "size": size,
        "segments": segments, "bytes": bytes, "heads": heads, "latest": latest, "waiting": waiting,
        "differences": differences, "differencesInAll": count,
    })
}

fn text(out: &mut impl Write, report: Report, shown: &[Difference], count: u64) -> io::Result<()> {
    let Report { identity, key, first, size, segments, bytes, heads, latest, waiting, .. } = report;
    writeln!(out, "ledger     {}", identity.origin())?;
    writeln!(out, "key        {}", key.text(&identity))?;
    let records = match size.checked_sub(1) {
        Some(last) if last >= first => format!("{first} to {last}"),
        _ => "none".to_owned(),
    };
    writeln!(out, "records    {records}; segments: {segments}, bytes: {bytes}")?;
    match latest {
        Some(head) => writeln!(
            out,
            "heads      {heads}, the newest of {}, for {} records: {}",
            time_text(head.time_ms),
            head.tree.size(),
            root(&head)
        )?,
        None => writeln!(out, "heads      none yet")?,
    }
    if waiting > 0 {
        writeln!(out, "waiting    {waiting} records are in the database until a control plane runs")?;
    }
    if count == 0 {
        if first > 0 {
            writeln!(
                out,
                "database   as the records from {first} on say; what earlier ones said is not known here"
            )?;
        } else {
            writeln!(out, "database   as the records say")?;
        }
        return writeln!(out, "all of it is as it was written");
    }
    writeln!(out, "database   {count} differences")?;
    for one in shown {
        writeln!(out, "{one}")?;
    }
    if let Some(more) = count.checked_sub(shown.len() as u64).filter(|more| *more > 0) {
        writeln!(out, "and {more} more")?;
    }
    writeln!(out, "the ledger is as it was written, the database is not")
}
