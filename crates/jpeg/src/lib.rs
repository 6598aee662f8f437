#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod error;
mod frame;
mod headers;
mod huffman;
mod idct;
mod input;
mod output;
mod plane;
mod progressive;
mod reconstruct;
mod scan;
mod sequential;
mod standard_tables;

pub use error::{Error, Warning};

use frame::Frame;
use headers::{Headers, ScanHeader};
use input::Input;
use plane::Plane;
use progressive::{Coefficients, Precision};

/// Channels of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// Gray.
    Luma,
    /// Red, green and blue.
    Rgb,
    /// Cyan, magenta, yellow and black as stored. By Adobe's convention, which nearly all files
    /// follow, the values are inverted: 255 is no ink.
    Cmyk,
}

impl Color {
    /// Returns the number of channels.
    #[must_use]
    pub fn channels(self) -> usize {
        match self {
            Self::Luma => 1,
            Self::Rgb => 3,
            Self::Cmyk => 4,
        }
    }
}

/// A decoded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Channels of the pixels.
    pub color: Color,
    /// Interleaved channels, row by row from the top: width x height x channels bytes.
    pub pixels: Vec<u8>,
    /// Defects of the file, each once.
    pub warnings: Vec<Warning>,
}

impl Image {
    /// Returns the pixels as RGB: gray is repeated; CMYK is multiplied by black, as Pillow does.
    #[must_use]
    pub fn into_rgb(self) -> Vec<u8> {
        match self.color {
            Color::Luma => self.pixels.into_iter().flat_map(|p| [p; 3]).collect(),
            Color::Rgb => self.pixels,
            Color::Cmyk => {
                let product = |a: u8, b: u8| ((u32::from(a) * u32::from(b) + 127) / 255) as u8;
                let (pixels, _) = self.pixels.as_chunks();
                pixels
                    .iter()
                    .flat_map(|&[c, m, y, k]| [product(c, k), product(m, k), product(y, k)])
                    .collect()
            }
        }
    }
}

/// Decoder of a file whose headers are read.
pub struct Decoder<'a> {
    input: Input<'a>,
    headers: Headers<'a>,
    frame: Frame,
    scan: ScanHeader,
    max_pixels: usize,
}

impl<'a> Decoder<'a> {
    /// Default of [`with_max_pixels`](Self::with_max_pixels).
    pub const MAX_PIXELS: usize = 1 << 26;

    /// Reads the headers of a file.
    ///
    /// # Errors
    /// The file is not JPEG, corrupt, truncated within the headers, or of an unsupported variant.
    pub fn new(file: &'a [u8]) -> Result<Self, Error> {
        let (mut input, mut headers) = (Input::new(file)?, Headers::default());
        let Some(segment) = headers.next_scan(&mut input)? else {
            let truncated = input.warnings.0.contains(&Warning::Truncated);
            return Err(if truncated { Error::Truncated } else { Error::Corrupt("no scan") });
        };
        let mut frame = headers.frame.take().ok_or(Error::Corrupt("a scan before the frame"))?;
        let scan = headers.scan(&mut frame, segment)?;
        Ok(Self { input, headers, frame, scan, max_pixels: Self::MAX_PIXELS })
    }

    /// Sets the limit for the pixels of an image. Decoding takes up to 6 bytes of memory per pixel,
    /// 12 for a progressive file (8 and 16 for CMYK).
    #[must_use]
    pub fn with_max_pixels(mut self, max_pixels: usize) -> Self {
        self.max_pixels = max_pixels;
        self
    }

    /// Returns the width in pixels.
    #[must_use]
    pub fn width(&self) -> usize {
        self.frame.width
    }

    /// Returns the height in pixels.
    #[must_use]
    pub fn height(&self) -> usize {
        self.frame.height
    }

    /// Returns the channels of the decoded image.
    #[must_use]
    pub fn color(&self) -> Color {
        self.headers.color(&self.frame).0
    }

