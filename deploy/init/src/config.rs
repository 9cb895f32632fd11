//! Settings, from the command line and from a file: text that becomes numbers and addresses here, or ends the run. Nothing
//! else of it reaches the rules.

use std::fmt::Display;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::Failure;
use crate::ports::{self, PortRange};
use crate::rules::QUESTIONS;

/// How the sidecar's own connections are told from the workload's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exclusion {
    Uid(u32),
    Mark(u32),
}

/// All settings.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) exclusion: Exclusion,
    pub(crate) inbound_port: u16,
    pub(crate) outbound_port: u16,
    pub(crate) health_port: u16,
    pub(crate) skip_inbound: Vec<PortRange>,
    pub(crate) skip_outbound: Vec<PortRange>,
    pub(crate) skip_networks: Vec<IpNet>,
    pub(crate) udp_inbound: Vec<PortRange>,
    pub(crate) udp_outbound: Vec<PortRange>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) allow_ping: bool,
    pub(crate) lock: bool,
    pub(crate) nft: String,
    pub(crate) probe: bool,
}

/// What is written, before it is understood. A list may be given more than once; it adds up.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Written {
    exclude_uid: Option<u32>,
    exclude_mark: Option<u32>,
    inbound_port: Option<u16>,
    outbound_port: Option<u16>,
    health_port: Option<u16>,
    skip_inbound: Vec<Port>,
    skip_outbound: Vec<Port>,
    skip_networks: Vec<String>,
    udp_inbound: Vec<Port>,
    udp_outbound: Vec<Port>,
    dns_servers: Vec<String>,
    resolv_conf: Option<String>,
    allow_ping: Option<bool>,
    lock: Option<bool>,
    nft: Option<String>,
    #[serde(skip)]
    probe: bool,
}

/// A file may write a port as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Text(String),
}

impl Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// A file of settings, or of resolvers, larger than this is none.
const MAX_FILE: u64 = 64 << 10;
/// More of a kind than this is a mistake.
const MAX_LIST: usize = 1_024;

impl Config {
    /// Reads the words after the command.
    pub(crate) fn of(words: &[String]) -> Result<Self, Failure> {
        let mut written = Written::default();
        // The file is the ground that options stand on, wherever it is named.
        let mut at = words.iter();
        let mut named = false;
        while let Some(word) = at.next() {
            if word == "--config" {
                if named {
                    return Err(Failure::Usage("--config stands here twice".to_owned()));
                }
                named = true;
                written = read(at.next().ok_or_else(|| no_value(word))?)?;
            }
        }
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if !written.take_switch(word) {
                let value = words.next().ok_or_else(|| no_value(word))?;
                written.take(word, value)?;
            }
        }
        written.checked()
    }
}

fn no_value(word: &str) -> Failure {
    Failure::Usage(format!("{word} is no option, or its value is missing (postern-init --help lists them)"))
}

fn read(path: &str) -> Result<Written, Failure> {
    let text = text(Path::new(path)).map_err(|error| Failure::Usage(format!("--config {path}: {error}")))?;
    serde_saphyr::from_str(&text).map_err(|error| Failure::Usage(format!("--config {path}: {error}")))
}

fn text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("larger than {} KiB", MAX_FILE >> 10)));
    }
    Ok(text)
}

impl Written {
    fn take_switch(&mut self, word: &str) -> bool {
        match word {
            "--allow-ping" => self.allow_ping = Some(true),
            "--no-lock" => self.lock = Some(false),
            "--probe" => self.probe = true,
            _ => return false,
        }
        true
    }

    fn take(&mut self, word: &str, value: &str) -> Result<(), Failure> {
        let wrong = |error: String| Failure::Usage(format!("{word}: {error}"));
        let port = |value: &str| {
            let port = ports::port(value);
            port.ok_or_else(|| wrong(format!("{value:?} is no port from 1 to 65535"))).map(Some)
        };
        let number = |value: &str| number(value).map_err(wrong).map(Some);
        let list = || value.split(',').map(str::to_owned);
        match word {
            "--config" => {}
            "--exclude-uid" => self.exclude_uid = number(value)?,
            "--exclude-mark" => self.exclude_mark = number(value)?,
            "--inbound-port" => self.inbound_port = port(value)?,
            "--outbound-port" => self.outbound_port = port(value)?,
            "--health-port" => self.health_port = port(value)?,
            "--skip-inbound" => self.skip_inbound.extend(list().map(Port::Text)),
            "--skip-outbound" => self.skip_outbound.extend(list().map(Port::Text)),
            "--skip-networks" => self.skip_networks.extend(list()),
            "--udp-inbound" => self.udp_inbound.extend(list().map(Port::Text)),
            "--udp-outbound" => self.udp_outbound.extend(list().map(Port::Text)),
            "--dns-server" => self.dns_servers.extend(list()),
            "--resolv-conf" => self.resolv_conf = Some(value.to_owned()),
            "--nft" => self.nft = Some(value.to_owned()),
            _ => return Err(no_value(word)),
        }
        Ok(())
    }

