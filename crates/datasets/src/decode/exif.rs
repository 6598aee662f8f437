//! EXIF orientation.

/// Returns the orientation (1 to 8) of an EXIF block, which is a TIFF structure; 1 without one.
pub(super) fn orientation(exif: &[u8]) -> u8 {
    find(exif).filter(|v| (1..=8).contains(v)).map_or(1, |v| v as u8)
}

fn find(exif: &[u8]) -> Option<u16> {
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let little = match exif.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let u16_at = |at: usize| -> Option<u16> {
        let b = exif.get(at..at.checked_add(2)?)?;
        Some(if little { u16::from_le_bytes([b[0], b[1]]) } else { u16::from_be_bytes([b[0], b[1]]) })
    };
    let (low, high) = if little { (4, 6) } else { (6, 4) };
    let ifd = usize::from(u16_at(low)?) | usize::from(u16_at(high)?) << 16;
    (0..usize::from(u16_at(ifd)?))
        .filter_map(|i| ifd.checked_add(2 + 12 * i))
        .find(|&entry| u16_at(entry) == Some(0x0112))
        .and_then(|entry| u16_at(entry.checked_add(8)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_byte_orders_and_ignores_invalid_blocks() {
        let little = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
        let big = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0";
        assert_eq!((orientation(little), orientation(big)), (6, 8));
        for n in 0..little.len() {
            assert!(orientation(&little[..n]) == 1 || n >= 20);
        }
        assert_eq!(orientation(b"II\x2a\0\xff\xff\xff\xff"), 1);
    }
}