    /// Returns whether the file is progressive.
    #[must_use]
    pub fn is_progressive(&self) -> bool {
        self.frame.progressive
    }

    /// Returns the EXIF block, which begins with `Exif\0\0`.
    #[must_use]
    pub fn exif(&self) -> Option<&'a [u8]> {
        self.headers.exif
    }

    /// Decodes the image. It is inlined, so that its loops are compiled for the target features of the
    /// calling function.
    ///
    /// # Errors
    /// The image has too many pixels, or a later header is corrupt. Defects of coded data are warnings.
    #[inline(always)]
    pub fn decode(mut self) -> Result<Image, Error> {
        let (width, height) = (self.width(), self.height());
        if width * height > self.max_pixels {
            return Err(Error::TooLarge { width, height });
        }
        let (color, transform) = self.headers.color(&self.frame);
        let planes = if self.frame.progressive { self.progressive()? } else { self.sequential()? };
        let pixels = output::pixels(&self.frame, &planes, color, transform);
        if self.frame.components.iter().any(|c| c.steps.is_none()) {
            self.input.warnings.add(Warning::MissingComponent);
        }
        Ok(Image { width, height, color, pixels, warnings: self.input.warnings.0 })
    }

    /// Reads the header of the next scan into `self.scan`; returns false at the end of the image.
    fn next_scan(&mut self) -> Result<bool, Error> {
        let segment = self.headers.next_scan(&mut self.input)?;
        let Some(segment) = segment else { return Ok(false) };
        self.scan = self.headers.scan(&mut self.frame, segment)?;
        Ok(true)
    }

    #[inline(always)]
    fn sequential(&mut self) -> Result<Vec<Plane>, Error> {
        let mut planes: Vec<_> = self.frame.components.iter().map(|c| Plane::new(&self.frame, c)).collect();
        let is_single = self.scan.components.len() == planes.len();
        loop {
            sequential::decode(&self.headers, &self.frame, &self.scan, &mut self.input, &mut planes)?;
            if !self.next_scan()? {
                return Ok(planes);
            }
            if is_single {
                return Err(Error::Corrupt("a scan after the last one"));
            }
        }
    }

    #[inline(always)]
    fn progressive(&mut self) -> Result<Vec<Plane>, Error> {
        let (coefficients, precision, known) = self.coefficients()?;
        let components = self.frame.components.iter().zip(coefficients);
        if reconstruct::is_incomplete(&self.frame, &precision) {
            let smooth = |((component, coefficients), precision)| {
                reconstruct::smooth_plane(&self.frame, component, &coefficients, precision, known)
            };
            return Ok(components.zip(&precision).map(smooth).collect());
        }
        Ok(components.map(|(c, coefficients)| reconstruct::plane(&self.frame, c, &coefficients)).collect())
    }

    /// Reads the scans of a progressive file. Returns the coefficients and their precision, by component,
    /// and the rows of units of the last scan that have data.
    fn coefficients(&mut self) -> Result<(Vec<Coefficients>, Vec<Precision>, usize), Error> {
        let components = &self.frame.components;
        let mut coefficients: Vec<_> = components.iter().map(|c| Coefficients::new(&self.frame, c)).collect();
        let mut precision = vec![Precision::new(); components.len()];
        loop {
            let last_row = progressive::decode(
                &self.headers,
                &self.frame,
                &self.scan,
                &mut self.input,
                &mut coefficients,
                &mut precision,
            )?;
            if !self.next_scan()? {
                if self.headers.scans == 1 {
                    precision.iter_mut().for_each(|p| p.before = [-1; 10]);
                }
                return Ok((coefficients, precision, last_row + 1));
            }
        }
    }
}

/// Decodes a file with default limits.
///
/// # Errors
/// Those of [`Decoder::new`] and [`Decoder::decode`].
pub fn decode(file: &[u8]) -> Result<Image, Error> {
    Decoder::new(file)?.decode()
}
