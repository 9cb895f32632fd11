//! `upgrades` of a port.

use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, MAX_UPGRADES, Protocol, SourceFile, UpgradeName};

/// What a port may list, each mistake with its place.
pub(super) fn check(
    file: &SourceFile,
    names: &Spanned<Vec<Spanned<String>>>,
    protocol: Protocol,
    wrong: &mut Diagnostics,
) -> Vec<UpgradeName> {
    if protocol != Protocol::Http {
        let what = format!("a port of protocol {protocol} has no upgrades");
        wrong.push(
            yaml::at(file, names, what)
                .with_help("only HTTP/1.1 has them: declare the port as http, or leave `upgrades` out"),
        );
    }
    if names.value.is_empty() {
        wrong.push(yaml::at(file, names, "`upgrades` is empty").with_help("name one, or leave it out"));
    }
    if names.value.len() > MAX_UPGRADES {
        wrong.push(yaml::at(file, names, format!("a port lists at most {MAX_UPGRADES} upgrades")));
    }
    let mut checked = Vec::new();
    for entry in names.value.iter().take(MAX_UPGRADES) {
        match UpgradeName::parse(&entry.value) {
            Ok(name) if checked.contains(&name) => {
                wrong.push(yaml::at(file, entry, format!("{name} stands here twice")));
            }
            Ok(name) => checked.push(name),
            Err(error) => {
                wrong.push(yaml::at(file, entry, error.to_string()).with_help(error.help()));
            }
        }
    }
    checked
}
