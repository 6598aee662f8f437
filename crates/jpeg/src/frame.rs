//! Size and components of an image.

use crate::error::Error;
use crate::huffman::Steps;
use crate::input::Segment;

/// A color component.
pub(crate) struct Component {
    pub(crate) id: u8,
    /// Blocks per interleaved unit.
    pub(crate) across: usize,
    pub(crate) down: usize,
    /// Its table among the quantization tables.
    pub(crate) table: usize,
    /// Samples.
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Blocks with samples.
    pub(crate) columns: usize,
    pub(crate) rows: usize,
    /// The table at its first scan.
    pub(crate) steps: Option<Box<Steps>>,
}

/// Header of a frame.
pub(crate) struct Frame {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) progressive: bool,
    pub(crate) components: Vec<Component>,
    /// Largest sampling factors.
    pub(crate) across: usize,
    pub(crate) down: usize,
    /// Interleaved units (MCUs).
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

impl Frame {
    pub(crate) fn new(progressive: bool, mut segment: Segment) -> Result<Self, Error> {
        let precision = segment.byte()?;
        let (height, width) = (usize::from(segment.word()?), usize::from(segment.word()?));
        let count = segment.byte()?;
        match precision {
            8 => {}
            12 => return Err(Error::Unsupported("12-bit samples")),
            _ => return Err(Error::Corrupt("bits per sample")),
        }
        if width == 0 || count == 0 {
            return Err(Error::Corrupt("an image without pixels"));
        }
        if height == 0 {
            return Err(Error::Unsupported("a height after the first scan"));
        }
        let mut components = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (id, (across, down), table) = (segment.byte()?, segment.halves()?, segment.byte()?);
            if !(1..=4).contains(&across) || !(1..=4).contains(&down) {
                return Err(Error::Corrupt("sampling factors"));
            }
            components.push(Component {
                id,
                across,
                down,
                table: usize::from(table),
                width,
                height,
                columns: 0,
                rows: 0,
                steps: None,
            });
        }
        segment.end()?;
        if !matches!(count, 1 | 3 | 4) {
            return Err(Error::Unsupported("a number of components other than 1, 3 or 4"));
        }
        let across = components.iter().map(|c| c.across).max().unwrap_or(1);
        let down = components.iter().map(|c| c.down).max().unwrap_or(1);
        for c in &mut components {
            if across % c.across != 0 || down % c.down != 0 {
                return Err(Error::Unsupported("fractional ratios of sampling factors"));
            }
            c.width = (width * c.across).div_ceil(across);
            c.height = (height * c.down).div_ceil(down);
            (c.columns, c.rows) = (c.width.div_ceil(8), c.height.div_ceil(8));
        }
        let (columns, rows) = (width.div_ceil(8 * across), height.div_ceil(8 * down));
        Ok(Self { width, height, progressive, components, across, down, columns, rows })
    }
}
