//! The tables that are compared, row by row and column by column.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::super::StoreError;
use super::{Difference, Scope, holds_roots};
use crate::ledger::sha256;

/// How a column is compared, and shown.
#[derive(Clone, Copy, Eq, PartialEq)]
enum How {
    Same,
    /// A time, the same.
    Time,
    /// A time that the record's is never before.
    NotAfter,
    /// A blob of which the records' side is the SHA-256.
    Digest,
    /// The bundle of another trust domain, of which the records' side is the digest over its roots.
    Roots,
}

/// A column: its name, the database's value, the records' value, how.
type Column = (&'static str, &'static str, &'static str, How);

struct Table {
    name: &'static str,
    key: &'static [&'static str],
    columns: &'static [Column],
    /// Whether a row `m` of which no record tells is a difference.
    alone: &'static str,
    /// Whether what the records say, `s`, must be there.
    wanted: &'static str,
}

const fn same(name: &'static str, ours: &'static str, theirs: &'static str) -> Column {
    (name, ours, theirs, How::Same)
}

/// Rows that the database has forgotten by their age, or may at any time, are no difference, neither here nor there. `$first` is the
/// first record that is here; what is said in earlier ones is not known.
const TABLES: [Table; 7] = [
    Table {
        name: "issued",
        key: &["serial"],
        columns: &[
            same("spiffe_id", "m.spiffe_id", "s.spiffe_id"),
            same("lineage", "m.lineage", "s.lineage"),
            same("issuer", "m.issuer", "s.issuer"),
            same("key", "m.key", "s.key"),
            ("issued", "m.issued", "s.issued", How::NotAfter),
            ("not_before", "m.not_before", "s.not_before", How::Time),
            ("not_after", "m.not_after", "s.not_after", How::Time),
            ("certificate", "m.certificate", "s.certificate", How::Digest),
            same("record", "m.record", "s.record"),
        ],
        alone: "m.not_after >= $pruned AND (m.record IS NULL OR m.record >= $first)",
        wanted: "s.not_after >= $pruned",
    },
    Table {
        name: "lineage",
        key: &["id"],
        columns: &[
            same("spiffe_id", "m.spiffe_id", "s.spiffe_id"),
            same("attestor", "m.attestor", "s.attestor"),
            ("attested", "m.attested", "s.attested", How::NotAfter),
            same("newest", "m.newest", "s.newest"),
            same("parent", "coalesce(m.parent, x'')", "s.parent"),
            same("forked", "m.forked IS NOT NULL", "s.forked"),
            same("record", "m.record", "s.record"),
        ],
        alone: "$first = 0",
        wanted: "EXISTS (SELECT 1 FROM temp.said_issued i WHERE i.lineage = s.id AND i.not_after >= $pruned)",
    },
    Table {
        name: "token",
        key: &["hash"],
        columns: &[
            same("spiffe_id", "m.spiffe_id", "s.spiffe_id"),
            ("created", "m.created", "s.created", How::Time),
            ("expires", "m.expires", "s.expires", How::Time),
            same("bound_key", "coalesce(m.bound_key, x'')", "s.bound_key"),
            same("lineage", "coalesce(m.lineage, x'')", "s.lineage"),
            same("record", "m.record", "s.record"),
        ],
        // A replica writes down what it is about to spend of the shared store's; that alone is asked whether it is unspent.
        alone: "m.expires >= $pruned AND (m.record IS NULL OR m.record >= $first)
                AND NOT ($shared AND m.record = 0 AND m.bound_key IS NULL)",
        wanted: "s.expires >= $pruned",
    },
    Table {
        name: "authority",
        key: &["label"],
        columns: &[
            same("kind", "m.kind", "s.kind"),
            same("state", "m.state", "s.state"),
            same("key_id", "m.key_id", "s.key_id"),
            ("certificate", "m.certificate", "s.certificate", How::Digest),
            ("not_before", "m.not_before", "s.not_before", How::Time),
            ("not_after", "m.not_after", "s.not_after", How::Time),
            same("tainted", "m.tainted IS NOT NULL", "s.tainted"),
            same("record", "m.record", "s.record"),
        ],
        alone: "m.record IS NULL OR m.record >= $first",
        // Those of other replicas go with their age alone, and records do not tell whose one is.
        wanted: "s.kind IS NOT NULL AND (s.not_after >= $pruned OR s.state <> 'retired' AND NOT $shared)",
    },
    Table {
        name: "revocation",
        key: &["kind", "value"],
        columns: &[
            same("reason", "m.reason", "s.reason"),
            ("ends", "coalesce(m.ends, 0)", "s.ends", How::Time),
            same("record", "m.record", "s.record"),
        ],
        alone: "m.record IS NULL OR m.record >= $first",
        wanted: "1",
    },
    Table {
        name: "jwt_key",
        key: &["key_id"],
        columns: &[same("point", "m.point", "s.point"), same("state", "m.state", "s.state")],
        alone: "$first = 0 AND m.made > $begun",
        wanted: "1",
    },
    Table {
        name: "federated",
        key: &["trust_domain"],
        columns: &[
            same("sequence", "m.sequence", "s.sequence"),
            same("digest", "m.digest", "s.digest"),
            ("document", "m.document", "s.digest", How::Roots),
        ],
        alone: "$first = 0 AND m.fetched > $begun",
        wanted: "1",
    },
];

