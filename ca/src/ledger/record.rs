//! One record: what happened, as numbered fields in their one order, so that equal records have equal bytes.

use std::time::SystemTime;

/// The longest record. A certificate takes half a KiB, an id at most two.
pub const MAX_BODY: usize = 64 * 1024;
/// The format's version, the first byte of every record.
const VERSION: u8 = 1;
/// Version, sequence, time, kind.
const HEAD: usize = 1 + 8 + 8 + 1;
/// The end of the year 9999, beyond which no time can be written as text.
const LAST_MS: u64 = 253_402_300_799_999;

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// The ledger began.
    Begin = 0,
    /// A root was made.
    Root = 1,
    /// An issuing CA was made.
    Issuing = 2,
    /// A CA is in another state.
    State = 3,
    /// A leaf was issued; if by a join token, that is spent.
    Certificate = 4,
    /// A join token was made.
    Token = 5,
    /// A fork of a lineage was found.
    Fork = 6,
    /// A CA is on the taint list from now on.
    Taint = 7,
    /// An entry is on the deny list from now on.
    Deny = 8,
    /// An entry is off the deny list.
    Allow = 9,
    /// A key for JWT-SVIDs was made, or is in another state.
    JwtKey = 10,
    /// A JWT-SVID was issued.
    Jwt = 11,
    /// The bundle of another trust domain came, changed or was taken out.
    Federation = 12,
    /// A tier was requested, or signed.
    Tier = 13,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Begin,
        Self::Root,
        Self::Issuing,
        Self::State,
        Self::Certificate,
        Self::Token,
        Self::Fork,
        Self::Taint,
        Self::Deny,
        Self::Allow,
        Self::JwtKey,
        Self::Jwt,
        Self::Federation,
        Self::Tier,
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Root => "root",
            Self::Issuing => "issuing",
            Self::State => "state",
            Self::Certificate => "certificate",
            Self::Token => "token",
            Self::Fork => "fork",
            Self::Taint => "taint",
            Self::Deny => "deny",
            Self::Allow => "allow",
            Self::JwtKey => "jwt_key",
            Self::Jwt => "jwt",
            Self::Federation => "federation",
            Self::Tier => "tier",
        }
    }

    /// The kind of this word.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A field's number is its place in the order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the table's below")]
pub enum Field {
    TrustDomain = 1,
    Ledger = 2,
    Id = 3,
    Serial = 4,
    Lineage = 5,
    Proof = 6,
    Token = 7,
    Predecessor = 8,
    Label = 9,
    State = 10,
    Reason = 11,
    Issuer = 12,
    Key = 13,
    NotBefore = 14,
    NotAfter = 15,
    Certificate = 16,
    Imported = 17,
    PreviousLedger = 18,
    PreviousSize = 19,
    PreviousChain = 20,
    Registration = 21,
    Facts = 22,
    Audience = 23,
    Sequence = 24,
    Adopted = 25,
}

#[derive(Clone, Copy)]
enum Type {
    Text,
    Bytes,
    Number,
    Time,
}

/// Number, name and type of each field, in order.
const FIELDS: [(Field, &str, Type); 25] = [
    (Field::TrustDomain, "trustDomain", Type::Text),
    (Field::Ledger, "ledger", Type::Bytes),
    (Field::Id, "id", Type::Text),
    (Field::Serial, "serial", Type::Bytes),
    (Field::Lineage, "lineage", Type::Bytes),
    (Field::Proof, "proof", Type::Text),
    (Field::Token, "token", Type::Bytes),
    (Field::Predecessor, "predecessor", Type::Bytes),
    (Field::Label, "label", Type::Text),
    (Field::State, "state", Type::Text),
    (Field::Reason, "reason", Type::Text),
    (Field::Issuer, "issuer", Type::Bytes),
    (Field::Key, "key", Type::Bytes),
    (Field::NotBefore, "notBefore", Type::Time),
    (Field::NotAfter, "notAfter", Type::Time),
    (Field::Certificate, "certificate", Type::Bytes),
    (Field::Imported, "imported", Type::Time),
    (Field::PreviousLedger, "previousLedger", Type::Bytes),
    (Field::PreviousSize, "previousSize", Type::Number),
    (Field::PreviousChain, "previousChain", Type::Bytes),
    (Field::Registration, "registration", Type::Text),
    (Field::Facts, "facts", Type::Text),
    (Field::Audience, "audience", Type::Text),
    (Field::Sequence, "bundleSequence", Type::Number),
    (Field::Adopted, "adoptedFrom", Type::Bytes),
];

