//! `postern ca ledger`: what the CA has issued. Reads the ledger's files, whether a control plane writes to them or not.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use postern_ca::ledger::{self, DIRECTORY, Entry, Field, Head, Kind, LedgerError, State, Value, Walk};
use postern_ca::store::{Audit, AuditError, DATABASE, Sqlite, StoreError};
use postern_svid::{SpiffeId, TrustDomain};
use serde_json::{Map, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

mod verify;

use super::{Place, failed, has_ca};
use verify::verify;

/// How often the files are asked for more.
const FOLLOW: Duration = Duration::from_millis(250);

#[derive(Subcommand)]
pub(super) enum Verb {
    /// The newest records.
    Tail {
        /// How many.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
        lines: u64,
        /// Go on with what comes.
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        place: Place,
    },
    /// The records that fit, oldest first. Exit code 1 if none does.
    Search {
        /// Of this SPIFFE id.
        #[arg(long, value_name = "SPIFFE-ID")]
        id: Option<SpiffeId>,
        /// Of the certificate with this serial number, or of the one it was renewed from.
        #[arg(long, value_name = "HEX", value_parser = hex)]
        serial: Option<String>,
        /// Made at this time or later: 2026-11-27T18:00:00Z.
        #[arg(long, value_name = "TIME", value_parser = instant)]
        since: Option<u64>,
        /// Made before this time.
        #[arg(long, value_name = "TIME", value_parser = instant)]
        until: Option<u64>,
        /// Of this kind.
        #[arg(long, value_parser = PossibleValuesParser::new(Kind::ALL.map(Kind::name)).try_map(|name| kind(&name)))]
        kind: Option<Kind>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        place: Place,
    },
    /// Check every record and every signed head, and hold the database against them: what it says of the ledger, and each
    /// certificate, lineage, join token, CA, denial, taint, JWT key and federated bundle, both ways. Reads only; the control
    /// plane may run.
    Verify {
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        of: Of,
    },
    /// Prove, as JSON, that a record is in the ledger, or that an older head's ledger is the beginning of this one.
    Proof {
        /// A record's number, or a certificate's serial number in hexadecimal.
        #[arg(value_name = "SERIAL|SEQUENCE", required_unless_present = "consistency", value_parser = which)]
        record: Option<Which>,
        /// Records of the older head.
        #[arg(long, value_name = "SIZE", conflicts_with = "record", value_parser = clap::value_parser!(u64).range(1..))]
        consistency: Option<u64>,
        #[command(flatten)]
        of: Of,
    },
}

#[derive(clap::Args)]
pub(super) struct Form {
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Where, for what needs the database.
#[derive(clap::Args)]
pub(super) struct Of {
    #[command(flatten)]
    place: Place,
    /// The trust domain, with --state-dir.
    #[arg(long, value_name = "NAME", required_unless_present = "config", conflicts_with = "config")]
    trust_domain: Option<TrustDomain>,
}

pub(super) fn run(verb: Verb) -> ExitCode {
    let done = match verb {
        Verb::Tail { lines, follow, form, place } => {
            place.directory().map(|at| tail(&at.join(DIRECTORY), lines, follow, form.json))
        }
        Verb::Search { id, serial, since, until, kind, form, place } => {
            let wanted = Wanted { id, serial, since, until, kind };
            place.directory().map(|at| search(&at.join(DIRECTORY), &wanted, form.json))
        }
        Verb::Verify { form, of } => {
            of.audit().map(|found| found.and_then(|found| verify(&found, form.json)))
        }
        Verb::Proof { record, consistency, of } => of.store().map(|found| {
            let found = found?;
            match (record, consistency) {
                (Some(record), _) => prove(&found, &record),
                (None, old) => prove_consistency(&found, old.unwrap_or(1)),
            }
        }),
    };
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        // A reader that has seen enough (`| head`) is no failure.
        Ok(Err(Failure::Output(error))) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Ok(Err(Failure::Nothing)) => ExitCode::FAILURE,
        // What differs was the answer, in JSON too; this is for whoever reads it.
        Ok(Err(error @ Failure::Differs(_))) => {
            eprintln!("postern ca: {error}");
            ExitCode::FAILURE
        }
        Ok(Err(error)) => failed(error),
        Err(code) => code,
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Audit(#[from] AuditError),
    #[error(
        "the database does not hold what the ledger says: {0} differences. Nobody but the control plane and the verbs may write to {DATABASE}; keep a copy as evidence, and restore the state directory from a backup (docs/ledger.md, \"When the database differs\")"
    )]
    Differs(u64),
    #[error("{0}")]
    Ledger(#[from] LedgerError),
    /// Said by the exit code alone, as `grep` does.
    #[error("nothing fits")]
    Nothing,
    #[error("no certificate with the serial number {0} is in the ledger's segments here")]
    NotFound(String),
    #[error("standard output cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// The ledger's directory and the database beside it.
struct Found {
    directory: std::path::PathBuf,
    store: Sqlite,
}

impl Of {
    fn store(self) -> Result<Result<Found, Failure>, ExitCode> {
        let (state, trust_domain) = self.place.resolve(self.trust_domain)?;
        Ok(is_there_a_ca(&state).and_then(|()| {
            let store = Sqlite::open(&state, &trust_domain)?;
            Ok(Found { directory: state.join(DIRECTORY), store })
        }))
    }

    fn audit(self) -> Result<Result<Audit, Failure>, ExitCode> {
        let (state, trust_domain) = self.place.resolve(self.trust_domain)?;
        Ok(is_there_a_ca(&state).and_then(|()| Ok(Audit::open(&state, &trust_domain)?)))
    }
}

/// Opening a store makes one.
fn is_there_a_ca(state: &Path) -> Result<(), Failure> {
    if has_ca(state) {
        return Ok(());
    }
    let missing = "it is missing, and the ledger beside it is not".to_owned();
    Err(match ledger::segments(&state.join(DIRECTORY)) {
        Ok(_) => StoreError::Damaged(state.join(DATABASE), missing).into(),
        Err(error) => error.into(),
    })
}

impl Found {
    fn state(&self) -> Result<State, Failure> {
        Ok(self.store.ledger()?.ok_or_else(|| LedgerError::None(self.directory.clone()))?)
    }

    /// What the newest head covers, and its text.
    fn head(&self) -> Result<(State, Head, String), Failure> {
        let state = self.state()?;
        let (Some(key), Some(text)) = (state.key, state.head.clone()) else {
            return Err(LedgerError::NotCovered(0).into());
        };
        let head = Head::verify(&text, &state.identity, key)
            .map_err(|what| LedgerError::Head { file: "the database's head".into(), what })?;
        Ok((state, head, text))
    }
}

fn tail(directory: &Path, lines: u64, follow: bool, json: bool) -> Result<(), Failure> {
    let newest = ledger::segments(directory)?.last().copied().unwrap_or(0);
    let mut end = Walk::begin(directory, newest)?;
    while end.read()?.is_some() {}
    let mut walk = Walk::from(directory, end.position().saturating_sub(lines))?;
    let mut out = BufWriter::new(io::stdout().lock());
    loop {
        while let Some(entry) = walk.read()? {
            print(&mut out, &entry, json)?;
        }
        out.flush()?;
        if !follow {
            return Ok(());
        }
        std::thread::park_timeout(FOLLOW);
    }
}

struct Wanted {
    id: Option<SpiffeId>,
    serial: Option<String>,
    since: Option<u64>,
    until: Option<u64>,
    kind: Option<Kind>,
}

impl Wanted {
    fn fits(&self, entry: &Entry) -> bool {
        let record = &entry.record;
        let serial = |wanted: &String| {
            let mut both =
                [Field::Serial, Field::Predecessor].into_iter().filter_map(|field| record.bytes(field));
            both.any(|serial| postern_ca::hex(serial) == *wanted)
        };
        self.id.as_ref().is_none_or(|id| record.text(Field::Id) == Some(id.as_str()))
            && self.serial.as_ref().is_none_or(serial)
            && self.since.is_none_or(|since| record.time_ms >= since)
            && self.until.is_none_or(|until| record.time_ms < until)
            && self.kind.is_none_or(|kind| record.kind == kind)
    }
}

fn search(directory: &Path, wanted: &Wanted, json: bool) -> Result<(), Failure> {
    let mut walk = Walk::from(directory, 0)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut found = false;
    while let Some(entry) = walk.read()? {
        if wanted.fits(&entry) {
            found = true;
            print(&mut out, &entry, json)?;
        }
    }
    out.flush()?;
    if found { Ok(()) } else { Err(Failure::Nothing) }
}

fn prove(found: &Found, record: &Which) -> Result<(), Failure> {
    let (state, head, text) = found.head()?;
    let Some(key) = state.key else { return Err(LedgerError::KeyMismatch.into()) };
    let size = head.tree.size();
    if let Which::Sequence(sequence) = record {
        is_there(*sequence, state.size)?;
    }
    let entry = match record {
        Which::Serial(serial) => {
            of_serial(&found.directory, serial)?.ok_or_else(|| Failure::NotFound(serial.clone()))?
        }
        Which::Sequence(sequence) => {
            let mut walk = Walk::from(&found.directory, *sequence)?;
            if walk.position() > *sequence {
                return Err(LedgerError::MovedAway(walk.position()).into());
            }
            walk.read()?.ok_or(LedgerError::NotCovered(*sequence))?
        }
    };
    let sequence = entry.record.sequence;
    let path = ledger::inclusion(&found.directory, (&state.identity, key), sequence, size)?;
    let proof = json!({
        "sequence": sequence,
        "body": postern_ca::hex(&entry.body),
        "record": object(&entry),
        "inclusion": path.iter().map(|hash| postern_ca::hex(hash)).collect::<Vec<_>>(),
        "size": size,
        "rootHash": postern_ca::hex(&head.tree.root()),
        "head": text,
        "key": key.text(&state.identity),
    });
    Ok(writeln!(io::stdout().lock(), "{proof}")?)
}

/// What no head will cover is not waited for.
fn is_there(sequence: u64, size: u64) -> Result<(), LedgerError> {
    if sequence < size { Ok(()) } else { Err(LedgerError::NoRecord { sequence, size }) }
}

fn prove_consistency(found: &Found, old: u64) -> Result<(), Failure> {
    let (state, head, text) = found.head()?;
    let Some(key) = state.key else { return Err(LedgerError::KeyMismatch.into()) };
    is_there(old.saturating_sub(1), state.size)?;
    let path = ledger::consistency(&found.directory, (&state.identity, key), old, head.tree.size())?;
    let proof = json!({
        "oldSize": old,
        "consistency": path.iter().map(|hash| postern_ca::hex(hash)).collect::<Vec<_>>(),
        "size": head.tree.size(),
        "rootHash": postern_ca::hex(&head.tree.root()),
        "head": text,
        "key": key.text(&state.identity),
    });
    Ok(writeln!(io::stdout().lock(), "{proof}")?)
}

fn of_serial(directory: &Path, serial: &str) -> Result<Option<Entry>, Failure> {
    let mut walk = Walk::from(directory, 0)?;
    while let Some(entry) = walk.read()? {
        if entry.record.bytes(Field::Serial).is_some_and(|found| postern_ca::hex(found) == serial)
            && entry.record.kind == Kind::Certificate
        {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// One record, one line: its fields can hold nothing that would begin another.
fn print(out: &mut impl Write, entry: &Entry, json: bool) -> io::Result<()> {
    if json {
        return writeln!(out, "{}", object(entry));
    }
    let record = &entry.record;
    write!(out, "{:>8}  {}  {:<11}", record.sequence, time_text(record.time_ms), record.kind.name())?;
    for (field, name, value) in record.fields().filter(|(field, ..)| *field != Field::Certificate) {
        match value {
            Value::Text(text) if text.contains(' ') => write!(out, "  {name}={text:?}")?,
            Value::Text(text) if field == Field::Id => write!(out, "  {text}")?,
            Value::Text(text) => write!(out, "  {name}={text}")?,
            Value::Bytes(bytes) => write!(out, "  {name}={}", postern_ca::hex(bytes))?,
            Value::Number(number) => write!(out, "  {name}={number}")?,
            Value::Time(ms) => write!(out, "  {name}={}", time_text(ms))?,
        }
    }
    writeln!(out)
}

fn object(entry: &Entry) -> serde_json::Value {
    let record = &entry.record;
    let mut object = Map::new();
    object.insert("sequence".to_owned(), record.sequence.into());
    object.insert("time".to_owned(), time_text(record.time_ms).into());
    object.insert("kind".to_owned(), record.kind.name().into());
    object.insert("hash".to_owned(), postern_ca::hex(&entry.hash).into());
    for (_, name, value) in record.fields() {
        let value = match value {
            Value::Text(text) => text.into(),
            Value::Bytes(bytes) => postern_ca::hex(bytes).into(),
            Value::Number(number) => number.into(),
            Value::Time(ms) => time_text(ms).into(),
        };
        object.insert(name.to_owned(), value);
    }
    object.into()
}

fn time_text(ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    let (month, day) = (u8::from(date.month()), date.day());
    let (hour, minute, second, milli) = time.as_hms_milli();
    format!("{:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z", date.year())
}

fn instant(text: &str) -> Result<u64, String> {
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "a time is written as 2026-11-27T18:00:00Z".to_owned())?;
    Ok(u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0))
}

fn hex(text: &str) -> Result<String, String> {
    let plain: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    let is_hex = !plain.is_empty() && plain.len() <= 40 && plain.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex { Ok(plain) } else { Err(format!("{text:?}: a serial number is up to 40 hexadecimal digits")) }
}

/// Which record. A serial number is longer than any sequence number.
#[derive(Clone)]
pub(super) enum Which {
    Sequence(u64),
    Serial(String),
}

fn which(text: &str) -> Result<Which, String> {
    match text.parse() {
        Ok(sequence) if text.len() < 20 => Ok(Which::Sequence(sequence)),
        _ => hex(text).map(Which::Serial),
    }
}

fn kind(text: &str) -> Result<Kind, &'static str> {
    Kind::parse(text).ok_or("no kind of record")
}
