//! Sets with one mistake each, and the text that their writers get. `broken/NAME.yaml` is the set, `broken/NAME.txt` the
//! text: what is wrong, where, and the way out. After a change of texts: `UPDATE_SNAPSHOTS=1 cargo test -p postern-policy
//! --test broken`, then read the difference as somebody would who has made the mistake.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use postern_policy::{Diagnostics, Scope, SourceFile, Workload, load};
use postern_svid::TrustDomain;

fn sets() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let entries = fs::read_dir(directory).expect("the directory is there");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let mut sets: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    sets.sort();
    sets
}

fn name(set: &Path) -> &str {
    set.file_name().and_then(|name| name.to_str()).expect("it has a name")
}

fn errors_of(set: &Path) -> Diagnostics {
    let scope = Scope {
        trust_domain: TrustDomain::parse("demo.postern").expect("a literal"),
        root_namespace: "postern-system".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::from([("app".into(), "orders".into())]),
        }),
    };
    let text = fs::read(set).expect("it can be read");
    match load(&[SourceFile { name: name(set).into(), text }], &scope, 1) {
        Ok(_) => panic!("{} was taken", set.display()),
        Err(errors) => errors,
    }
}

#[test]
fn every_mistake_is_told_as_the_snapshot_says() {
    let update = std::env::var_os("UPDATE_SNAPSHOTS").is_some();
    let sets = sets();
    assert!(sets.len() >= 50, "{}", sets.len());
    let mut differ = Vec::new();
    for set in &sets {
        let text = format!("{}\n", errors_of(set));
        let snapshot = set.with_extension("txt");
        if update {
            fs::write(&snapshot, &text).expect("it can be written");
        } else if fs::read_to_string(&snapshot).unwrap_or_default() != text {
            differ.push(format!("{}:\n{text}", snapshot.display()));
        }
    }
    assert!(differ.is_empty(), "texts have changed (see the head of this file):\n{}", differ.join("\n"));
}

/// What the snapshots cannot show by themselves: that none is without a place or a way out by oversight.
#[test]
fn every_mistake_has_its_place_and_a_way_out() {
    // There is no place in nothing.
    let nowhere = ["bytes-empty.yaml", "document-only-comments-between.yaml"];
    for set in sets() {
        let errors = errors_of(&set);
        let first = errors.iter().next().expect("an error");
        assert!(first.line > 0 || nowhere.contains(&name(&set)), "{}: no place\n{errors}", set.display());
        assert!(first.help.is_some(), "{}: no way out\n{errors}", set.display());
        let text = errors.to_string();
        assert!(!text.contains(['\u{1b}', '\0', '\u{feff}']), "{}: control characters", set.display());
        assert!(text.len() < 8_192, "{}: {} bytes of text", set.display(), text.len());
    }
}
