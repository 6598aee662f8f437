//! RLE and bit-packed hybrid encoding of levels and dictionary indices.

use super::Parsed;
use super::thrift::varint;

/// Reads `count` values of `bits` bits.
pub(super) fn hybrid(mut bytes: &[u8], bits: u32, count: usize) -> Parsed<Vec<u32>> {
    if bits > 32 {
        return Err(format!("values of {bits} bits"));
    }
    let mut all: Vec<u32> = Vec::new();
    while all.len() < count {
        let head = varint(&mut bytes)?;
        let left = count - all.len();
        if head & 1 == 0 {
            let width = bits.div_ceil(8) as usize;
            let (value, rest) = bytes.split_at_checked(width).ok_or("a run is cut off")?;
            bytes = rest;
            let value = value.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b)) as u32;
            let run = usize::try_from(head >> 1).map_err(|_| "a run without end")?;
            if run == 0 {
                return Err("a run of nothing".to_string());
            }
            all.resize(all.len() + run.min(left), value);
        } else {
            // Groups of eight values.
            let groups = usize::try_from(head >> 1).ok().filter(|g| *g > 0).ok_or("no packed values")?;
            let length = groups.checked_mul(bits as usize).ok_or("oversized bit-packed run")?;
            // The last group of a page may be incomplete.
            let length = length.min(bytes.len());
            let (packed, rest) = bytes.split_at(length);
            bytes = rest;
            let there = if bits == 0 { groups.saturating_mul(8) } else { packed.len() * 8 / bits as usize };
            if there.min(groups * 8) < left.min(groups * 8) {
                return Err("truncated bit-packed run".to_string());
            }
            for i in 0..left.min(groups * 8) {
                let mut value = 0u32;
                for bit in 0..bits as usize {
                    let at = i * bits as usize + bit;
                    value |= u32::from(packed[at / 8] >> (at % 8) & 1) << bit;
                }
                all.push(value);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_the_example_of_the_format() {
        // 0 to 7 in three bits, then a run of four fives.
        let bytes = [0b11, 0b1000_1000, 0b1100_0110, 0b1111_1010, 8, 5];
        assert_eq!(hybrid(&bytes, 3, 12).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7, 5, 5, 5, 5]);
        assert!(hybrid(&bytes[..3], 3, 8).is_err());
        assert!(hybrid(&bytes, 33, 1).is_err());
        assert_eq!(hybrid(&[200, 1], 0, 3).unwrap(), [0, 0, 0]);
    }
}
