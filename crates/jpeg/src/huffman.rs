//! Huffman codes (ITU T.81, annexes C, F.2 and K.2).

use crate::error::Error;

/// Bits of a table lookup: most codes with their value are shorter.
const LOOK: u32 = 10;

/// Row-major index of the k-th coefficient of a block. Runs past the end, in corrupt files, map to the
/// last index.
pub(crate) const ZIGZAG: [u8; 128] = {
    let mut order = [63; 128];
    let (mut x, mut y, mut k) = (0i8, 0i8, 0);
    while k < 64 {
        order[k] = (8 * y + x) as u8;
        // Up and right on even diagonals, down and left on odd ones.
        let up = (x + y) % 2 == 0;
        let (dx, dy) = if up { (1, -1) } else { (-1, 1) };
        if up && x == 7 || !up && y != 7 && x == 0 {
            y += 1;
        } else if up && y == 0 || !up && y == 7 {
            x += 1;
        } else {
            x += dx;
            y += dy;
        }
        k += 1;
    }
    order
};

/// Row-major index of the k-th coefficient.
#[inline(always)]
pub(crate) fn zigzag(k: usize) -> usize {
    usize::from(ZIGZAG[k & 127] & 63)
}

/// Quantization steps in file order, of the length of [`ZIGZAG`]; the last one is repeated.
pub(crate) type Steps = [i16; 128];

/// A Huffman table.
///
/// An entry is a u32, from the lowest bit: bits of the code and its value (5), bits of the code (5),
/// size of the value (4), and preceding zeros (4); 0 if the code is longer.
pub(crate) struct Table {
    look: Box<[u32; 1 << LOOK]>,
    /// First code longer than `i` bits, left-aligned in 16 bits.
    ends: [u32; 17],
    /// Offset from a code of `i` bits to its symbol.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

/// Kind of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Dc,
    Ac,
}

const fn entry(symbol: u8, code: u32) -> u32 {
    let size = symbol as u32 & 15;
    (code + size) | code << 5 | size << 10 | (symbol as u32 >> 4) << 14
}

/// libjpeg takes an invalid code as 17 bits of symbol 0.
const INVALID: u32 = entry(0, 17);

#[inline(always)]
fn size(entry: u32) -> u32 {
    entry >> 10 & 15
}

#[inline(always)]
fn run(entry: u32) -> u32 {
    entry >> 14
}

impl Table {
    /// Creates a table from the code counts of 1 to 16 bits and the symbols.
    pub(crate) fn new(counts: &[u8; 16], symbols: &[u8], class: Class) -> Result<Self, Error> {
        const BROKEN: Error = Error::Corrupt("Huffman table");
        if symbols.len() > 256 || class == Class::Dc && symbols.iter().any(|&s| s > 15) {
            return Err(BROKEN);
        }
        let mut look = Box::new([0; 1 << LOOK]);
        let (mut ends, mut offsets) = ([0; 17], [0; 17]);
        let (mut code, mut next) = (0u32, 0usize);
        for bits in 1..=16 {
            let count = usize::from(counts[bits as usize - 1]);
            offsets[bits as usize] = next as i32 - code as i32;
            for &symbol in symbols.get(next..next + count).ok_or(BROKEN)? {
                if bits <= LOOK {
                    let room = 1 << (LOOK - bits);
                    let first = (code << (LOOK - bits)) as usize;
                    look.get_mut(first..first + room).ok_or(BROKEN)?.fill(entry(symbol, bits));
                }
                code += 1;
            }
            // A code of ones is reserved.
            if count > 0 && code >= 1 << bits {
                return Err(BROKEN);
            }
            next += count;
            ends[bits as usize] = code << (16 - bits);
            code <<= 1;
        }
        Ok(Self { look, ends, offsets, symbols: symbols.to_vec() })
    }

    /// Returns the entry of a code that is longer than the lookup, from the next 16 bits. They are passed by
    /// value, so that the bit reader stays in registers.
    #[cold]
    fn long(&self, code: u32) -> u32 {
        let found = (LOOK as usize + 1..=16).find(|&length| code < self.ends[length]).and_then(|length| {
            let at = (code >> (16 - length)) as i32 + self.offsets[length];
            Some(entry(*self.symbols.get(usize::try_from(at).ok()?)?, length as u32))
        });
        found.unwrap_or(INVALID)
    }

    /// Returns the entry of the next code, which stays.
    #[inline(always)]
    fn find(&self, bits: &mut Bits) -> u32 {
        match self.look[bits.peek(LOOK) as usize] {
            0 => {
                let entry = self.long(bits.peek(16));
                bits.invalid |= entry == INVALID;
                entry
            }
            entry => entry,
        }
    }
}

/// Bit reader of coded data, most significant bit first; yields zeros past the end.
pub(crate) struct Bits<'a> {
    /// Ends with [`PADDING`] zeros.
    bytes: &'a [u8],
    at: usize,
    buffer: u64,
    count: u32,
    /// Whether an invalid code was read.
    pub(crate) invalid: bool,
}

/// Zeros that follow the bytes of [`Bits`].
pub(crate) const PADDING: usize = 8;