/// A field's content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Value<'a> {
    /// Printable ASCII.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A number.
    Number(u64),
    /// Milliseconds since 1970, at most the year 9999.
    Time(u64),
}

/// A record that has no place in the ledger yet.
#[derive(Clone, Debug)]
pub struct Draft {
    kind: Kind,
    fields: Vec<(Field, Vec<u8>)>,
}

impl Draft {
    /// One without fields.
    pub fn new(kind: Kind) -> Self {
        Self { kind, fields: Vec::with_capacity(12) }
    }

    /// Adds a text.
    #[must_use]
    pub fn text(self, field: Field, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(mut self, field: Field, bytes: &[u8]) -> Self {
        self.fields.push((field, bytes.to_vec()));
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(self, field: Field, number: u64) -> Self {
        self.bytes(field, &number.to_be_bytes())
    }

    /// Adds a time.
    #[must_use]
    pub fn time(self, field: Field, at: SystemTime) -> Self {
        self.number(field, ms(at))
    }

    /// Its bytes at this place.
    pub fn encode(mut self, sequence: u64, time_ms: u64) -> Vec<u8> {
        self.fields.sort_by_key(|(field, _)| *field);
        let mut body = Vec::with_capacity(1_024);
        body.push(VERSION);
        body.extend(sequence.to_be_bytes());
        body.extend(time_ms.min(LAST_MS).to_be_bytes());
        body.push(self.kind as u8);
        for (field, bytes) in &self.fields {
            body.push(*field as u8);
            body.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            body.extend(bytes);
        }
        body
    }
}

/// Milliseconds since 1970, as records hold them.
pub(crate) fn ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(LAST_MS).min(LAST_MS)
}

/// A record as it was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Its number; the first is 0.
    pub sequence: u64,
    /// When it was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// What happened.
    pub kind: Kind,
    fields: Vec<(Field, Vec<u8>)>,
}