    fn checked(self) -> Result<Config, Failure> {
        let exclusion = match (self.exclude_uid, self.exclude_mark) {
            (Some(_), Some(_)) => {
                return Err(Failure::Usage(
                    "a user and a mark are both excluded: the sidecar is told apart by one of them"
                        .to_owned(),
                ));
            }
            (_, Some(0)) => {
                return Err(Failure::Usage(
                    "excludeMark: 0 is what every connection without a mark bears".to_owned(),
                ));
            }
            (_, Some(mark)) => Exclusion::Mark(mark),
            // Whoever may become root may write rules, so root as the exception would be none for the workload.
            (Some(0), _) => {
                return Err(Failure::Usage(
                    "excludeUid: 0 is root: give the sidecar a user of its own".to_owned(),
                ));
            }
            (uid, None) => Exclusion::Uid(uid.unwrap_or(24_140)),
        };
        let config = Config {
            exclusion,
            inbound_port: self.inbound_port.unwrap_or(24_143),
            outbound_port: self.outbound_port.unwrap_or(24_140),
            health_port: self.health_port.unwrap_or(24_191),
            skip_inbound: ranges("skipInbound", &self.skip_inbound)?,
            skip_outbound: ranges("skipOutbound", &self.skip_outbound)?,
            skip_networks: networks(&self.skip_networks)?,
            udp_inbound: ranges("udpInbound", &self.udp_inbound)?,
            udp_outbound: ranges("udpOutbound", &self.udp_outbound)?,
            dns: dns(&self.dns_servers, self.resolv_conf.as_deref())?,
            allow_ping: self.allow_ping.unwrap_or(false),
            lock: self.lock.unwrap_or(true),
            nft: self.nft.unwrap_or_else(|| "nft".to_owned()),
            probe: self.probe,
        };
        config.own_ports()?;
        Ok(config)
    }
}

impl Config {
    fn own_ports(&self) -> Result<(), Failure> {
        let own = [
            ("inboundPort", self.inbound_port),
            ("outboundPort", self.outbound_port),
            ("healthPort", self.health_port),
        ];
        for (at, (name, port)) in own.iter().enumerate() {
            if *port == 0 {
                return Err(Failure::Usage(format!("{name}: 0 is no port")));
            }
            if own[..at].iter().any(|(_, other)| other == port) || QUESTIONS.contains(port) {
                return Err(Failure::Usage(format!("{name}: {port} is taken by another of the sidecar's")));
            }
        }
        let skipped = |port: u16| self.skip_outbound.iter().any(|range| range.contains(port));
        if let Some(port) = QUESTIONS.into_iter().find(|port| skipped(*port)) {
            return Err(Failure::Usage(format!(
                "skipOutbound: by port {port} the sidecar sees that redirection works: leave it out"
            )));
        }
        Ok(())
    }
}

fn most<T>(what: &str, list: &[T]) -> Result<(), Failure> {
    if list.len() > MAX_LIST {
        return Err(Failure::Usage(format!("{what}: at most {MAX_LIST} are taken")));
    }
    Ok(())
}

fn ranges(what: &str, list: &[Port]) -> Result<Vec<PortRange>, Failure> {
    most(what, list)?;
    let parsed = list.iter().map(|text| text.to_string().parse::<PortRange>());
    let parsed: Result<Vec<_>, _> = parsed.collect();
    parsed.map(PortRange::joined).map_err(|error| Failure::Usage(format!("{what}: {error}")))
}

fn networks(list: &[String]) -> Result<Vec<IpNet>, Failure> {
    most("skipNetworks", list)?;
    let mut out = Vec::new();
    for text in list {
        let wrong = |why: &str| Failure::Usage(format!("skipNetworks: {text:?} {why}"));
        let net = IpNet::from_str(text)
            .or_else(|_| IpAddr::from_str(text).map(IpNet::from))
            .map_err(|_| wrong("is no network such as 10.9.0.0/16 or fd09::/48"))?;
        if net.trunc() != net {
            return Err(wrong(&format!("has bits beyond its length: write {}", net.trunc())));
        }
        if net.prefix_len() == 0 {
            return Err(wrong("is everything: then nothing would be redirected"));
        }
        out.push(net);
    }
    // Neighbours and what lies within another: the kernel's sets of networks must not overlap.
    Ok(IpNet::aggregate(&out))
}