/// Gives each difference there is.
pub(super) fn all(
    connection: &Connection,
    scope: &Scope,
    found: &mut dyn FnMut(Difference),
) -> Result<(), StoreError> {
    for table in &TABLES {
        held(connection, table, scope, found)?;
        missing(connection, table, scope, found)?;
    }
    Ok(())
}

/// What the database holds, against the records.
fn held(
    connection: &Connection,
    table: &Table,
    scope: &Scope,
    found: &mut dyn FnMut(Difference),
) -> Result<(), StoreError> {
    let Table { name, key, columns, alone, .. } = table;
    let keys: String = key.iter().map(|key| format!(", m.{key}")).collect();
    let values: String = columns.iter().map(|(_, ours, theirs, _)| format!(", {ours}, {theirs}")).collect();
    let sql = format!(
        "SELECT s.said, {alone}{keys}{values} FROM main.{name} m LEFT JOIN temp.said_{name} s ON {}",
        on(key)
    );
    let mut statement = connection.prepare(&scope.filled(&sql))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let said: Option<i64> = row.get(0)?;
        let of = |record: Option<i64>, column, ledger, database| -> Result<Difference, StoreError> {
            let record = record.map(i64::unsigned_abs);
            Ok(Difference { record, table: name, key: key_text(table, row, 2)?, column, ledger, database })
        };
        if said.is_none() {
            if row.get::<_, Option<bool>>(1)? == Some(true) {
                found(of(None, None, None, Some("a row".to_owned()))?);
            }
            continue;
        }
        for (at, (column, _, _, how)) in columns.iter().enumerate() {
            let (ours, theirs) = (2 + key.len() + 2 * at, 3 + key.len() + 2 * at);
            let (ours, theirs) = (row.get_ref(ours)?, row.get_ref(theirs)?);
            if !fits(row, *how, ours, theirs) {
                let ours = match (how, ours) {
                    (How::Digest, ValueRef::Blob(bytes)) => text(*how, ValueRef::Blob(&sha256(&[bytes]))),
                    (How::Roots, _) => "a document of other roots, or none".to_owned(),
                    _ => text(*how, ours),
                };
                found(of(said, Some(*column), Some(text(*how, theirs)), Some(ours))?);
            }
        }
    }
    Ok(())
}

/// What the records say and the database does not hold.
fn missing(
    connection: &Connection,
    table: &Table,
    scope: &Scope,
    found: &mut dyn FnMut(Difference),
) -> Result<(), StoreError> {
    let Table { name, key, wanted, .. } = table;
    let keys: String = key.iter().map(|key| format!(", s.{key}")).collect();
    let sql = format!(
        "SELECT s.said{keys} FROM temp.said_{name} s LEFT JOIN main.{name} m ON {}
         WHERE m.{} IS NULL AND ({wanted})",
        on(key),
        key[0]
    );
    let mut statement = connection.prepare(&scope.filled(&sql))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let record = row.get::<_, Option<i64>>(0)?.map(i64::unsigned_abs);
        let key = key_text(table, row, 1)?;
        let ledger = Some("a row".to_owned());
        found(Difference { record, table: name, key, column: None, ledger, database: None });
    }
    Ok(())
}

fn on(key: &[&str]) -> String {
    let equal: Vec<String> = key.iter().map(|key| format!("m.{key} = s.{key}")).collect();
    equal.join(" AND ")
}

fn fits(row: &Row<'_>, how: How, ours: ValueRef<'_>, theirs: ValueRef<'_>) -> bool {
    if theirs == ValueRef::Null {
        return true;
    }
    match (how, ours, theirs) {
        (How::NotAfter, ValueRef::Integer(ours), ValueRef::Integer(theirs)) => ours <= theirs,
        (How::Digest, ValueRef::Blob(ours), ValueRef::Blob(theirs)) => sha256(&[ours]) == theirs,
        (How::Roots, ValueRef::Blob(document), ValueRef::Blob(digest)) => {
            row.get::<_, String>(2).is_ok_and(|name| holds_roots(&name, document, digest))
        }
        _ => ours == theirs,
    }
}

/// A join token's hash is shortened: enough to find its record.
fn key_text(table: &Table, row: &Row<'_>, from: usize) -> Result<String, StoreError> {
    let parts = (from..from + table.key.len()).map(|at| Ok(text(How::Same, row.get_ref(at)?)));
    let mut whole = parts.collect::<Result<Vec<_>, StoreError>>()?;
    if table.name == "token" {
        whole[0].truncate(16);
    }
    if let ("revocation", Ok(ValueRef::Text(b"id")), Ok(ValueRef::Blob(id))) =
        (table.name, row.get_ref(from), row.get_ref(from + 1))
    {
        whole[1] = text(How::Same, ValueRef::Text(id));
    }
    Ok(whole.join(" "))
}

/// For people. The database may hold anything: nothing of it steers a terminal, and nothing of it is long.
fn text(how: How, value: ValueRef<'_>) -> String {
    const LONGEST: usize = 256;
    match value {
        ValueRef::Null => "nothing".to_owned(),
        ValueRef::Integer(ms) if matches!(how, How::Time | How::NotAfter) && ms > 0 => {
            crate::store::moment(super::super::rows::from_ms(ms))
        }
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) => {
            let some = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned();
            some.escape_debug().to_string()
        }
        ValueRef::Blob([]) => "nothing".to_owned(),
        ValueRef::Blob(bytes) => crate::hex(&bytes[..bytes.len().min(LONGEST / 2)]),
    }
}
