//! Headers: tables, frame and scans.

use crate::Color;
use crate::error::Error;
use crate::frame::Frame;
use crate::huffman::{Class, Steps, Table};
use crate::input::{EOI, Input, Segment};
use crate::output::Transform;
use crate::standard_tables;

/// Limit for the scans of a file, which bounds the time for hostile ones.
const MAX_SCANS: usize = 500;

/// Tables and settings between the markers; later ones replace earlier ones.
#[derive(Default)]
pub(crate) struct Headers<'a> {
    /// Until the first scan.
    pub(crate) frame: Option<Frame>,
    steps: [Option<Box<Steps>>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    pub(crate) restart_interval: usize,
    pub(crate) scans: usize,
    pub(crate) jfif: bool,
    /// Color transform of Adobe's segment.
    pub(crate) adobe: Option<u8>,
    pub(crate) exif: Option<&'a [u8]>,
}

/// Header of a scan.
pub(crate) struct ScanHeader {
    pub(crate) components: Vec<ScanComponent>,
    /// First and last coefficient in file order.
    pub(crate) first: usize,
    pub(crate) last: usize,
    /// Bits that an earlier scan has left out, and that this one leaves out.
    pub(crate) high: usize,
    pub(crate) low: usize,
}

/// A component of a scan.
pub(crate) struct ScanComponent {
    /// Among the components of the frame.
    pub(crate) index: usize,
    pub(crate) dc: usize,
    pub(crate) ac: usize,
}

