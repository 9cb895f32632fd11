//! `postern-init` writes the rules that lead a workload's connections through its sidecar, and leaves. It needs
//! CAP_NET_ADMIN in the workload's network namespace and nothing else; it does not have to be root.
//!
//! It hands one script to `nft`, the distribution's own program: all of it takes effect at one moment, or nothing does. Its
//! kernel interface has no well-kept small crate, and the program is there wherever people look at rules.

mod config;
mod nft;
mod ports;
mod probe;
mod rules;

use std::fmt;
use std::process::ExitCode;

use config::Config;

const USAGE: &str = "\
Writes the rules that lead a workload's connections through its sidecar (nftables, table inet postern).

Usage: postern-init apply  [--probe] [options]
       postern-init check  [options]
       postern-init remove [--nft PATH]
       postern-init show   [options]
       postern-init --version

apply writes them, in place of what there was, and compares. check compares: exit 0 if the table is as the options say, 1
with what differs if not. remove takes them away. show prints what apply hands to nft.

Options, each with what it is without it:
  --config FILE              the same settings from a file; options add to it
  --exclude-uid UID          whose connections are not redirected: the sidecar's user (24140)
  --exclude-mark MARK        instead: connections with this mark (capture.mark of sidecar.yaml)
  --inbound-port PORT        the sidecar's mesh listener (24143)
  --outbound-port PORT       the sidecar's outbound listener (24140)
  --health-port PORT         the sidecar's health listener (24191)
  --skip-inbound PORTS       ports that are reached without the sidecar, such as 9100,9200-9299
  --skip-outbound PORTS      ports that the workload calls without it
  --skip-networks NETS       networks that the workload calls without it, such as 10.9.0.0/16,fd09::/48
  --udp-inbound PORTS        UDP ports of the workload's that are reached
  --udp-outbound PORTS       UDP ports that the workload may send to
  --dns-server ADDRESSES     where DNS goes, UDP and TCP 53 (the servers in the file of --resolv-conf)
  --resolv-conf FILE         (/etc/resolv.conf)
  --allow-ping               the workload may send ICMP echo requests
  --no-lock                  what escapes redirection is not refused
  --nft PATH                 (nft)
  --probe                    apply: then make a connection that has to come redirected, on IPv4 and IPv6

Exit codes: 0 done, 1 it failed or something differs, 2 the command line or a setting is wrong.
";

/// What ends a run.
#[derive(Debug)]
enum Failure {
    /// A setting is wrong: exit code 2.
    Usage(String),
    /// The machine did not let it, or something differs: exit code 1.
    Run(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Run(text) => f.write_str(text),
        }
    }
}

/// Runs with the words of a command line, without the program's own name.
pub fn main(words: &[String]) -> ExitCode {
    match run(words) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("postern-init: {failure}");
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn run(words: &[String]) -> Result<String, Failure> {
    let (verb, rest) = words.split_first().ok_or_else(|| Failure::Usage(format!("no command\n\n{USAGE}")))?;
    match verb.as_str() {
        "apply" => apply(&Config::of(rest)?),
        "check" => check(&Config::of(rest)?),
        "remove" => {
            let config = Config::of(rest)?;
            nft::load(&config.nft, &rules::removal(rules::TABLE))?;
            Ok(format!("table inet {} is gone\n", rules::TABLE))
        }
        "show" => Ok(rules::script(&Config::of(rest)?)),
        "--version" | "-V" => Ok(format!("postern-init {}\n", env!("CARGO_PKG_VERSION"))),
        "--help" | "-h" | "help" => Ok(USAGE.to_owned()),
        other => Err(Failure::Usage(format!("{other:?} is no command\n\n{USAGE}"))),
    }
}

fn apply(config: &Config) -> Result<String, Failure> {
    nft::load(&config.nft, &rules::script(config))?;
    let mut said = check(config)?;
    if config.probe {
        said.push_str(&probe::both_families(config)?);
    }
    Ok(said)
}

fn check(config: &Config) -> Result<String, Failure> {
    let differences = nft::differences(config)?;
    if differences.is_empty() {
        return Ok(format!("table inet {} is as it should be\n", rules::TABLE));
    }
    let lines: Vec<String> = differences.iter().map(|line| format!("\n  {line}")).collect();
    Err(Failure::Run(format!(
        "table inet {} is not as it should be (- is missing, + is too much); `postern-init apply` writes it anew:{}",
        rules::TABLE,
        lines.concat()
    )))
}
