//! Bytes on sockets, for what no decent client would send, and for pages that need no client.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connects, with deadlines on everything that follows.
pub fn connect(address: impl Into<SocketAddr>) -> TcpStream {
    let address = address.into();
    let stream = TcpStream::connect_timeout(&address, PATIENCE)
        .unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a positive time is accepted");
    stream.set_write_timeout(Some(PATIENCE)).expect("a positive time is accepted");
    stream.set_nodelay(true).expect("TCP knows nodelay");
    stream
}

/// The same from an address of loopback that is not everybody's.
pub fn connect_from(own: IpAddr, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("sockets can be made");
    socket.bind(&SocketAddr::new(own, 0).into()).expect("all of 127.0.0.0/8 is loopback");
    socket.connect(&address.into()).unwrap_or_else(|error| panic!("{address} from {own}: {error}"));
    socket.into()
}

/// Sends `bytes` and reads until the other side closes or resets.
pub fn exchange(address: impl Into<SocketAddr>, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    // Refused early, the rest of the bytes may find no reader.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// The status of the first HTTP/1 response in `answer`; 0 if there is none.
pub fn status(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(&answer[..answer.len().min(64)]).into_owned();
    let is_http = text.starts_with("HTTP/1.");
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).filter(|_| is_http).unwrap_or(0)
}

/// Reads from `stream` up to and with the end of an HTTP/1 head.
pub fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            other => panic!("no whole head ({other:?}): {:?}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// `GET` of a health or admin page by HTTP/1.0; `None` if nobody answers there.
pub fn page(address: (IpAddr, u16), path: &str) -> Option<(u16, String)> {
    let stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    ask(stream, &format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", address.0))
}

/// A request to a unix socket; `None` if nobody answers there.
pub fn socket_page(socket: &Path, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let length = body.len();
    ask(
        stream,
        &format!("{method} {path} HTTP/1.0\r\nHost: postern\r\nContent-Length: {length}\r\n\r\n{body}"),
    )
}

fn ask(mut stream: impl Read + Write, request: &str) -> Option<(u16, String)> {
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((status(head.as_bytes()), body.to_owned()))
}
