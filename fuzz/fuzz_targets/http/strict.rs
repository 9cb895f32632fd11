//! HTTP/1 by the book (RFC 9112), and nothing that only some readers take for it. Written anew here, from the whole of the
//! bytes: it shares nothing with what it is held against.

/// A message as a strict reader has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Message {
    /// The three words of its first line.
    pub line: [String; 3],
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, Vec<u8>)>,
    /// Whether it was read to its end.
    pub whole: bool,
}

impl Message {
    /// All values of a field.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        let of_name = self.fields.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        of_name.map(|(_, value)| value.as_slice()).collect()
    }

    /// Whether nobody knows what comes behind it: it may turn the connection into something else.
    pub fn may_switch(&self) -> bool {
        self.line[0] == "CONNECT" || self.all("upgrade").iter().any(|name| !name.eq_ignore_ascii_case(b"h2c"))
    }
}

/// A reader over bytes.
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// No message that everybody reads alike.
#[derive(Debug)]
pub struct Malformed;

type Read<T> = Result<Option<T>, Malformed>;

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// A line without its CRLF; `None` if it has not come whole.
    fn line(&mut self) -> Read<&'a [u8]> {
        let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line = self.rest[..end].strip_suffix(b"\r").ok_or(Malformed)?;
        if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
            return Err(Malformed);
        }
        self.rest = &self.rest[end + 1..];
        Ok(Some(line))
    }

    fn fields(&mut self) -> Read<Vec<(String, Vec<u8>)>> {
        let mut fields = Vec::new();
        loop {
            let Some(line) = self.line()? else { return Ok(None) };
            if line.is_empty() {
                return Ok(Some(fields));
            }
            let colon = line.iter().position(|byte| *byte == b':').ok_or(Malformed)?;
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
                return Err(Malformed);
            }
            if value.iter().any(|byte| *byte == 0x7f || (*byte < b' ' && *byte != b'\t')) {
                return Err(Malformed);
            }
            fields.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
        }
    }

    fn first_line(&mut self) -> Read<[String; 3]> {
        let mut line = self.line()?;
        let mut blank = 0;
        while line.is_some_and(<[u8]>::is_empty) {
            blank += 1;
            if blank > 2 {
                return Err(Malformed);
            }
            line = self.line()?;
        }
        let Some(line) = line else { return Ok(None) };
        let text = std::str::from_utf8(line).map_err(|_| Malformed)?;
        let words: Vec<&str> = text.splitn(3, ' ').collect();
        let [one, two, three] = words.as_slice() else { return Err(Malformed) };
        Ok(Some([one, two, three].map(|word| (*word).to_owned())))
    }

    /// The next request. `None` at the end, or if its head does not end; a body that does not end is not whole.
    pub fn request(&mut self) -> Read<Message> {
        let Some(line) = self.first_line()? else { return Ok(None) };
        let is_version = matches!(line[2].as_str(), "HTTP/1.1" | "HTTP/1.0");
        let is_target =
            !line[1].is_empty() && line[1].bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !is_version || !is_target || line[0].is_empty() || !line[0].bytes().all(is_token) {
            return Err(Malformed);
        }
        let Some(fields) = self.fields()? else { return Ok(None) };
        let mut message = Message { line, fields, ..Message::default() };
        let hosts = message.all("host").len();
        if hosts > 1 || (hosts == 0 && message.line[2] == "HTTP/1.1") {
            return Err(Malformed);
        }
        let (lengths, codings) = (message.all("content-length"), message.all("transfer-encoding"));
        match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => message.whole = true,
            ([length], []) => {
                let length = number(length).ok_or(Malformed)?;
                self.sized(&mut message, length);
            }
            ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && message.line[2] == "HTTP/1.1" => {
                self.chunked(&mut message)?;
            }
            _ => return Err(Malformed),
        }
        Ok(Some(message))
    }

    /// The next answer to a request with `method`. `is_end`: these are all bytes that ever came.
    pub fn answer(&mut self, method: &str) -> Read<Message> {
        let Some(line) = self.first_line()? else { return Ok(None) };
        let status: u16 = line[1].parse().map_err(|_| Malformed)?;
        if !line[0].starts_with("HTTP/1.") || !(100..1_000).contains(&status) {
            return Err(Malformed);
        }
        let Some(fields) = self.fields()? else { return Ok(None) };
        let mut message = Message { line, fields, ..Message::default() };
        let (lengths, codings) = (message.all("content-length"), message.all("transfer-encoding"));
        if method == "HEAD" || status < 200 || matches!(status, 204 | 304) {
            message.whole = true;
            return Ok(Some(message));
        }
        match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => {
                message.body = std::mem::take(&mut self.rest).to_vec();
                message.whole = true;
            }
            ([length], []) => {
                let length = number(length).ok_or(Malformed)?;
                self.sized(&mut message, length);
            }
            ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => self.chunked(&mut message)?,
            _ => return Err(Malformed),
        }
        Ok(Some(message))
    }

    fn sized(&mut self, message: &mut Message, length: u64) {
        let count = usize::try_from(length).unwrap_or(usize::MAX).min(self.rest.len());
        message.body = self.rest[..count].to_vec();
        message.whole = count as u64 == length;
        self.rest = &self.rest[count..];
    }

    /// What a malformed chunk has in front of it stays a part of the message, which is not whole.
    fn chunked(&mut self, message: &mut Message) -> Result<(), Malformed> {
        loop {
            let Ok(line) = self.line() else { return self.broken() };
            let Some(line) = line else { return Ok(()) };
            let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            let size =
                std::str::from_utf8(&line[..digits]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
            let is_plain = line.len() == digits || line[digits] == b';';
            let Some(size) = size.filter(|_| is_plain) else { return self.broken() };
            if size == 0 {
                break;
            }
            let count = usize::try_from(size).unwrap_or(usize::MAX).min(self.rest.len());
            message.body.extend_from_slice(&self.rest[..count]);
            self.rest = &self.rest[count..];
            if (count as u64) < size || self.rest.len() < 2 {
                self.rest = &[];
                return Ok(());
            }
            if !self.rest.starts_with(b"\r\n") {
                return self.broken();
            }
            self.rest = &self.rest[2..];
        }
        match self.fields() {
            Ok(Some(trailers)) => {
                message.trailers = trailers;
                message.whole = true;
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(Malformed) => self.broken(),
        }
    }

    fn broken(&mut self) -> Result<(), Malformed> {
        self.rest = &[];
        Ok(())
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.len() <= 18 && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
