//! Progressive scans (ITU T.81, annex G): each adds coefficients, or a bit of each.

use crate::error::{Error, Warning};
use crate::frame::{Component, Frame};
use crate::headers::{Headers, ScanHeader};
use crate::huffman::{Bits, Table, zigzag};
use crate::input::Input;
use crate::scan::{BlockDecoder, Grid};

/// Coefficients of a component, in row-major order within a block.
pub(crate) struct Coefficients {
    /// Blocks per row.
    pub(crate) stride: usize,
    pub(crate) blocks: Vec<[i16; 64]>,
}

impl Coefficients {
    pub(crate) fn new(frame: &Frame, component: &Component) -> Self {
        let stride = frame.columns * component.across;
        Self { stride, blocks: vec![[0; 64]; stride * frame.rows * component.down] }
    }
}

/// Unknown low bits of the coefficients of a component, in file order; -1 before their first scan.
#[derive(Clone)]
pub(crate) struct Precision {
    pub(crate) now: [i8; 64],
    /// The first ten before the component's latest scan.
    pub(crate) before: [i8; 10],
}

impl Precision {
    pub(crate) fn new() -> Self {
        Self { now: [-1; 64], before: [-1; 10] }
    }

    /// Records a scan; returns whether it continues the ones before.
    fn record(&mut self, scan: &ScanHeader, is_first: bool) -> bool {
        let range = scan.first.min(1)..=scan.last.max(9);
        for (k, before) in self.before.iter_mut().enumerate().filter(|(k, _)| range.contains(k)) {
            *before = if is_first { 0 } else { self.now[k] };
        }
        let mut continues = scan.first == 0 || self.now[0] >= 0;
        for bits in &mut self.now[scan.first..=scan.last] {
            continues &= usize::try_from(*bits).unwrap_or(0) == scan.high;
            *bits = scan.low as i8;
        }
        continues
    }
}

#[derive(Clone, Copy)]
enum Kind {
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

/// A component of a scan.
struct Part<'a> {
    coefficients: &'a mut Coefficients,
    /// Missing in [`Kind::DcRefine`], which has no codes.
    table: Option<&'a Table>,
    /// Constant coefficient of the block before.
    before: i16,
}

struct Progressive<'a> {
    parts: Vec<Part<'a>>,
    kind: Kind,
    band: Band,
    /// Following blocks without codes.
    skip: u32,
}

/// Coefficients of a scan of one component, and their place.
#[derive(Clone, Copy)]
struct Band {
    first: usize,
    last: usize,
    low: usize,
}

impl BlockDecoder for Progressive<'_> {
    fn restart(&mut self) {
        self.skip = 0;
        self.parts.iter_mut().for_each(|p| p.before = 0);
    }

    #[inline(always)]
    fn block(&mut self, bits: &mut Bits, component: usize, x: usize, y: usize) {
        let part = &mut self.parts[component];
        let block = &mut part.coefficients.blocks[y * part.coefficients.stride + x];
        match (self.kind, part.table) {
            (Kind::DcFirst, Some(table)) => {
                let (_, _, difference) = bits.symbol(table);
                part.before = part.before.wrapping_add(difference as i16);
                block[0] = part.before << self.band.low;
            }
            (Kind::AcFirst, Some(table)) => self.band.decode(bits, table, &mut self.skip, block),
            (Kind::AcRefine, Some(table)) => self.band.refine(bits, table, &mut self.skip, block),
            _ => block[0] |= (bits.get(1) as i16) << self.band.low,
        }
    }
}

impl Band {
    /// Reads the first bits of the coefficients of a block.
    fn decode(self, bits: &mut Bits, table: &Table, skip: &mut u32, block: &mut [i16; 64]) {
        if *skip > 0 {
            *skip -= 1;
            return;
        }
        let mut k = self.first;
        while k <= self.last {
            let (run, size, value) = bits.symbol(table);
            if size > 0 {
                k += run;
                block[zigzag(k)] = (value as i16) << self.low;
                k += 1;
            } else if run == 15 {
                k += 16;
            } else {
                *skip = (1 << run) - 1 + bits.get(run as u32);
                return;
            }
        }
    }

    /// Reads one more bit of the coefficients of a block.
    fn refine(self, bits: &mut Bits, table: &Table, skip: &mut u32, block: &mut [i16; 64]) {
        let mut k = self.first;
        while *skip == 0 && k <= self.last {
            let (run, size) = bits.run_and_size(table);
            let mut value = 0;
            if size > 0 {
                // The size of a new coefficient is 1.
                bits.invalid |= size != 1;
                value = if bits.get(1) == 1 { 1 << self.low } else { -1 << self.low };
            } else if run < 15 {
                *skip = (1 << run) + bits.get(run as u32);
                break;
            }
            k = self.refine_nonzero(bits, k, run, block);
            if value != 0 {
                block[zigzag(k)] = value;
            }
            k += 1;
        }
        if *skip > 0 {
            self.refine_nonzero(bits, k, usize::MAX, block);
            *skip -= 1;
        }
    }

    /// Refines the coefficients that are not zero, up to the zero after `zeros` others; returns its index.
    fn refine_nonzero(self, bits: &mut Bits, mut k: usize, mut zeros: usize, block: &mut [i16; 64]) -> usize {
        while k <= self.last {
            let value = &mut block[zigzag(k)];
            if *value == 0 {
                if zeros == 0 {
                    break;
                }
                zeros -= 1;
            } else if bits.get(1) == 1 && (*value >> self.low) & 1 == 0 {
                *value = value.wrapping_add(if *value > 0 { 1 << self.low } else { -1 << self.low });
            }
            k += 1;
        }
        k
    }
}

/// Decodes a scan into the coefficients of the frame; returns the last row of interleaved units that has
/// data.
pub(crate) fn decode(
    headers: &Headers,
    frame: &Frame,
    scan: &ScanHeader,
    input: &mut Input,
    coefficients: &mut [Coefficients],
    precision: &mut [Precision],
) -> Result<usize, Error> {
    let kind = match (scan.first, scan.high) {
        (0, 0) => Kind::DcFirst,
        (0, _) => Kind::DcRefine,
        (_, 0) => Kind::AcFirst,
        _ => Kind::AcRefine,
    };
    let mut free: Vec<_> = coefficients.iter_mut().map(Some).collect();
    let mut parts = Vec::with_capacity(4);
    for c in &scan.components {
        let Some(coefficients) = free[c.index].take() else {
            return Err(Error::Corrupt("component of a scan"));
        };
        let table = match kind {
            Kind::DcFirst => Some(headers.dc_table(c.dc)?),
            Kind::DcRefine => None,
            Kind::AcFirst | Kind::AcRefine => Some(headers.ac_table(c.ac)?),
        };
        parts.push(Part { coefficients, table, before: 0 });
        if !precision[c.index].record(scan, headers.scans == 1) {
            input.warnings.add(Warning::ScanOrder);
        }
    }
    let band = Band { first: scan.first, last: scan.last, low: scan.low };
    let mut decoder = Progressive { parts, kind, band, skip: 0 };
    Ok(Grid::new(frame, scan).decode(headers.restart_interval, input, &mut decoder))
}