impl<'a> Headers<'a> {
    /// Reads up to the header of the next scan; `None` at the end of the image.
    pub(crate) fn next_scan(&mut self, input: &mut Input<'a>) -> Result<Option<Segment<'a>>, Error> {
        loop {
            let marker = input.marker();
            match marker {
                EOI => return Ok(None),
                0xd8 => return Err(Error::Corrupt("a second start marker")),
                0x01 | 0xd0..=0xd7 => continue,
                _ => {}
            }
            let Some(mut segment) = input.segment()? else { return Ok(None) };
            match marker {
                0xc0..=0xc2 if self.frame.is_some() || self.scans > 0 => {
                    return Err(Error::Corrupt("a second frame"));
                }
                0xc0..=0xc2 => self.frame = Some(Frame::new(marker == 0xc2, segment)?),
                0xc3 | 0xcb => return Err(Error::Unsupported("lossless coding")),
                0xc5..=0xc7 | 0xcd..=0xcf | 0xde | 0xdf => {
                    return Err(Error::Unsupported("hierarchical coding"));
                }
                0xc9 | 0xca => return Err(Error::Unsupported("arithmetic coding")),
                0xf7 | 0xf8 => return Err(Error::Unsupported("JPEG-LS coding")),
                0xc4 => self.huffman_tables(segment)?,
                0xda => return Ok(Some(segment)),
                0xdb => self.quantization_tables(segment)?,
                0xdd => {
                    self.restart_interval = usize::from(segment.word()?);
                    segment.end()?;
                }
                0xe0 => self.jfif |= segment.0.len() >= 14 && segment.0.starts_with(b"JFIF\0"),
                0xe1 if segment.0.starts_with(b"Exif\0\0") => self.exif = Some(segment.0),
                0xee if segment.0.starts_with(b"Adobe") => {
                    self.adobe = segment.0.get(11).copied().or(self.adobe);
                }
                0xcc | 0xdc | 0xe1..=0xef | 0xfe => {}
                _ => return Err(Error::Corrupt("an unknown marker")),
            }
        }
    }

    fn quantization_tables(&mut self, mut segment: Segment) -> Result<(), Error> {
        while !segment.is_empty() {
            let (wide, index) = segment.halves()?;
            let table = self.steps.get_mut(index).ok_or(Error::Corrupt("index of a quantization table"))?;
            let mut steps = Box::new([0; 128]);
            for step in &mut steps[..64] {
                *step = if wide == 0 { i16::from(segment.byte()?) } else { segment.word()? as i16 };
            }
            let last = steps[63];
            steps[64..].fill(last);
            *table = Some(steps);
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut segment: Segment) -> Result<(), Error> {
        while !segment.is_empty() {
            let (class, index) = segment.halves()?;
            let counts = segment.take(16)?.first_chunk().ok_or(Error::Corrupt("Huffman table"))?;
            let symbols = segment.take(counts.iter().map(|&n| usize::from(n)).sum())?;
            let (tables, class) = match class {
                0 => (&mut self.dc, Class::Dc),
                1 => (&mut self.ac, Class::Ac),
                _ => return Err(Error::Corrupt("class of a Huffman table")),
            };
            let table = tables.get_mut(index).ok_or(Error::Corrupt("index of a Huffman table"))?;
            *table = Some(Table::new(counts, symbols, class)?);
        }
        Ok(())
    }

    /// Reads the header of a scan.
    pub(crate) fn scan(&mut self, frame: &mut Frame, mut segment: Segment) -> Result<ScanHeader, Error> {
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return Err(Error::Unsupported("more than 500 scans"));
        }
        let count = usize::from(segment.byte()?);
        let mut components: Vec<ScanComponent> = Vec::with_capacity(4);
        for _ in 0..count {
            let (id, (dc, ac)) = (segment.byte()?, segment.halves()?);
            let index = (0..frame.components.len())
                .find(|&i| frame.components[i].id == id && components.iter().all(|c| c.index != i))
                .ok_or(Error::Corrupt("component of a scan"))?;
            components.push(ScanComponent { index, dc, ac });
        }
        let (first, last) = (usize::from(segment.byte()?), usize::from(segment.byte()?));
        let (high, low) = segment.halves()?;
        segment.end()?;
        let blocks = |c: &ScanComponent| frame.components[c.index].across * frame.components[c.index].down;
        if components.is_empty() || count > 1 && components.iter().map(blocks).sum::<usize>() > 10 {
            return Err(Error::Corrupt("number of blocks of a scan"));
        }
        if frame.progressive {
            let spectral = if first == 0 { last == 0 } else { first <= last && last < 64 && count == 1 };
            if !spectral || high != 0 && low + 1 != high || low > 13 {
                return Err(Error::Corrupt("parameters of a progressive scan"));
            }
        }
        // The table at the first scan counts.
        for c in &components {
            let component = &mut frame.components[c.index];
            if component.steps.is_none() {
                let steps = self.steps.get(component.table).cloned().flatten();
                component.steps = Some(steps.ok_or(Error::Corrupt("missing quantization table"))?);
            }
        }
        if self.scans == 1 && !frame.progressive {
            // Frames of motion JPEG come without the standard's example tables.
            for index in 0..2 {
                for (tables, class) in [(&mut self.dc, Class::Dc), (&mut self.ac, Class::Ac)] {
                    if tables[index].is_none() {
                        tables[index] = Some(standard_tables::table(class, index)?);
                    }
                }
            }
        }
        Ok(ScanHeader { components, first, last, high, low })
    }

    pub(crate) fn dc_table(&self, index: usize) -> Result<&Table, Error> {
        self.dc.get(index).and_then(Option::as_ref).ok_or(Error::Corrupt("missing Huffman table"))
    }

    pub(crate) fn ac_table(&self, index: usize) -> Result<&Table, Error> {
        self.ac.get(index).and_then(Option::as_ref).ok_or(Error::Corrupt("missing Huffman table"))
    }

    /// Returns the colors of an image by libjpeg's rules.
    pub(crate) fn color(&self, frame: &Frame) -> (Color, Transform) {
        let ids = |expected: [u8; 3]| frame.components.iter().map(|c| c.id).eq(expected);
        match (frame.components.len(), self.adobe) {
            (1, _) => (Color::Luma, Transform::None),
            (3, _) if self.jfif => (Color::Rgb, Transform::YCbCr),
            (3, Some(0)) => (Color::Rgb, Transform::None),
            (3, None) if ids(*b"RGB") => (Color::Rgb, Transform::None),
            (3, _) => (Color::Rgb, Transform::YCbCr),
            (_, None | Some(0)) => (Color::Cmyk, Transform::None),
            _ => (Color::Cmyk, Transform::YCbCr),
        }
    }
}