/// The servers that are named, or those of the resolver's file.
fn dns(named: &[String], file: Option<&str>) -> Result<Vec<IpAddr>, Failure> {
    most("dnsServers", named)?;
    let mut out = Vec::new();
    if named.is_empty() {
        let path = file.unwrap_or("/etc/resolv.conf");
        let text = match text(Path::new(path)) {
            Ok(text) => text,
            // Without one nothing is looked up, unless somebody said that there is one.
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Failure::Usage(format!("resolvConf: {path}: {error}"))),
        };
        out.extend(text.lines().filter_map(nameserver));
    }
    for text in named {
        let wrong = |_| Failure::Usage(format!("dnsServers: {text:?} is no address"));
        out.push(text.parse().map_err(wrong)?);
    }
    let mut out: Vec<IpAddr> = out.into_iter().map(|address| address.to_canonical()).collect();
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// `nameserver ADDRESS`, as resolv.conf(5) has it. A zone goes: the rules know addresses.
fn nameserver(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some("nameserver") {
        return None;
    }
    words.next()?.split('%').next()?.parse().ok()
}

/// Decimal, or hexadecimal after `0x`.
fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    parsed.ok_or_else(|| format!("{text:?} is no number from 0 to 4294967295"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Config, String> {
        let mut all = vec!["--dns-server".to_owned(), "10.0.0.53".to_owned()];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        Config::of(&all).map_err(|failure| {
            assert!(matches!(failure, Failure::Usage(_)), "{failure}");
            failure.to_string()
        })
    }

    #[test]
    fn a_file_and_options_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("init.yaml");
        let text = "excludeMark: 0x706f\nskipInbound: [9100, \"9200-9299\"]\nskipNetworks: [10.9.0.0/16]\n\
                    dnsServers: [\"fd00::53\"]\nallowPing: true\nhealthPort: 9001\n";
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let config = of(&["--skip-inbound", "80,443", "--health-port", "9002", "--config", path]).unwrap();
        assert_eq!(config.exclusion, Exclusion::Mark(0x706f));
        assert_eq!((config.health_port, config.inbound_port), (9002, 24_143));
        let shown: Vec<String> = config.skip_inbound.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["80", "443", "9100", "9200-9299"]);
        assert_eq!(config.dns, ["10.0.0.53", "fd00::53"].map(|one| one.parse::<IpAddr>().unwrap()));
        assert!(config.allow_ping && config.lock && !config.probe);
        std::fs::write(path, "skipInbund: [80]\n").unwrap();
        let said = of(&["--config", path]).unwrap_err();
        assert!(said.contains("skipInbund") && said.contains("init.yaml"), "{said}");
    }

    #[test]
    fn what_is_no_setting_ends_the_run() {
        for (words, said) in [
            (&["--skip-inbound", "80;flush ruleset"][..], "is no port"),
            (&["--skip-inbound", ""], "is no port"),
            (&["--skip-outbound", "1-65535"], "leave it out"),
            (&["--skip-outbound", "24142"], "leave it out"),
            (&["--skip-networks", "10.0.0.1/8"], "write 10.0.0.0/8"),
            (&["--skip-networks", "0.0.0.0/0"], "everything"),
            (&["--skip-networks", "::/0"], "everything"),
            (&["--skip-networks", "10.0.0.0/8 }"], "is no network"),
            (&["--exclude-uid", "0"], "root"),
            (&["--exclude-uid", "nobody"], "is no number"),
            (&["--exclude-mark", "0"], "without a mark"),
            (&["--exclude-mark", "0x1ffffffff"], "is no number"),
            (&["--exclude-uid", "7", "--exclude-mark", "7"], "both"),
            (&["--inbound-port", "0"], "is no port"),
            (&["--inbound-port", "24140"], "taken"),
            (&["--health-port", "24141"], "taken"),
            (&["--dns-server", "resolver"], "is no address"),
            (&["--resolv-conf"], "value is missing"),
            (&["--frobnicate", "1"], "is no option"),
            (&["--config", "/nonexistent"], "/nonexistent"),
        ] {
            let told = of(words).expect_err(said);
            assert!(told.contains(said), "{words:?}: {told}");
        }
    }

    #[test]
    fn networks_do_not_overlap() {
        let config =
            of(&["--skip-networks", "10.0.0.0/9,10.1.0.0/16,10.128.0.0/9,192.0.2.7,fd00::/8"]).unwrap();
        let shown: Vec<String> = config.skip_networks.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
    }

    #[test]
    fn resolvers_are_read_as_the_system_does() {
        for (line, server) in [
            ("nameserver 10.0.0.53", Some("10.0.0.53")),
            ("nameserver\tfe80::53%eth0  # here", Some("fe80::53")),
            ("nameserver resolver", None),
            ("search example", None),
            ("#nameserver 10.0.0.53", None),
            ("nameserver", None),
        ] {
            assert_eq!(nameserver(line), server.map(|text| text.parse().unwrap()), "{line}");
        }
    }
}
