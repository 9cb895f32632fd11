//! Holds `docs/protocols.md` against what the tests `protocols` saw when they ran last; with `UPDATE_SNAPSHOTS=1` writes it.
//!
//! ```text
//! cargo test --workspace --test protocols && cargo run -p postern-tests --bin protocols
//! ```

use std::path::Path;
use std::process::ExitCode;

use postern_tests::protocols::{compared, page};

fn main() -> ExitCode {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocols.md");
    let read = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let (old, new) = match read.and_then(|old| page(&old).map(|new| (old, new))) {
        Ok(both) => both,
        Err(error) => {
            eprintln!("docs/protocols.md: {error}");
            return ExitCode::FAILURE;
        }
    };
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some_and(|value| value == "1") {
        if let Err(error) = std::fs::write(&path, new) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    let (old, new) = (compared(&old), compared(&new));
    for line in old.lines().filter(|line| !new.lines().any(|other| other == *line)) {
        eprintln!("docs/protocols.md says, and no test saw:\n- {line}");
    }
    for line in new.lines().filter(|line| !old.lines().any(|other| other == *line)) {
        eprintln!("a test saw, and docs/protocols.md does not say:\n+ {line}");
    }
    if old == new {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "docs/protocols.md is not what the tests saw. If they are right: UPDATE_SNAPSHOTS=1 with this same command"
    );
    ExitCode::FAILURE
}
