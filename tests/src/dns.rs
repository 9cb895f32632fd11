//! A name server for one test: names mean what the test says, at once.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use parking_lot::Mutex;

const A: u16 = 1;
const AAAA: u16 = 28;

type Names = HashMap<String, Vec<IpAddr>>;

/// A running name server; it ends with its process.
#[derive(Debug)]
pub struct Dns {
    names: Arc<Mutex<Names>>,
}

impl Dns {
    /// The address of the name server that this machine's programs ask, if they ask one.
    pub fn of_this_machine() -> Option<IpAddr> {
        let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
        text.lines().find_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
    }

    /// Answers at `address`, port 53.
    pub fn start(address: IpAddr) -> Self {
        let socket = UdpSocket::bind((address, 53)).expect("the namespace's port 53 is free");
        let names: Arc<Mutex<Names>> = Arc::default();
        let known = Arc::clone(&names);
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((count, peer)) = socket.recv_from(&mut question) {
                if let Some(answer) = answer(&question[..count], &known.lock()) {
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        Self { names }
    }

    /// From now on `name` has these addresses.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        let parsed = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        self.names.lock().insert(name.to_owned(), parsed);
    }
}

/// The answer to a question (RFC 1035, 4.1).
fn answer(question: &[u8], names: &Names) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*question.get(at)?, *question.get(at + 1)?]);
    let known = names.get(&labels.join("."));
    let wanted = |address: &&IpAddr| kind == if address.is_ipv4() { A } else { AAAA };
    let records: Vec<&IpAddr> = known.into_iter().flatten().filter(wanted).collect();
    let count = u8::try_from(records.len()).ok()?;
    // A response to a recursive query; 3 says that there is no such name.
    let code = if known.is_some() { 0x80 } else { 0x83 };
    let mut out = question.get(..2)?.to_vec();
    out.extend([0x81, code, 0, 1, 0, count, 0, 0, 0, 0]);
    out.extend(question.get(12..at + 4)?);
    for address in records {
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        // The name of the question, its kind, class IN, good for no time.
        out.extend([0xc0, 0x0c, 0, u8::try_from(kind).ok()?, 0, 1, 0, 0, 0, 0, 0]);
        out.push(u8::try_from(bytes.len()).ok()?);
        out.extend(bytes);
    }
    Some(out)
}
