//! Whether the database's file is as long as it says. SQLite takes what is missing at the end for zeros, and its quick check does
//! not look into rows.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use super::mark::{self, MARK};
use crate::ledger::{DIRECTORY, segments};

/// What is wrong with the length of the database at `path`, if anything is.
pub(super) fn check(path: &Path) -> io::Result<Result<(), String>> {
    let length = fs::metadata(path)?.len();
    if length == 0 {
        // Otherwise it would be taken for a new one, and the mesh would get another root.
        let ledger = path.with_file_name(DIRECTORY);
        let witness = if mark::path(path).exists() {
            Some(MARK)
        } else if segments(&ledger).is_ok() {
            Some(DIRECTORY)
        } else {
            None
        };
        let detail = |witness| format!("it was missing or is empty, and {witness} beside it remembers more");
        return Ok(witness.map(detail).map_or(Ok(()), Err));
    }
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    // A process that was killed leaves pages there that the file gets when it is opened.
    if fs::metadata(wal).is_ok_and(|wal| wal.len() > 0) {
        return Ok(Ok(()));
    }
    let mut header = [0; 32];
    let read = File::open(path)?.read_exact(&mut header);
    // What is no database at all is told by SQLite.
    if read.is_err() || !header.starts_with(b"SQLite format 3\0") {
        return Ok(Ok(()));
    }
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    let expected = page * u64::from(pages);
    if length < expected || page > 0 && !length.is_multiple_of(page) {
        return Ok(Err(format!("it is cut off: {length} bytes, and it says {expected}")));
    }
    Ok(Ok(()))
}
