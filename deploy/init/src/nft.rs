//! The program `nft`: hands it scripts, and compares what the kernel holds with what it should.

use std::io::{ErrorKind, Write as _};
use std::process::{Command, Output, Stdio};

use crate::Failure;
use crate::config::Config;
use crate::rules;

/// Runs a script, all of which takes effect at one moment or not at all.
pub(crate) fn load(nft: &str, script: &str) -> Result<(), Failure> {
    let output = run(nft, &["-f", "-"], script)?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(&output))
}

fn refused(output: &Output) -> Failure {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let help = if said.contains("Operation not permitted") || said.contains("must be root") {
        " (it takes CAP_NET_ADMIN in this network namespace)"
    } else {
        ""
    };
    Failure::Run(format!("nft refused, and nothing was changed{help}: {said}"))
}

/// Lines that the table lacks (`-`) or has too many (`+`). What should be there is asked of the kernel as well, in a table
/// that is asleep, so that both have been through the same hands: how `nft` writes a rule differs from release to release.
pub(crate) fn differences(config: &Config) -> Result<Vec<String>, Failure> {
    let Some(found) = list(&config.nft, rules::TABLE)? else {
        return Ok(vec![format!("- table inet {} (there is none)", rules::TABLE)]);
    };
    let asleep = format!("{}-check-{}", rules::TABLE, std::process::id());
    load(
        &config.nft,
        &format!("{}{}", rules::removal(&asleep), rules::table(config, &asleep, "  flags dormant\n")),
    )?;
    let expected = list(&config.nft, &asleep);
    load(&config.nft, &rules::removal(&asleep))?;
    let expected = expected?.ok_or_else(|| {
        Failure::Run(format!("table inet {asleep} was removed while it was looked at: try again"))
    })?;
    let expected = expected.replacen(&asleep, rules::TABLE, 1);
    let expected: Vec<&str> = lines(&expected).into_iter().filter(|line| *line != "flags dormant").collect();
    Ok(compared(&expected, &lines(&found)))
}

/// The lines that count. Elements of `escaped` come and go.
fn lines(listing: &str) -> Vec<&str> {
    let mut within = "";
    let mut out = Vec::new();
    for line in listing.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.ends_with('{') {
            within = line;
        }
        if within != "set escaped {" || !line.starts_with("elements = ") {
            out.push(line);
        }
    }
    out
}

/// In order: a rule that stands elsewhere means something else. The longest common beginning and end are passed over.
fn compared(expected: &[&str], found: &[&str]) -> Vec<String> {
    let begin = expected.iter().zip(found).take_while(|(one, other)| one == other).count();
    let (expected, found) = (&expected[begin..], &found[begin..]);
    let end = expected.iter().rev().zip(found.iter().rev()).take_while(|(one, other)| one == other).count();
    let missing = expected[..expected.len() - end].iter().map(|line| format!("- {line}"));
    missing.chain(found[..found.len() - end].iter().map(|line| format!("+ {line}"))).collect()
}

/// The table without its counts; none if it is not there.
fn list(nft: &str, table: &str) -> Result<Option<String>, Failure> {
    let output = run(nft, &["-s", "list", "table", "inet", table], "")?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    if String::from_utf8_lossy(&output.stderr).contains("No such file or directory") {
        return Ok(None);
    }
    Err(refused(&output))
}

fn run(nft: &str, arguments: &[&str], input: &str) -> Result<Output, Failure> {
    let failed = |error: std::io::Error| {
        let help = if error.kind() == ErrorKind::NotFound {
            " (it is in the package nftables; --nft names it where it is not on the path)"
        } else {
            ""
        };
        Failure::Run(format!("{nft}: {error}{help}"))
    };
    let mut child = Command::new(nft)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // A program that ends before it has read says why itself.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    child.wait_with_output().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_once_and_in_order() {
        let expected = ["a", "b", "c", "d"];
        for (found, said) in [
            (&["a", "b", "c", "d"][..], &[][..]),
            (&["a", "c", "d"], &["- b"]),
            (&["a", "x", "b", "c", "d"], &["+ x"]),
            (&["a", "c", "b", "d"], &["- b", "- c", "+ c", "+ b"]),
            (&[], &["- a", "- b", "- c", "- d"]),
            (&["a", "a", "b", "c", "d"], &["+ a"]),
        ] {
            assert_eq!(compared(&expected, found), said, "{found:?}");
        }
    }

    #[test]
    fn what_has_escaped_is_no_difference_and_other_elements_are() {
        let listing = "table inet postern {\n\tset escaped {\n\t\ttype nf_proto\n\t\telements = { ipv4 expires 9s }\n\t}\n\n\
                       \tset dns4 {\n\t\telements = { 10.0.0.53 }\n\t}\n}\n";
        assert_eq!(
            lines(listing),
            [
                "table inet postern {",
                "set escaped {",
                "type nf_proto",
                "}",
                "set dns4 {",
                "elements = { 10.0.0.53 }",
                "}",
                "}"
            ]
        );
    }
}
