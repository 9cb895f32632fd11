//! The page's program that reads the files, run as it stands there.

use std::process::Command;

use super::*;
use crate::keys::write_private;
use crate::ledger::segment::Header;

const PAGE: &str = include_str!("../../../../docs/ledger.md");

/// One record of each kind, each with every field that there is.
#[test]
fn the_pages_program_reads_every_kind_and_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = Header { id: [1; 16], key: HeadKey([2; 32]), first: 0, previous: [0; 32] }.encode();
    let mut hash = [0; 32];
    for (sequence, kind) in (0..).zip(Kind::ALL) {
        // Eight bytes are text, bytes, a number and a time.
        let all = (1..=u8::MAX).map_while(|tag| {
            let field = [&[tag][..], &8_u32.to_be_bytes(), &[0, 0, 0, 0, 0, 0, 0, 1]].concat();
            let field = if is_text(tag) { [&field[..5], b"spiffe:/"].concat() } else { field };
            let alone = [Draft::new(kind).encode(sequence, 9), field.clone()].concat();
            Record::decode(&alone).is_ok().then_some(field)
        });
        let fields: Vec<Vec<u8>> = all.collect();
        assert!(fields.len() >= 25, "{}", fields.len());
        let body = [Draft::new(kind).encode(sequence, 9), fields.concat()].concat();
        hash = chain(&hash, &body);
        bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes.extend(hash);
    }
    write_private(&segment_path(dir.path(), 0), &bytes).unwrap();
    assert_eq!(kinds(dir.path()).len(), Kind::ALL.len(), "ours reads it");
    let names: Vec<String> =
        entries(dir.path())[0].record.fields().map(|(_, name, _)| name.to_owned()).collect();

    let read = PAGE.split("```python\n").nth(2).unwrap().split("\n```").next().unwrap();
    let program = format!("{read}\nprint(*names)");
    let run = Command::new("python3").arg("-c").arg(program).arg(dir.path()).output();
    let run = match run {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: there is no python3");
            return;
        }
        run => run.unwrap(),
    };
    let (told, trouble) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{trouble}");
    let mut lines = told.lines();
    for (sequence, kind) in Kind::ALL.iter().enumerate() {
        let line = lines.next().unwrap();
        assert_eq!(line, format!("{sequence} 9 {} spiffe:/ 0000000000000001", kind.name()));
    }
    assert_eq!(lines.next().unwrap(), names.join(" "));
}

/// Whether this field is a text: bytes that are no text are refused in it.
fn is_text(tag: u8) -> bool {
    let field = [&[tag][..], &8_u32.to_be_bytes(), b"spiffe:/"].concat();
    let text = [Draft::new(Kind::Token).encode(0, 0), field].concat();
    let field = [&[tag][..], &8_u32.to_be_bytes(), &[0; 8]].concat();
    let zeros = [Draft::new(Kind::Token).encode(0, 0), field].concat();
    Record::decode(&text).is_ok() && Record::decode(&zeros).is_err()
}
