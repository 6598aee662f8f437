//! Huffman codes of a baseline scan (ITU T.81, annexes F.2 and K.2).

/// Bits of a table lookup: most codes with their value are shorter.
const LOOK: u32 = 10;

/// Row-major index of the k-th coefficient of a block. Runs past the end, in corrupt files, map to the
/// last index.
const ZIGZAG: [u8; 128] = {
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

/// Quantization steps in file order, of the length of [`ZIGZAG`].
pub(super) type Steps = [i16; 128];

/// A Huffman table.
///
/// An entry is a u32, from the lowest bit: bits of the code and its value (5), bits of the code (5),
/// size of the value (4), and preceding zeros (4); 0 if the code is longer.
pub(super) struct Table {
    look: Box<[u32; 1 << LOOK]>,
    /// First code longer than `i` bits, left-aligned in 16 bits.
    ends: [u32; 17],
    /// Offset from a code of `i` bits to its symbol.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

const fn entry(symbol: u8, code: u32) -> u32 {
    let size = symbol as u32 & 15;
    (code + size) | code << 5 | size << 10 | (symbol as u32 >> 4) << 14
}

#[inline(always)]
fn size(entry: u32) -> u32 {
    entry >> 10 & 15
}

#[inline(always)]
fn run(entry: u32) -> u32 {
    entry >> 14
}

impl Table {
    /// Creates a table from the code counts of 1 to 16 bits and the symbols; `None` if the codes are
    /// inconsistent or a symbol's size exceeds `most`.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8], most: u8) -> Option<Self> {
        if symbols.iter().any(|s| s & 15 > most) {
            return None;
        }
        let mut look = Box::new([0; 1 << LOOK]);
        let (mut ends, mut offsets) = ([0; 17], [0; 17]);
        let (mut code, mut next) = (0u32, 0usize);
        for bits in 1..=16 {
            let count = usize::from(counts[bits as usize - 1]);
            offsets[bits as usize] = next as i32 - code as i32;
            for &symbol in symbols.get(next..next + count)? {
                if bits <= LOOK {
                    let room = 1 << (LOOK - bits);
                    let first = (code << (LOOK - bits)) as usize;
                    look.get_mut(first..first + room)?.fill(entry(symbol, bits));
                }
                code += 1;
            }
            if code > 1 << bits {
                return None;
            }
            next += count;
            ends[bits as usize] = code << (16 - bits);
            code <<= 1;
        }
        (next == symbols.len()).then(|| Self { look, ends, offsets, symbols: symbols.to_vec() })
    }

    #[cold]
    fn long(&self, code: u32) -> Option<u32> {
        let bits = (LOOK as usize + 1..=16).find(|&bits| code < self.ends[bits])?;
        let at = (code >> (16 - bits)) as i32 + self.offsets[bits];
        Some(entry(*self.symbols.get(usize::try_from(at).ok()?)?, bits as u32))
    }
}

/// Bit reader of an interval, most significant bit first; yields zeros past the end.
pub(super) struct Bits<'a> {
    /// Ends with [`PADDING`] zeros.
    bytes: &'a [u8],
    at: usize,
    buffer: u64,
    count: u32,
}

/// Zeros that follow the bytes of [`Bits`].
pub(super) const PADDING: usize = 8;

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, buffer: 0, count: 0 }
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

    /// Returns the remaining bits; negative after reading past the end.
    #[inline(always)]
    pub(super) fn left(&self) -> i64 {
        8 * (self.bytes.len() as i64 - PADDING as i64 - self.at as i64) + i64::from(self.count)
    }
}

/// Reads the dequantized coefficients of a block, which is zero before. Returns the file index of the
/// last one, or `None` for an invalid code.
#[inline(always)]
pub(super) fn block(
    bits: &mut Bits,
    (dc, ac): (&Table, &Table),
    steps: &Steps,
    before: &mut i16,
    out: &mut [i16; 64],
) -> Option<usize> {
    bits.refill();
    let mut entry = dc.look[bits.peek(LOOK) as usize];
    if entry == 0 {
        entry = dc.long(bits.peek(16))?;
    }
    *before = before.wrapping_add(bits.take(entry) as i16);
    out[0] = before.wrapping_mul(steps[0]);
    let (mut k, mut last) = (1, 0);
    while k < 64 {
        bits.refill();
        // Two codes with their values take 52 bits at most.
        for _ in 0..2 {
            let mut entry = ac.look[bits.peek(LOOK) as usize];
            if size(entry) == 0 {
                if entry == 0 {
                    entry = ac.long(bits.peek(16))?;
                }
                if size(entry) == 0 {
                    bits.take(entry);
                    if run(entry) != 15 {
                        return Some(last);
                    }
                    k += 16;
                    continue;
                }
            }
            k += run(entry) as usize;
            last = k & 127;
            out[usize::from(ZIGZAG[last] & 63)] = (bits.take(entry) as i16).wrapping_mul(steps[last]);
            k += 1;
            if k >= 64 {
                break;
            }
        }
    }
    (k == 64).then_some(last)
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
}