impl<'a> Bits<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, buffer: 0, count: 0, invalid: false }
    }

    /// Refills to 56 bits.
    #[inline(always)]
    fn refill(&mut self) {
        let at = self.at.min(self.bytes.len() - PADDING);
        let next = self.bytes[at..].first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
        self.buffer |= next >> self.count;
        self.at += (63 - self.count as usize) / 8;
        self.count |= 56;
    }

    #[inline(always)]
    fn peek(&self, count: u32) -> u32 {
        (self.buffer >> (64 - count)) as u32
    }

    /// Takes a code and its value.
    #[inline(always)]
    fn take(&mut self, entry: u32) -> i32 {
        let (size, after) = (size(entry), self.buffer << (entry >> 5 & 31));
        self.buffer <<= entry & 31;
        self.count -= entry & 31;
        // Values with a leading 0 are negative.
        let negative = (after as i64 >> 63) as i32;
        (after >> 1 >> (63 - size)) as i32 + (!negative & (1 - (1 << size)))
    }

    /// Takes up to 15 bits.
    #[inline(always)]
    pub(crate) fn get(&mut self, count: u32) -> u32 {
        self.refill();
        let bits = (self.buffer >> 1 >> (63 - count)) as u32;
        self.buffer <<= count;
        self.count -= count;
        bits
    }

    /// Takes a code and its value; returns the preceding zeros, the size and the value.
    #[inline(always)]
    pub(crate) fn symbol(&mut self, table: &Table) -> (usize, u32, i32) {
        self.refill();
        let entry = table.find(self);
        (run(entry) as usize, size(entry), self.take(entry))
    }

    /// Takes a code whose size is not that of a value; returns the preceding zeros and the size.
    #[inline(always)]
    pub(crate) fn run_and_size(&mut self, table: &Table) -> (usize, u32) {
        self.refill();
        let entry = table.find(self);
        let code = entry >> 5 & 31;
        self.buffer <<= code;
        self.count -= code;
        (run(entry) as usize, size(entry))
    }

    /// Returns the remaining bits; negative after reading past the end.
    #[inline(always)]
    pub(crate) fn left(&self) -> i64 {
        8 * (self.bytes.len() as i64 - PADDING as i64 - self.at as i64) + i64::from(self.count)
    }
}

/// Reads the dequantized coefficients of a block, which is zero before. Returns the file index of the
/// last one.
#[inline(always)]
pub(crate) fn block(
    bits: &mut Bits,
    (dc, ac): (&Table, &Table),
    steps: &Steps,
    before: &mut i16,
    out: &mut [i16; 64],
) -> usize {
    let (_, _, difference) = bits.symbol(dc);
    *before = before.wrapping_add(difference as i16);
    out[0] = before.wrapping_mul(steps[0]);
    let (mut k, mut last) = (1, 0);
    while k < 64 {
        bits.refill();
        // Two short codes with their values take 50 bits at most.
        for _ in 0..2 {
            let mut entry = ac.look[bits.peek(LOOK) as usize];
            if size(entry) == 0 {
                if entry == 0 {
                    bits.refill();
                    entry = ac.long(bits.peek(16));
                    bits.invalid |= entry == INVALID;
                }
                if size(entry) == 0 {
                    bits.take(entry);
                    if run(entry) != 15 {
                        return last;
                    }
                    k += 16;
                    break;
                }
            }
            k += run(entry) as usize;
            last = k & 127;
            out[zigzag(last)] = (bits.take(entry) as i16).wrapping_mul(steps[last]);
            k += 1;
            if k >= 64 {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_zigzag_order_of_the_standard() {
        assert_eq!(ZIGZAG[..12], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25]);
        assert_eq!(
            ZIGZAG[44..66],
            [30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63]
        );
        let mut order = ZIGZAG[..64].to_vec();
        order.sort_unstable();
        assert!(order.iter().map(|&p| usize::from(p)).eq(0..64));
    }

    #[test]
    fn rejects_inconsistent_tables() {
        let with = |bits: usize, count: u8, symbols: &[u8], class| {
            let mut counts = [0; 16];
            counts[bits - 1] = count;
            Table::new(&counts, symbols, class).is_ok()
        };
        assert!(with(1, 1, &[0], Class::Dc));
        // The code of ones, more codes than bits allow, missing symbols, a size above 15.
        assert!(!with(1, 2, &[0, 1], Class::Dc));
        assert!(!with(2, 5, &[0; 5], Class::Ac));
        assert!(!with(2, 2, &[0], Class::Ac));
        assert!(!with(1, 1, &[16], Class::Dc) && with(1, 1, &[16], Class::Ac));
    }

    #[test]
    fn takes_invalid_codes_as_17_bits() {
        let mut counts = [0; 16];
        counts[0] = 1;
        let table = Table::new(&counts, &[5], Class::Dc).unwrap();
        let bytes = [0xff, 0xff, 0x80 | 0b0101_0100, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut bits = Bits::new(&bytes);
        assert_eq!((bits.symbol(&table), bits.invalid), ((0, 0, 0), true));
        // The remaining 1010100: no code begins with 1.
        assert_eq!(bits.get(1), 1);
        // Code 0, then five bits 10100.
        assert_eq!(bits.symbol(&table), (0, 5, 0b10100));
    }
}
