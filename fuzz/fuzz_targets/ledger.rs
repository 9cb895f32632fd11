//! Bytes of a stranger as a segment of the ledger and as a record: never a panic, and what is read has that one encoding.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_ca::ledger::{Draft, Head, HeadKey, Identity, Record, Segment, Value, chain};
use postern_svid::TrustDomain;

/// Bytes of a segment's header.
const HEADER: usize = 96;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let identity =
        Identity { trust_domain: TrustDomain::parse("demo.postern").expect("a literal"), id: [0; 16] };
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(Head::verify(text, &identity, HeadKey([1; 32])).is_err(), "nobody has signed it");
    }

    let record = Record::decode(bytes);
    if let Ok(record) = &record {
        let mut draft = Draft::new(record.kind);
        for (field, _, value) in record.fields() {
            draft = match value {
                Value::Text(text) => draft.text(field, text),
                Value::Bytes(bytes) => draft.bytes(field, bytes),
                Value::Number(number) | Value::Time(number) => draft.number(field, number),
            };
        }
        assert_eq!(draft.encode(record.sequence, record.time_ms), bytes, "one encoding");
    }

    // With its hashes right, so that what is behind them is reached: first as one record, then with what follows cut off.
    let Some((first, _)) = bytes.get(1..).and_then(|rest| rest.split_first_chunk::<8>()) else { return };
    let mut segment = b"POSTLDG\x01".to_vec();
    segment.extend([0; 16 + 32]);
    segment.extend(first);
    segment.extend([0; 32]);
    assert_eq!(segment.len(), HEADER);
    segment.extend((bytes.len() as u32).to_be_bytes());
    segment.extend(bytes);
    segment.extend(chain(&[0; 32], bytes));
    // None can follow the last number there is.
    let is_whole = record.is_ok_and(|record| record.sequence < u64::MAX);
    assert_eq!(read(&segment), usize::from(is_whole));
    assert_eq!(read(&segment[..segment.len() - 1]), 0);
});

/// Records that are read before the end or the first fault.
fn read(bytes: &[u8]) -> usize {
    let Ok(mut segment) = Segment::open(bytes) else { return 0 };
    let (mut expected, mut records) = (segment.header().first, 0);
    while let Ok(Some(record)) = segment.read() {
        assert_eq!(record.sequence, expected);
        expected = expected.wrapping_add(1);
        records += 1;
        assert!(segment.offset() as usize <= bytes.len());
    }
    records
}
