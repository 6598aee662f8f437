//! Decoder for baseline files with one scan, the format of nearly all photographs: takes about two
//! thirds of zune-jpeg's time and yields exactly the pixels of libjpeg, which Pillow and torchvision
//! use. All other files, including corrupt ones, are left to zune-jpeg.

use super::color::{self, Plane};
use super::huffman::{self, Bits, PADDING, Steps, Table};
use super::idct;

/// A decoded file.
pub(super) struct Image {
    /// 1 or 3.
    pub(super) channels: usize,
    pub(super) pixels: Vec<u8>,
    pub(super) size: (usize, usize),
    /// EXIF block, if present.
    pub(super) exif: Vec<u8>,
}

/// Header of a component.
struct Component {
    id: u8,
    /// Blocks per MCU.
    across: usize,
    down: usize,
    steps: usize,
    dc: usize,
    ac: usize,
}

#[derive(Default)]
struct Headers {
    width: usize,
    height: usize,
    components: Vec<Component>,
    steps: [Option<Box<Steps>>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    restart: usize,
    jfif: bool,
    /// Color transform of Adobe's segment.
    adobe: Option<u8>,
    exif: Vec<u8>,
}

/// Takes bytes from the start.
fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    Some(take(bytes, 1)?[0])
}

fn word(bytes: &mut &[u8]) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(*take(bytes, 2)?.first_chunk()?)))
}

/// Parses the headers; returns the bytes of the scan.
fn headers(file: &[u8]) -> Option<(Headers, &[u8])> {
    let mut rest = file.strip_prefix(&[0xff, 0xd8])?;
    let mut headers = Headers::default();
    loop {
        let (0xff, mut marker) = (byte(&mut rest)?, byte(&mut rest)?) else { return None };
        while marker == 0xff {
            marker = byte(&mut rest)?;
        }
        let length = word(&mut rest)?.checked_sub(2)?;
        let mut segment = take(&mut rest, length)?;
        match marker {
            0xc0 | 0xc1 => headers.frame(segment)?,
            0xc4 => headers.codes(segment)?,
            0xda => return headers.scan(segment).map(|()| (headers, rest)),
            0xdb => headers.quantization(segment)?,
            0xdd => headers.restart = word(&mut segment)?,
            0xe0 => headers.jfif |= segment.starts_with(b"JFIF\0"),
            0xe1 if segment.starts_with(b"Exif\0\0") => headers.exif = segment.to_vec(),
            0xee if segment.starts_with(b"Adobe") => headers.adobe = segment.get(11).copied(),
            0xe1..=0xef | 0xfe => {}
            _ => return None,
        }
    }
}

impl Headers {
    fn frame(&mut self, mut segment: &[u8]) -> Option<()> {
        if !self.components.is_empty() || byte(&mut segment)? != 8 {
            return None;
        }
        (self.height, self.width) = (word(&mut segment)?, word(&mut segment)?);
        let count = byte(&mut segment)?;
        for _ in 0..count {
            let (id, factors) = (byte(&mut segment)?, byte(&mut segment)?);
            let (across, down) = (usize::from(factors >> 4), usize::from(factors & 15));
            let steps = usize::from(byte(&mut segment)?);
            self.components.push(Component { id, across, down, steps, dc: 0, ac: 0 });
        }
        // Sampling factors of a single component are meaningless.
        if let [only] = &mut self.components[..] {
            (only.across, only.down) = (1, 1);
        }
        let factors: Vec<_> = self.components.iter().map(|c| (c.across, c.down)).collect();
        matches!(factors[..], [(1, 1)] | [(1, 1) | (2, 1) | (2, 2), (1, 1), (1, 1)]).then_some(())
    }

    fn quantization(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some(kind) = byte(&mut segment) {
            let table = self.steps.get_mut(usize::from(kind & 15))?.insert(Box::new([0; 128]));
            for step in &mut table[..64] {
                *step = match kind >> 4 {
                    0 => i16::from(byte(&mut segment)?),
                    1 => word(&mut segment)? as i16,
                    _ => return None,
                };
            }
        }
        Some(())
    }

    fn codes(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some(kind) = byte(&mut segment) {
            let counts = take(&mut segment, 16)?.first_chunk()?;
            let symbols = take(&mut segment, counts.iter().map(|&n| usize::from(n)).sum())?;
            let (tables, most) = match kind >> 4 {
                0 => (&mut self.dc, 11),
                1 => (&mut self.ac, 10),
                _ => return None,
            };
            *tables.get_mut(usize::from(kind & 15))? = Some(Table::new(counts, symbols, most)?);
        }
        Some(())
    }

    fn scan(&mut self, mut segment: &[u8]) -> Option<()> {
        if self.components.is_empty() || usize::from(byte(&mut segment)?) != self.components.len() {
            return None;
        }
        for component in &mut self.components {
            let (id, tables) = (byte(&mut segment)?, byte(&mut segment)?);
            (component.dc, component.ac) = (usize::from(tables >> 4), usize::from(tables & 15));
            if id != component.id {
                return None;
            }
        }
        (segment == [0, 63, 0]).then_some(())
    }

