//! Something long, sealed while it is written and opened while it is read: chunks of 64 KiB, each with its number and whether it
//! is the last, so that none can be left out, moved or cut off. Nothing that was not authenticated is handed out.
//!
//! | bytes | |
//! |---|---|
//! | 42 | the header of a sealed key, but for `POSTBAK` and the byte 1 |
//! | 32 | salt, random |
//! | rest | chunks: 64 KiB of content, the last one shorter or full, each with GCM's tag of 16 bytes |
//!
//! The chunks' key is HKDF-SHA-256 of the sealing key with the salt and, as info, `postern.dev/backup/1` and the header; a
//! chunk's nonce is three zeros, its number in 8 bytes, and 1 for the last one, else 0.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

use super::KeyError;
use super::seal::{HEADER, Seal, SealError, SealingKey, TAG};

const MAGIC: &[u8; 8] = b"POSTBAK\x01";
const SALT: usize = 32;
/// Content of a chunk.
const CHUNK: usize = 64 * 1_024;

/// Seals what is written through it. [`finish`](Self::finish) must be called, or the rest is missing.
pub(crate) struct SealedWriter<W> {
    out: W,
    key: LessSafeKey,
    /// What is not written yet; with room for the tag.
    chunk: Zeroizing<Vec<u8>>,
    number: u64,
}

/// Opens what is read through it.
pub(crate) struct OpenedReader<R> {
    from: BufReader<R>,
    key: LessSafeKey,
    chunk: Zeroizing<Vec<u8>>,
    at: usize,
    number: u64,
    ended: bool,
}

impl Seal {
    /// Begins to seal into `out`; `path` is where that is, for the error.
    pub(crate) fn writer<W: Write>(&self, path: &Path, mut out: W) -> Result<SealedWriter<W>, KeyError> {
        let (header, key) = self.header(MAGIC)?;
        let mut salt = [0; SALT];
        getrandom::fill(&mut salt).map_err(|_| SealError::Library)?;
        let io = |error| KeyError::Io(path.to_owned(), error);
        out.write_all(&header).and_then(|()| out.write_all(&salt)).map_err(io)?;
        let key = derive(&key, &header, &salt)?;
        let chunk = Zeroizing::new(Vec::with_capacity(CHUNK + TAG));
        Ok(SealedWriter { out, key, chunk, number: 0 })
    }

    /// Begins to open what `from` gives; `path` is where it is, for the error.
    pub(crate) fn reader<R: Read>(&self, path: &Path, from: R) -> Result<OpenedReader<R>, KeyError> {
        let mut from = BufReader::with_capacity(CHUNK, from);
        let mut start = [0; HEADER + SALT];
        let begun = from.read_exact(&mut start);
        let (header, salt) = start.split_at(HEADER);
        match begun {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let what = "not a backup, or only its beginning".to_owned();
                return Err(SealError::NoBackup { path: path.to_owned(), what }.into());
            }
            Err(error) => return Err(KeyError::Io(path.to_owned(), error)),
            Ok(()) => {}
        }
        let no_backup = |what| SealError::NoBackup { path: path.to_owned(), what };
        let key = self.key_of(path, MAGIC, header).map_err(|error| match error {
            // What is said of a key's file is no help with a backup's.
            SealError::Damaged { what, .. } => no_backup(what.to_owned()),
            SealError::OtherKey { secret, .. } => {
                no_backup(format!("sealed with another secret than the one in {secret}"))
            }
            other => other,
        })?;
        let key = derive(&key, header, salt)?;
        Ok(OpenedReader { from, key, chunk: Zeroizing::default(), at: 0, number: 0, ended: false })
    }
}

fn derive(key: &SealingKey, header: &[u8], salt: &[u8]) -> Result<LessSafeKey, SealError> {
    let info = [b"postern.dev/backup/1", header];
    let prk = Salt::new(HKDF_SHA256, salt).extract(&**key);
    let okm = prk.expand(&info, &AES_256_GCM).map_err(|_| SealError::Library)?;
    Ok(LessSafeKey::new(UnboundKey::from(okm)))
}

fn nonce(number: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = is_last.into();
    Nonce::assume_unique_for_key(nonce)
}

