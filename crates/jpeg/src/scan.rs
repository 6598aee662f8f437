//! The blocks of a scan in coded order, with restart intervals.

use crate::error::Warning;
use crate::frame::Frame;
use crate::headers::ScanHeader;
use crate::huffman::Bits;
use crate::input::Input;

/// Decoder of the blocks of a scan.
pub(crate) trait BlockDecoder {
    /// Begins a restart interval.
    fn restart(&mut self);

    /// Decodes the block at block coordinates of a component of the scan.
    fn block(&mut self, bits: &mut Bits, component: usize, x: usize, y: usize);
}

/// Units (MCUs) of a scan: one block of a single component, some of each of several components.
pub(crate) struct Grid {
    /// Blocks of a unit, by component.
    blocks: Vec<(usize, usize)>,
    columns: usize,
    rows: usize,
    /// Rows of units per row of interleaved units.
    rows_per_unit: usize,
}

impl Grid {
    pub(crate) fn new(frame: &Frame, scan: &ScanHeader) -> Self {
        let component = |i: usize| &frame.components[scan.components[i].index];
        if scan.components.len() == 1 {
            let c = component(0);
            return Self { blocks: vec![(1, 1)], columns: c.columns, rows: c.rows, rows_per_unit: c.down };
        }
        let blocks = (0..scan.components.len()).map(|i| (component(i).across, component(i).down)).collect();
        Self { blocks, columns: frame.columns, rows: frame.rows, rows_per_unit: 1 }
    }

    /// Decodes a scan. After the end of the coded data, blocks stay as they are until the next restart.
    /// Returns the last row of interleaved units that has data.
    #[inline(always)]
    pub(crate) fn decode(
        &self,
        interval: usize,
        input: &mut Input,
        decoder: &mut impl BlockDecoder,
    ) -> usize {
        let units = self.columns * self.rows;
        let interval = if interval == 0 { units } else { interval };
        let (mut data, mut exhausted, mut last_row) = (Vec::new(), false, 0);
        input.begin_scan();
        for start in (0..units).step_by(interval) {
            if start > 0 {
                input.restart();
                decoder.restart();
            }
            // An interval without data continues the one before.
            exhausted &= !input.coded_data(&mut data);
            if exhausted {
                continue;
            }
            let mut bits = Bits::new(&data);
            let (mut x, mut y) = (start % self.columns, start / self.columns);
            for _ in start..(start + interval).min(units) {
                last_row = y;
                for (component, &(across, down)) in self.blocks.iter().enumerate() {
                    for row in 0..down {
                        for column in 0..across {
                            decoder.block(&mut bits, component, x * across + column, y * down + row);
                        }
                    }
                }
                if bits.left() < 0 {
                    exhausted = true;
                    input.warnings.add(Warning::MissingData);
                    break;
                }
                x += 1;
                if x == self.columns {
                    (x, y) = (0, y + 1);
                }
            }
            if bits.invalid {
                input.warnings.add(Warning::InvalidCode);
            }
            if bits.left() >= 8 {
                input.warnings.add(Warning::ExcessData);
            }
        }
        last_row / self.rows_per_unit
    }
}
