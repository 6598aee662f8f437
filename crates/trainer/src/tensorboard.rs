//! Scalars for TensorBoard: an event file in the run folder's `events/`.
//!
//! A record is its length (u64), the masked CRC-32C of these eight bytes, its bytes, and their masked
//! CRC-32C, all little-endian (TensorFlow, `core/lib/io/record_writer.h`). The bytes are a protobuf message
//! `Event` (`core/util/event.proto`). On start the file is rewritten from `log.jsonl`; then each epoch appends
//! a record.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use stillhouse_core::Error as CoreError;
use stillhouse_runs::{EpochLog, RunDir};

use crate::Result;

/// Name of the event file; readers search for `tfevents`.
const FILE: &str = "events.out.tfevents.0.stillhouse";

/// The event file of a run.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
}

impl EventFile {
    /// Writes the epochs of the log; `test_images` is the size of the test set.
    pub(crate) fn open(run: &RunDir, lines: &[EpochLog], test_images: u64) -> Result<Self> {
        let path = run.events_path().join(FILE);
        let first = lines.first().map_or_else(unix_time, |line| line.time);
        let mut bytes = record(&event(first, 0, Content::Version));
        for line in lines {
            bytes.extend(record(&epoch(line, test_images)));
        }
        stillhouse_core::fs::write_atomic(&path, &bytes)?;
        Ok(Self { path })
    }

    /// Appends an epoch.
    pub(crate) fn append(&self, line: &EpochLog, test_images: u64) -> Result<()> {
        let file = OpenOptions::new().append(true).open(&self.path);
        let bytes = record(&epoch(line, test_images));
        Ok(file.and_then(|mut f| f.write_all(&bytes)).map_err(CoreError::io(&self.path))?)
    }
}

/// Returns the Unix time in seconds.
pub(crate) fn unix_time() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0.0, |s| s.as_secs_f64())
}

/// Returns the event of an epoch: `train/loss`, `train/<term>`, `train/accuracy`, `test/accuracy`,
/// `test/<score>`, `lr`.
fn epoch(line: &EpochLog, test_images: u64) -> Vec<u8> {
    let mut scalars = vec![("train/loss".to_string(), line.loss), ("lr".to_string(), line.lr)];
    scalars.extend(line.terms.iter().map(|(name, value)| (format!("train/{name}"), *value)));
    scalars.extend(line.train_accuracy.map(|a| ("train/accuracy".to_string(), a)));
    let correct = line.test_correct.filter(|_| test_images > 0);
    scalars.extend(correct.map(|c| ("test/accuracy".to_string(), c as f64 / test_images as f64)));
    let scores = line.scores.iter().filter_map(|(name, value)| Some((format!("test/{name}"), (*value)?)));
    scalars.extend(scores);
    scalars.push(("images_per_second".to_string(), line.images_per_second));
    event(line.time, line.step, Content::Scalars(&scalars))
}

enum Content<'a> {
    Version,
    Scalars(&'a [(String, f64)]),
}

/// `Event`: wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5.
fn event(time: f64, step: u64, content: Content) -> Vec<u8> {
    let mut out = vec![0x09];
    out.extend(time.to_le_bytes());
    out.push(0x10);
    varint(step, &mut out);
    match content {
        Content::Version => field(3, b"brain.Event:2", &mut out),
        Content::Scalars(scalars) => {
            let mut summary = Vec::new();
            for (name, value) in scalars {
                // `Summary.Value`: tag = 1 (string), simple_value = 2 (float).
                let mut one = Vec::new();
                field(1, name.as_bytes(), &mut one);
                one.push(0x15);
                one.extend((*value as f32).to_le_bytes());
                field(1, &one, &mut summary);
            }
            field(5, &summary, &mut out);
        }
    }
    out
}

/// Appends a length-delimited field.
fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push((number << 3) | 2);
    varint(bytes.len() as u64, out);
    out.extend(bytes);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(&length).to_le_bytes());
    out.extend(event);
    out.extend(masked(event).to_le_bytes());
    out
}

/// Returns the masked checksum of TFRecord files.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first record of every event file that TensorFlow writes (wall time 0 here), byte by byte
    /// from the protobuf rules; the checksums from Google's crc32c over the same bytes.
    #[test]
    fn encodes_the_version_record() {
        let bytes = record(&event(0.0, 0, Content::Version));
        let (body, tail) = (&bytes[12..bytes.len() - 4], &bytes[bytes.len() - 4..]);
        assert_eq!(bytes[..8], 26u64.to_le_bytes());
        assert_eq!(&body[..9], &[0x09, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&body[9..13], &[0x10, 0x00, 0x1a, 13]);
        assert_eq!(&body[13..], b"brain.Event:2");
        assert_eq!(tail, masked(body).to_le_bytes());
        // RFC 3720, B.4: the CRC-32C of 32 zeros is 0x8a9136aa.
        assert_eq!(masked(&[0; 32]), 0x8a91_36aau32.rotate_right(15).wrapping_add(0xa282_ead8));
        let mut long = Vec::new();
        varint(300, &mut long);
        assert_eq!(long, [0xac, 0x02]);
    }
}
