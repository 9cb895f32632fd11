//! A segment: a header, then records, each after its length and before the chain's hash.

use std::io::{self, Read, Seek, SeekFrom};

use super::record::{MAX_BODY, Record};
use super::{Hash, HeadKey, chain};

const MAGIC: &[u8; 8] = b"POSTLDG\x01";
/// Bytes of a header.
pub(super) const HEADER: usize = 8 + 16 + 32 + 8 + 32;
/// Bytes of a record beside its body: length and hash.
pub(super) const FRAME: u64 = 4 + 32;

/// What a segment begins with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// The ledger's.
    pub id: [u8; 16],
    /// The public key of its heads.
    pub key: HeadKey,
    /// The first record's number.
    pub first: u64,
    /// The chain's hash before it.
    pub previous: Hash,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { id, key, first, previous } = self;
        [MAGIC, &id[..], &key.0, &first.to_be_bytes(), previous].concat()
    }

    fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (key, rest) = rest.split_first_chunk()?;
        let (first, rest) = rest.split_first_chunk()?;
        let first = u64::from_be_bytes(*first);
        (magic == MAGIC).then_some(Self {
            id: *id,
            key: HeadKey(*key),
            first,
            previous: rest.try_into().ok()?,
        })
    }
}

/// A record with its bytes as they are.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) record: Record,
    pub(super) body: Vec<u8>,
    pub(super) hash: Hash,
}

/// Why there is no next record.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The content is not what was written.
    Damaged(&'static str),
    /// The system refused.
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("it is cut off"),
            _ => Self::Io(error),
        }
    }
}

/// Reads one segment from its beginning. What it takes is bounded by one record.
pub struct Segment<R> {
    reader: R,
    header: Header,
    /// Where the next record begins.
    offset: u64,
    next: u64,
    chain: Hash,
}

impl<R: Read> Segment<R> {
    /// Reads the header.
    pub fn open(mut reader: R) -> Result<Self, Fault> {
        let mut bytes = [0; HEADER];
        reader.read_exact(&mut bytes)?;
        let header = Header::decode(&bytes).ok_or(Fault::Damaged("the header is none of a ledger's"))?;
        let (next, chain) = (header.first, header.previous);
        Ok(Self { reader, header, offset: HEADER as u64, next, chain })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the next record begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record's number.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The chain's hash before the next record.
    pub fn chain(&self) -> Hash {
        self.chain
    }

    /// The next record; `None` at the end. After a fault it goes on nowhere.
    pub fn read(&mut self) -> Result<Option<Record>, Fault> {
        Ok(self.frame()?.map(|frame| frame.record))
    }

    pub(super) fn frame(&mut self) -> Result<Option<Frame>, Fault> {
        let mut length = [0; 4];
        let mut got = 0;
        while got < length.len() {
            match self.reader.read(&mut length[got..]) {
                Ok(0) if got == 0 => return Ok(None),
                Ok(0) => return Err(Fault::Damaged("it is cut off")),
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Io(error)),
            }
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_BODY {
            return Err(Fault::Damaged("its length is beyond what a record can have"));
        }
        let mut body = vec![0; length];
        let mut hash = [0; 32];
        self.reader.read_exact(&mut body)?;
        self.reader.read_exact(&mut hash)?;
        if chain(&self.chain, &body) != hash {
            return Err(Fault::Damaged("its hash is not that of its content and the record before"));
        }
        let record = Record::decode(&body).map_err(Fault::Damaged)?;
        if record.sequence != self.next {
            return Err(Fault::Damaged("its sequence number is another's"));
        }
        self.next =
            record.sequence.checked_add(1).ok_or(Fault::Damaged("its sequence number is the last"))?;
        self.offset += FRAME + length as u64;
        self.chain = hash;
        Ok(Some(Frame { record, body, hash }))
    }
}

impl<R: Read + Seek> Segment<R> {
    /// Goes back to where the next record begins, to read it once more.
    pub(super) fn rewind(&mut self) -> Result<(), Fault> {
        self.reader.seek(SeekFrom::Start(self.offset)).map(drop).map_err(Fault::Io)
    }
}

/// A record as it stands in a segment.
pub(super) fn framed(body: &[u8], hash: &Hash) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), body, hash].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::record::{Draft, Kind};

    fn segment(first: u64, sequence: u64) -> Vec<u8> {
        let header = Header { id: [1; 16], key: HeadKey([2; 32]), first, previous: [3; 32] };
        let body = Draft::new(Kind::Token).encode(sequence, 0);
        [header.encode(), framed(&body, &chain(&[3; 32], &body))].concat()
    }

    #[test]
    fn what_does_not_belong_there_is_a_fault() {
        let read = |bytes: &[u8]| Segment::open(bytes).and_then(|mut segment| segment.read());
        let good = segment(7, 7);
        assert_eq!(read(&good).unwrap().unwrap().sequence, 7);
        assert!(read(&good[..HEADER]).unwrap().is_none());
        for end in (0..HEADER).chain(HEADER + 1..good.len()) {
            assert!(matches!(read(&good[..end]), Err(Fault::Damaged("it is cut off"))), "{end}");
        }
        // Its hashes are right; nothing can follow the last number there is.
        for bad in [segment(7, 8), segment(7, 6), segment(u64::MAX, u64::MAX)] {
            assert!(matches!(read(&bad), Err(Fault::Damaged(_))));
        }
    }
}