    /// Whether three components are luma and chroma according to libjpeg's rules.
    fn has_chroma(&self) -> bool {
        let ids = || self.components.iter().map(|c| c.id);
        self.jfif || self.adobe.map_or(ids().eq(1..=3), |transform| transform == 1)
    }
}

/// Copies a restart interval without stuffed zeros; returns the marker after it.
fn unstuff(scan: &mut &[u8], out: &mut Vec<u8>) -> Option<u8> {
    out.clear();
    loop {
        let at = memchr::memchr(0xff, scan)?;
        out.extend_from_slice(&scan[..at]);
        let marker = *scan.get(at + 1)?;
        *scan = &scan[at + 2..];
        match marker {
            0 => out.push(0xff),
            0xff => return None,
            _ => {
                out.extend([0; PADDING]);
                return Some(marker);
            }
        }
    }
}

/// Decodes a file if it is supported and not corrupt, and `fits` accepts its width and height.
pub(super) fn decode(file: &[u8], fits: impl Fn(usize, usize) -> bool) -> Option<Image> {
    let (headers, scan) = headers(file)?;
    if !fits(headers.width, headers.height) || headers.components.len() == 3 && !headers.has_chroma() {
        return None;
    }
    pulp::Arch::new().dispatch(Scan { headers, scan })
}

/// The scan; its loops are compiled for the instruction set that [`pulp`] detects at run time.
struct Scan<'a> {
    headers: Headers,
    scan: &'a [u8],
}

impl pulp::WithSimd for Scan<'_> {
    type Output = Option<Image>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Option<Image> {
        let Self { headers, scan } = self;
        let (width, height) = (headers.width, headers.height);
        let planes = planes(&headers, scan)?;
        let (channels, pixels) = match &planes[..] {
            [luma, blue, red] => {
                let planes = [luma, blue, red];
                let pixels = match (headers.components[0].across, headers.components[0].down) {
                    (1, _) => color::rgb::<1, 1>(planes),
                    (_, 1) => color::rgb::<2, 1>(planes),
                    _ => color::rgb::<2, 2>(planes),
                };
                (3, pixels)
            }
            [gray] => {
                let rows: Vec<&[u8]> = (0..height).map(|y| gray.row(y)).collect();
                (1, rows.concat())
            }
            _ => return None,
        };
        Some(Image { channels, pixels, size: (width, height), exif: headers.exif })
    }
}

/// Decodes the blocks of a scan.
#[inline(always)]
fn planes(headers: &Headers, mut scan: &[u8]) -> Option<Vec<Plane>> {
    let first = &headers.components[0];
    let (across, down) = (first.across, first.down);
    let columns = headers.width.div_ceil(8 * across);
    let rows = headers.height.div_ceil(8 * down);
    let mut parts = Vec::with_capacity(3);
    let mut planes = Vec::with_capacity(3);
    for c in &headers.components {
        let tables = (headers.dc.get(c.dc)?.as_ref()?, headers.ac.get(c.ac)?.as_ref()?);
        parts.push((c.across, c.down, tables, headers.steps.get(c.steps)?.as_deref()?));
        let stride = 8 * columns * c.across;
        planes.push(Plane {
            stride,
            width: (headers.width * c.across).div_ceil(across),
            height: (headers.height * c.down).div_ceil(down),
            pixels: vec![0; stride * 8 * rows * c.down],
        });
    }
    let every = if headers.restart == 0 { columns * rows } else { headers.restart };
    let mut interval = Vec::with_capacity(scan.len() + PADDING);
    for (number, start) in (0..columns * rows).step_by(every).enumerate() {
        let end = (start + every).min(columns * rows);
        let marker = unstuff(&mut scan, &mut interval)?;
        let expected = if end == columns * rows { 0xd9 } else { 0xd0 + number as u8 % 8 };
        if marker != expected {
            return None;
        }
        let mut bits = Bits::new(&interval);
        let mut before = [0; 3];
        let (mut x, mut y) = (start % columns, start / columns);
        for _ in start..end {
            for (((across, down, tables, steps), plane), before) in
                parts.iter().zip(&mut planes).zip(&mut before)
            {
                for row in 0..*down {
                    for column in 0..*across {
                        let mut block = [0; 64];
                        let last = huffman::block(&mut bits, *tables, steps, before, &mut block)?;
                        let pixels = idct::pixels(&block, last);
                        plane.set_block(x * across + column, y * down + row, &pixels);
                    }
                }
            }
            x += 1;
            if x == columns {
                (x, y) = (0, y + 1);
                // Bounds the work for truncated files.
                if bits.left() < 0 {
                    return None;
                }
            }
        }
        if !(0..8).contains(&bits.left()) {
            return None;
        }
    }
    Some(planes)
}
