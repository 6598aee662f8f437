//! File corruption: truncation and flipped bits.

use std::fs::{self, OpenOptions};
use std::path::Path;

/// Truncates a file to its first `keep` bytes.
///
/// # Panics
/// If the file is not longer than that.
pub fn truncate(path: &Path, keep: u64) {
    let file = OpenOptions::new().write(true).open(path);
    let file = file.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let length = file.metadata().map(|m| m.len()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(keep < length, "{} has {length} bytes, truncating it to {keep} changes nothing", path.display());
    file.set_len(keep).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Flips the bits of `mask` in the byte at `offset`.
///
/// # Panics
/// If the mask is 0, or the file has no such byte.
pub fn flip_bits(path: &Path, offset: u64, mask: u8) {
    assert_ne!(mask, 0, "a mask of 0 changes nothing");
    let mut bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let length = bytes.len();
    let byte = usize::try_from(offset).ok().and_then(|i| bytes.get_mut(i));
    *byte.unwrap_or_else(|| panic!("{} has {length} bytes, none at {offset}", path.display())) ^= mask;
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A corrupted copy of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupted {
    /// Description, for messages.
    pub what: String,
    /// The corrupted bytes.
    pub bytes: Vec<u8>,
}

/// Returns corrupted copies of `bytes`, each different from the original: truncated at `points`
/// evenly spaced offsets (the first keeps nothing), and with one bit flipped at each of them. A
/// parser must return an error or a value for each, never panic.
pub fn corruptions(bytes: &[u8], points: usize) -> Vec<Corrupted> {
    let mut offsets: Vec<usize> = (0..points).map(|i| i * bytes.len() / points).collect();
    offsets.dedup();
    let mut all = Vec::new();
    for (i, offset) in offsets.into_iter().enumerate().filter(|(_, offset)| *offset < bytes.len()) {
        all.push(Corrupted { what: format!("truncated to {offset} bytes"), bytes: bytes[..offset].to_vec() });
        let mut flipped = bytes.to_vec();
        flipped[offset] ^= 1 << (i % 8);
        all.push(Corrupted { what: format!("bit {} of byte {offset} flipped", i % 8), bytes: flipped });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncates_and_flips() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, b"abcdef").unwrap();
        flip_bits(&path, 1, 0x20);
        assert_eq!(fs::read(&path).unwrap(), b"aBcdef");
        truncate(&path, 2);
        assert_eq!(fs::read(&path).unwrap(), b"aB");
    }

    #[test]
    #[should_panic(expected = "changes nothing")]
    fn rejects_a_truncation_without_effect() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, b"ab").unwrap();
        truncate(&path, 2);
    }

    #[test]
    fn corruptions_differ_from_the_original() {
        let bytes: Vec<u8> = (0..100).collect();
        let all = corruptions(&bytes, 10);
        assert_eq!(all.len(), 20);
        assert!(all.iter().all(|b| b.bytes != bytes));
        assert_eq!(corruptions(b"ab", 10).len(), 4);
        assert!(corruptions(b"", 10).is_empty());
    }
}
