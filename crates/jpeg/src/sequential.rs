//! Sequential scans: blocks are complete and become samples at once.

use crate::error::Error;
use crate::frame::Frame;
use crate::headers::{Headers, ScanHeader};
use crate::huffman::{self, Bits, Steps, Table};
use crate::idct;
use crate::input::Input;
use crate::plane::Plane;
use crate::scan::{BlockDecoder, Grid};

struct Component<'a> {
    plane: &'a mut Plane,
    tables: (&'a Table, &'a Table),
    steps: &'a Steps,
    /// Constant coefficient of the block before.
    before: i16,
}

struct Sequential<'a>(Vec<Component<'a>>);

impl BlockDecoder for Sequential<'_> {
    fn restart(&mut self) {
        self.0.iter_mut().for_each(|c| c.before = 0);
    }

    #[inline(always)]
    fn block(&mut self, bits: &mut Bits, component: usize, x: usize, y: usize) {
        let c = &mut self.0[component];
        let mut block = [0; 64];
        let last = huffman::block(bits, c.tables, c.steps, &mut c.before, &mut block);
        c.plane.set_block(x, y, &idct::samples(&block, last));
    }
}

/// Decodes a scan into the planes of the frame.
#[inline(always)]
pub(crate) fn decode(
    headers: &Headers,
    frame: &Frame,
    scan: &ScanHeader,
    input: &mut Input,
    planes: &mut [Plane],
) -> Result<(), Error> {
    let mut free: Vec<_> = planes.iter_mut().map(Some).collect();
    let mut components = Vec::with_capacity(4);
    for c in &scan.components {
        let (Some(plane), Some(steps)) = (free[c.index].take(), frame.components[c.index].steps.as_deref())
        else {
            return Err(Error::Corrupt("component of a scan"));
        };
        let tables = (headers.dc_table(c.dc)?, headers.ac_table(c.ac)?);
        components.push(Component { plane, tables, steps, before: 0 });
    }
    Grid::new(frame, scan).decode(headers.restart_interval, input, &mut Sequential(components));
    Ok(())
}