impl Record {
    /// Reads a record's bytes. Whatever is accepted has this one encoding.
    pub fn decode(body: &[u8]) -> Result<Self, &'static str> {
        let Some((head, mut rest)) = body.split_at_checked(HEAD) else {
            return Err("it is too short to be a record");
        };
        if head[0] != VERSION {
            return Err("its version is not known here");
        }
        let number = |at: usize| {
            let bytes = head[at..at + 8].try_into().unwrap_or_default();
            u64::from_be_bytes(bytes)
        };
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == head[HEAD - 1]);
        let kind = kind.ok_or("its kind is not known here")?;
        let time_ms = number(9);
        if time_ms > LAST_MS {
            return Err("its time is no time");
        }
        let mut fields: Vec<(Field, Vec<u8>)> = Vec::new();
        while let [tag, a, b, c, d, after @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            let content = usize::try_from(length).ok().and_then(|length| after.split_at_checked(length));
            let (content, after) = content.ok_or("a field is longer than the record")?;
            let known = FIELDS.get(usize::from(*tag).wrapping_sub(1)).ok_or("a field is not known here")?;
            if fields.last().is_some_and(|(last, _)| *last >= known.0) {
                return Err("its fields are not in their order");
            }
            if value(known.2, content).is_none() {
                return Err("a field's content is not of its type");
            }
            fields.push((known.0, content.to_vec()));
            rest = after;
        }
        if rest.is_empty() {
            Ok(Self { sequence: number(1), time_ms, kind, fields })
        } else {
            Err("a field is cut off")
        }
    }

    /// A field's content.
    pub fn field(&self, field: Field) -> Option<Value<'_>> {
        self.fields().find(|(found, ..)| *found == field).map(|(_, _, value)| value)
    }

    /// A text.
    pub fn text(&self, field: Field) -> Option<&str> {
        match self.field(field) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Bytes.
    pub fn bytes(&self, field: Field) -> Option<&[u8]> {
        match self.field(field) {
            Some(Value::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// A number, or a time in milliseconds.
    pub fn number(&self, field: Field) -> Option<u64> {
        match self.field(field) {
            Some(Value::Number(number) | Value::Time(number)) => Some(number),
            _ => None,
        }
    }

    /// All fields: which, its name, its content.
    pub fn fields(&self) -> impl Iterator<Item = (Field, &'static str, Value<'_>)> {
        self.fields.iter().filter_map(|(field, bytes)| {
            let (_, name, kind) = FIELDS[*field as usize - 1];
            value(kind, bytes).map(|value| (*field, name, value))
        })
    }
}

fn value(kind: Type, bytes: &[u8]) -> Option<Value<'_>> {
    let number = || bytes.try_into().ok().map(u64::from_be_bytes);
    match kind {
        // Printed as it is: nothing may steer a terminal or begin a line of its own.
        Type::Text => {
            let text = std::str::from_utf8(bytes).ok()?;
            text.bytes().all(|byte| (b' '..=b'~').contains(&byte)).then_some(Value::Text(text))
        }
        Type::Bytes => Some(Value::Bytes(bytes)),
        Type::Number => number().map(Value::Number),
        Type::Time => number().filter(|ms| *ms <= LAST_MS).map(Value::Time),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_table_is_in_order() {
        assert!(FIELDS.iter().enumerate().all(|(at, (field, ..))| *field as usize == at + 1));
        assert!(Kind::ALL.iter().enumerate().all(|(at, kind)| *kind as usize == at));
        assert!(Kind::ALL.iter().all(|kind| Kind::parse(kind.name()) == Some(*kind)));
    }

    #[test]
    fn a_record_comes_back() {
        let draft =
            Draft::new(Kind::Certificate).bytes(Field::Serial, &[1, 2]).text(Field::Id, "spiffe://td/a");
        let body = draft.encode(7, 1_000);
        let record = Record::decode(&body).unwrap();
        assert_eq!((record.sequence, record.time_ms, record.kind), (7, 1_000, Kind::Certificate));
        assert_eq!(record.text(Field::Id), Some("spiffe://td/a"));
        assert_eq!(record.bytes(Field::Serial), Some(&[1, 2][..]));
        assert_eq!(record.field(Field::Key), None);
        let names: Vec<_> = record.fields().map(|(_, name, _)| name).collect();
        assert_eq!(names, ["id", "serial"], "in order, however they were added");
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        let good = |field, bytes: &[u8]| Draft::new(Kind::Token).bytes(field, bytes).encode(0, 0);
        assert!(Record::decode(&good(Field::NotAfter, &[0; 8])).is_ok());
        for bad in [
            good(Field::NotAfter, &[0; 7]),
            good(Field::NotAfter, &[0xff; 8]),
            good(Field::Id, b"spiffe://td/\x1b[2J"),
            good(Field::Id, "spiffe://td/ü".as_bytes()),
            good(Field::Id, &[0xff]),
            Draft::new(Kind::Token).text(Field::Id, "a").text(Field::Id, "a").encode(0, 0),
            Draft::new(Kind::Token).encode(0, 0)[..HEAD - 1].to_vec(),
            Vec::new(),
        ] {
            assert!(Record::decode(&bad).is_err(), "{bad:?}");
        }
        let mut body = good(Field::Id, b"a");
        for (at, byte) in [(0, 2), (HEAD - 1, 99), (9, 0xff), (HEAD, 0), (HEAD, 99), (HEAD + 1, 1)] {
            let mut bad = body.clone();
            bad[at] = byte;
            assert!(Record::decode(&bad).is_err(), "{at}");
        }
        body.push(3);
        assert!(Record::decode(&body).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_read_has_one_encoding(
            fields in prop::collection::vec((1_u8..26, prop::collection::vec(any::<u8>(), 0..12)), 0..6),
        ) {
            let mut body = Draft::new(Kind::Token).encode(3, 4);
            for (tag, content) in &fields {
                body.push(*tag);
                body.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
                body.extend(content);
            }
            if let Ok(record) = Record::decode(&body) {
                let mut draft = Draft::new(record.kind);
                for (field, bytes) in &record.fields {
                    draft = draft.bytes(*field, bytes);
                }
                prop_assert_eq!(draft.encode(record.sequence, record.time_ms), body);
            }
        }
    }
}
