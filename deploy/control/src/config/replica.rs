//! `replica:` the name of this one among the replicas of a control plane.

use postern_ca::store::is_replica_name;
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};

use super::Keys;

/// The name, if there is one. Replicas share the roots' keys, so these must not lie open.
pub(super) fn of(
    raw: Option<Spanned<String>>,
    shares: bool,
    keys: &Keys,
    file: &SourceFile,
    found: &mut Diagnostics,
) -> Option<String> {
    let raw = raw?;
    if !is_replica_name(&raw.value) {
        let message = "replica: 1 to 63 lower-case letters, digits and -, such as control-1";
        found.push(yaml::at(file, &raw, message));
    }
    if !shares {
        let message = "replica: `store` is missing: where is what replicas share?";
        found
            .push(yaml::at(file, &raw, message).with_help(
                "write store: {etcd: {endpoints: […], …}} (docs/etcd.md), or leave `replica` out",
            ));
    }
    if keys.seal.is_none() {
        let message = "replica: what replicas share has the roots' keys in it, so they must be sealed";
        found.push(yaml::at(file, &raw, message).with_help(
            "write keys: {seal: {keyFile: PATH}} with the same secret at every replica (docs/keys.md)",
        ));
    }
    Some(raw.value)
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    const STORE: &str = "store: {etcd: {endpoints: [\"http://[::1]:2379\"]}}";

    fn parse(rest: &str) -> Result<Option<String>, String> {
        let text =
            format!("trustDomain: td\nstateDir: s\nlisten: {{address: \"[::1]:1\"}}\n{rest}\n{STORE}\n");
        let file = SourceFile { name: "control.yaml".to_owned(), text: text.into_bytes() };
        Config::parse(&file).map(|config| config.replica).map_err(|found| found.to_string())
    }

    #[test]
    fn a_name_and_sealed_keys() {
        const SEALED: &str = "keys: {seal: {keyFile: /etc/s.key}}";
        assert_eq!(parse(&format!("{SEALED}\nreplica: control-1")).unwrap().as_deref(), Some("control-1"));
        for (bad, place, says) in [
            (format!("{SEALED}\nreplica: Control"), "control.yaml:5:", "lower-case"),
            (format!("{SEALED}\nreplica: ''"), "control.yaml:5:", "1 to 63"),
            ("replica: control-1".to_owned(), "control.yaml:4:", "keys: {seal:"),
        ] {
            let error = parse(&bad).unwrap_err();
            assert!(error.contains(place) && error.contains(says), "{bad}: {error}");
        }
    }
}
