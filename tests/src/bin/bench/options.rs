//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::Failure;

pub(crate) const USAGE: &str = "\
usage: bench mesh|policy|size|streams|issue|soak [options]
  --quick          fewer and shorter rounds: a glance, not a figure to quote (size: without the slow readers)
  --rounds N       interleaved rounds (mesh, policy, streams, issue: 5, quick 3), starts (size: 10, quick 3)
  --seconds N      length of one measurement (mesh, policy, streams, issue: 5, quick 2; soak: 600, quick 60)
  --connections N  client connections (mesh, policy: 32), requests at a time (issue: 32), idle mesh connections
                   (size: 1000), streams (100)
  --lineages N     soak: lineages in the store (100000, quick 10000)
  --rate N         soak: renewals a second (56)
  --only A,B       mesh: only these contenders besides direct: postern, envoy, haproxy; policy: postern, envoy
  --proxy FILE     measure this postern-proxy instead of building one in the profile dist
  --built          build nothing: the binaries in the target directory are those to be measured
  --target-dir D   where to build it (default: the target directory the bench itself lies in)
  --json FILE      write everything measured, every round by itself";

/// What is to be measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Command {
    /// Pairs of proxies under load.
    Mesh,
    /// Pairs of proxies with more and more rules, under load.
    Policy,
    /// One sidecar at rest.
    Size,
    /// Certificates a second.
    Issue,
    /// Memory of the control plane of a large mesh that renews.
    Soak,
    /// Streams of events.
    Streams,
}

/// The command line, read.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) command: Command,
    pub(crate) is_quick: bool,
    pub(crate) rounds: usize,
    pub(crate) length: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) connections: usize,
    pub(crate) lineages: usize,
    pub(crate) rate: usize,
    pub(crate) only: Option<Vec<String>>,
    pub(crate) proxy: Option<PathBuf>,
    pub(crate) is_built: bool,
    pub(crate) target_directory: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut arguments = arguments.iter();
        let command = match arguments.next().map(String::as_str) {
            Some("mesh") => Command::Mesh,
            Some("policy") => Command::Policy,
            Some("size") => Command::Size,
            Some("issue") => Command::Issue,
            Some("soak") => Command::Soak,
            Some("streams") => Command::Streams,
            Some(other) => return Err(format!("there is no bench `{other}`")),
            None => return Err("which bench?".to_owned()),
        };
        let is_quick = arguments.clone().any(|argument| argument == "--quick");
        let mut options = Self::defaults(command, is_quick);
        while let Some(name) = arguments.next() {
            match name.as_str() {
                "--quick" => continue,
                "--built" => {
                    options.is_built = true;
                    continue;
                }
                _ => {}
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value, or is unknown"))?;
            match name.as_str() {
                "--rounds" => options.rounds = positive(name, value)?,
                "--seconds" => options.length = Duration::from_secs(positive(name, value)? as u64),
                "--connections" => options.connections = positive(name, value)?,
                "--lineages" => options.lineages = positive(name, value)?,
                "--rate" => options.rate = positive(name, value)?,
                "--only" => options.only = Some(value.split(',').map(str::to_owned).collect()),
                "--proxy" => options.proxy = Some(value.into()),
                "--target-dir" => options.target_directory = Some(value.into()),
                "--json" => options.json = Some(value.into()),
                _ => return Err(format!("unknown option {name}")),
            }
        }
        Ok(options)
    }

    fn defaults(command: Command, is_quick: bool) -> Self {
        let rounds = match (command, is_quick) {
            (Command::Mesh | Command::Policy | Command::Issue | Command::Streams, false) => 5,
            (Command::Soak, _) => 1,
            (Command::Size, false) => 10,
            (_, true) => 3,
        };
        Self {
            command,
            is_quick,
            rounds,
            length: Duration::from_secs(match (command, is_quick) {
                (Command::Soak, false) => 600,
                (Command::Soak, true) => 60,
                (_, false) => 5,
                (_, true) => 2,
            }),
            warm_up: Duration::from_secs(1),
            connections: match command {
                Command::Size => 1_000,
                Command::Streams => 100,
                _ => 32,
            },
            lineages: if is_quick { 10_000 } else { 100_000 },
            rate: 56,
            only: None,
            proxy: None,
            is_built: false,
            target_directory: None,
            json: None,
        }
    }

    /// Whether a contender takes part.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|wanted| wanted == name))
    }
}

fn positive(name: &str, value: &str) -> Result<usize, Failure> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{name} {value}: a whole number above 0 is needed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Failure> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn quick_is_a_default_and_not_an_order() {
        let options = parse("mesh --rounds 7 --quick --json x.json").unwrap();
        assert_eq!((options.rounds, options.length), (7, Duration::from_secs(2)));
        assert_eq!(options.json.as_deref(), Some(std::path::Path::new("x.json")));
        assert_eq!(parse("mesh").unwrap().rounds, 5);
        assert_eq!(parse("size").unwrap().connections, 1_000);
        assert_eq!(parse("policy").unwrap().connections, 32);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("", "which"),
            ("fast", "fast"),
            ("mesh --rounds 0", "0"),
            ("mesh --rounds", "--rounds"),
            ("mesh --fast 1", "--fast"),
        ] {
            let failure = parse(line).unwrap_err();
            assert!(failure.contains(word), "{line}: {failure}");
        }
    }

    #[test]
    fn contenders_can_be_chosen() {
        assert!(parse("mesh").unwrap().wants("envoy"));
        let options = parse("mesh --only postern,haproxy").unwrap();
        assert!(options.wants("haproxy") && !options.wants("envoy"));
    }
}
