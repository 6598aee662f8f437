//! Fault injection: files that were cut off or damaged.

use std::fs::{self, OpenOptions};
use std::path::Path;

/// Cuts a file down to its first `keep` bytes; it must have been longer.
pub fn truncate(path: &Path, keep: u64) {
    let file = OpenOptions::new().write(true).open(path);
    let file = file.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let length = file.metadata().map(|m| m.len()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(keep < length, "{} has {length} bytes, cutting it to {keep} changes nothing", path.display());
    file.set_len(keep).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Flips bits of the byte at `offset`: those that are set in `mask`, which is not 0.
pub fn flip(path: &Path, offset: u64, mask: u8) {
    assert_ne!(mask, 0, "a mask of 0 changes nothing");
    let mut bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let length = bytes.len();
    let byte = usize::try_from(offset).ok().and_then(|i| bytes.get_mut(i));
    *byte.unwrap_or_else(|| panic!("{} has {length} bytes, none at {offset}", path.display())) ^= mask;
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// One way of being broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// What was done, for messages.
    pub what: String,
    /// The result.
    pub bytes: Vec<u8>,
}

/// Broken versions of a file's bytes, each different from the original: cut off at `points` places
/// spread evenly (the first keeps nothing), and one bit flipped at each of them. A reader of
/// foreign bytes is to answer each with an error or with a value, never with a panic.
pub fn variants(bytes: &[u8], points: usize) -> Vec<Broken> {
    let mut places: Vec<usize> = (0..points).map(|i| i * bytes.len() / points).collect();
    places.dedup();
    let mut all = Vec::new();
    for (i, place) in places.into_iter().enumerate().filter(|(_, place)| *place < bytes.len()) {
        all.push(Broken { what: format!("cut off after {place} bytes"), bytes: bytes[..place].to_vec() });
        let mut flipped = bytes.to_vec();
        flipped[place] ^= 1 << (i % 8);
        all.push(Broken { what: format!("bit {} of byte {place} flipped", i % 8), bytes: flipped });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_broken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, b"abcdef").unwrap();
        flip(&path, 1, 0x20);
        assert_eq!(fs::read(&path).unwrap(), b"aBcdef");
        truncate(&path, 2);
        assert_eq!(fs::read(&path).unwrap(), b"aB");
    }

    #[test]
    #[should_panic(expected = "changes nothing")]
    fn a_fault_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, b"ab").unwrap();
        truncate(&path, 2);
    }

    #[test]
    fn variants_differ_from_the_original() {
        let bytes: Vec<u8> = (0..100).collect();
        let all = variants(&bytes, 10);
        assert_eq!(all.len(), 20);
        assert!(all.iter().all(|b| b.bytes != bytes));
        assert_eq!(variants(b"ab", 10).len(), 4);
        assert!(variants(b"", 10).is_empty());
    }
}