impl<W: Write> SealedWriter<W> {
    /// Writes the last chunk; gives what was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.put(true)?;
        Ok(self.out)
    }

    fn put(&mut self, is_last: bool) -> io::Result<()> {
        let nonce = nonce(self.number, is_last);
        self.key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut *self.chunk)
            .map_err(|_| io::Error::other("sealing failed"))?;
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        self.number += 1;
        Ok(())
    }
}

impl<W: Write> Write for SealedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits: only what follows shows that it is not the last.
        if self.chunk.len() == CHUNK && !bytes.is_empty() {
            self.put(false)?;
        }
        let part = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..part]);
        Ok(part)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<R: Read> OpenedReader<R> {
    fn next(&mut self) -> io::Result<()> {
        let damaged = || {
            let what = "the backup was changed or cut off here: use another one";
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        self.chunk.clear();
        self.at = 0;
        self.chunk.reserve_exact(CHUNK + TAG);
        (&mut self.from).take((CHUNK + TAG) as u64).read_to_end(&mut self.chunk)?;
        let is_last = self.from.fill_buf()?.is_empty();
        let opened = self.key.open_in_place(nonce(self.number, is_last), Aad::empty(), &mut self.chunk);
        let length = opened.map_err(|_| damaged())?.len();
        self.chunk.truncate(length);
        self.number += 1;
        self.ended = is_last;
        Ok(())
    }
}

impl<R: Read> Read for OpenedReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
        let part = into.len().min(self.chunk.len() - self.at);
        into[..part].copy_from_slice(&self.chunk[self.at..self.at + part]);
        self.at += part;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::seal::tests::{by_key, by_passphrase};

    fn sealed(seal: &Seal, content: &[u8], pieces: usize) -> Vec<u8> {
        let mut writer = seal.writer(Path::new("b"), Vec::new()).unwrap();
        for piece in content.chunks(pieces) {
            writer.write_all(piece).unwrap();
        }
        writer.finish().unwrap()
    }

    fn opened(seal: &Seal, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let mut reader = seal.reader(Path::new("b"), sealed).map_err(|error| error.to_string())?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content).map_err(|error| error.to_string())?;
        Ok(content)
    }

    #[test]
    fn lengths_around_a_chunk_come_back() {
        for seal in [by_key(1), by_passphrase("seven words")] {
            for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7] {
                let content: Vec<u8> = (0..length).map(|at| (at / 7) as u8).collect();
                let file = sealed(&seal, &content, 4_001);
                assert_eq!(file.len(), HEADER + SALT + length + TAG * length.div_ceil(CHUNK).max(1));
                assert!(opened(&seal, &file).unwrap() == content, "{length}");
            }
        }
        let file = sealed(&by_key(1), b"content", 3);
        assert!(opened(&by_key(2), &file).unwrap_err().contains("another secret"));
    }

    #[test]
    fn nothing_can_be_cut_off_left_out_added_or_changed() {
        let seal = by_key(1);
        let content = vec![7; 2 * CHUNK + 100];
        let file = sealed(&seal, &content, CHUNK);
        let (start, whole) = (HEADER + SALT, CHUNK + TAG);
        for length in [0, 10, start - 1, start, start + 5, start + whole, start + 2 * whole, file.len() - 1] {
            assert!(opened(&seal, &file[..length]).is_err(), "cut off at {length}");
        }
        let longer = [&file[..], b"x"].concat();
        assert!(opened(&seal, &longer).is_err());
        let without = [&file[..start], &file[start + whole..]].concat();
        assert!(opened(&seal, &without).is_err(), "the first chunk is left out");
        let mut swapped = file.clone();
        swapped[start..start + 2 * whole].rotate_left(whole);
        assert!(opened(&seal, &swapped).is_err(), "two chunks swapped");
        for at in (0..start).chain([start, start + whole, file.len() - 1]) {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(opened(&seal, &changed).is_err(), "byte {at}");
        }
        // A sealed key is no backup, nor a backup a sealed key.
        assert!(opened(&seal, &seal.seal("root", &[0; 200]).unwrap()).is_err());
        assert!(seal.open(Path::new("f"), "root", &file).is_err());
    }
}
