//! Markers, segments and coded data of a file.

use crate::error::{Error, Warning, Warnings};
use crate::huffman::PADDING;

pub(crate) const EOI: u8 = 0xd9;
pub(crate) const RST0: u8 = 0xd0;

/// Reader of a file. Beyond its end stands an end marker, with a warning, as in libjpeg.
pub(crate) struct Input<'a> {
    rest: &'a [u8],
    /// A marker that was reached and not consumed.
    marker: Option<u8>,
    next_restart: u8,
    pub(crate) warnings: Warnings,
}

impl<'a> Input<'a> {
    /// Begins after the start marker.
    pub(crate) fn new(file: &'a [u8]) -> Result<Self, Error> {
        let rest = file.strip_prefix(&[0xff, 0xd8]).ok_or(Error::Corrupt("no start marker"))?;
        Ok(Self { rest, marker: None, next_restart: 0, warnings: Warnings::default() })
    }

    /// Consumes the next marker.
    pub(crate) fn marker(&mut self) -> u8 {
        if let Some(marker) = self.marker.take() {
            return marker;
        }
        let mut skipped = false;
        loop {
            let at = self.rest.iter().position(|&b| b == 0xff).unwrap_or(self.rest.len());
            skipped |= at > 0;
            self.rest = &self.rest[at..];
            let marker = self.after_fill();
            if marker != 0 {
                if skipped {
                    self.warnings.add(Warning::ExtraneousBytes);
                }
                return marker;
            }
            skipped = true;
        }
    }

    /// Consumes bytes 0xff and the byte after them; the end marker at the end of the file.
    fn after_fill(&mut self) -> u8 {
        let fill = self.rest.iter().take_while(|&&b| b == 0xff).count();
        match self.rest.get(fill) {
            Some(&byte) => {
                self.rest = &self.rest[fill + 1..];
                byte
            }
            None => {
                self.rest = &[];
                self.warnings.add(Warning::Truncated);
                EOI
            }
        }
    }

    /// Consumes a segment with its length; `None` if the file ends within it.
    pub(crate) fn segment(&mut self) -> Result<Option<Segment<'a>>, Error> {
        let segment = self.rest.split_first_chunk().and_then(|(length, _)| {
            let length = usize::from(u16::from_be_bytes(*length));
            Some((length, self.rest.split_at_checked(length.max(2))?))
        });
        let Some((length, (segment, rest))) = segment else {
            self.rest = &[];
            self.warnings.add(Warning::Truncated);
            return Ok(None);
        };
        if length < 2 {
            return Err(Error::Corrupt("length of a segment"));
        }
        self.rest = rest;
        Ok(Some(Segment(&segment[2..])))
    }

    /// Prepares for the coded data of a scan.
    pub(crate) fn begin_scan(&mut self) {
        self.next_restart = 0;
    }

    /// Copies coded data up to the next marker, without stuffed zeros, and pads it. Returns false if a
    /// marker comes first.
    pub(crate) fn coded_data(&mut self, out: &mut Vec<u8>) -> bool {
        out.clear();
        let any = self.marker.is_none();
        while self.marker.is_none() {
            // A chunk at a time: the comparison is vectorized.
            while let Some((chunk, rest)) = self.rest.split_first_chunk::<32>() {
                if chunk.iter().fold(false, |found, &b| found | (b == 0xff)) {
                    break;
                }
                out.extend_from_slice(chunk);
                self.rest = rest;
            }
            let at = self.rest.iter().position(|&b| b == 0xff).unwrap_or(self.rest.len());
            out.extend_from_slice(&self.rest[..at]);
            self.rest = &self.rest[at..];
            match self.after_fill() {
                0 => out.push(0xff),
                marker => self.marker = Some(marker),
            }
        }
        out.extend([0; PADDING]);
        any
    }

    /// Consumes the restart marker after an interval, with libjpeg's rules for a wrong one: earlier
    /// ones and invalid markers are skipped, one of the next two or another marker ends the data of
    /// this interval, a distant one is taken as the expected one.
    pub(crate) fn restart(&mut self) {
        let expected = self.next_restart;
        self.next_restart = (expected + 1) % 8;
        let mut marker = self.marker();
        if marker == RST0 + expected {
            return;
        }
        self.warnings.add(Warning::LostRestart);
        loop {
            match marker {
                0xd0..=0xd7 => match (marker - RST0 + 8 - expected) % 8 {
                    1 | 2 => break,
                    6 | 7 => marker = self.marker(),
                    _ => return,
                },
                0..0xc0 => marker = self.marker(),
                _ => break,
            }
        }
        self.marker = Some(marker);
    }
}

/// Content of a segment.
pub(crate) struct Segment<'a>(pub(crate) &'a [u8]);

const SHORT: Error = Error::Corrupt("length of a segment");

impl<'a> Segment<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    /// Two halves of a byte, the higher first.
    pub(crate) fn halves(&mut self) -> Result<(usize, usize), Error> {
        let byte = self.byte()?;
        Ok((usize::from(byte >> 4), usize::from(byte & 15)))
    }

    pub(crate) fn word(&mut self) -> Result<u16, Error> {
        let (word, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*word))
    }

    /// Requires that nothing is left.
    pub(crate) fn end(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(SHORT) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_stuffed_zeros_and_stops_at_markers() {
        let mut input = Input::new(&[0xff, 0xd8, 1, 0xff, 0, 2, 0xff, 0xff, 0xd0, 3, 0xff]).unwrap();
        let mut out = Vec::new();
        assert!(input.coded_data(&mut out));
        assert_eq!(out[..out.len() - PADDING], [1, 0xff, 2]);
        assert!(!input.coded_data(&mut out));
        assert_eq!(out, [0; PADDING]);
        input.restart();
        assert!(input.coded_data(&mut out));
        assert_eq!(out[..out.len() - PADDING], [3]);
        assert_eq!(input.warnings.0, [Warning::Truncated]);
        assert_eq!(input.marker(), EOI);
    }

    #[test]
    fn resynchronizes_at_wrong_restart_markers() {
        // Found number when 0 is expected, and whether the next interval has data.
        for (found, has_data) in [(0, true), (1, false), (2, false), (3, true), (4, true), (5, true)] {
            let file = [0xff, 0xd8, 9, 0xff, RST0 + found, 7, 0xff, EOI];
            let mut input = Input::new(&file).unwrap();
            let mut out = Vec::new();
            input.coded_data(&mut out);
            input.restart();
            assert_eq!(input.coded_data(&mut out), has_data, "{found}");
            assert_eq!(input.warnings.0.is_empty(), found == 0);
        }
        let file = [0xff, 0xd8, 9, 0xff, RST0 + 7, 7, 0xff, RST0, 5, 0xff, EOI];
        let mut input = Input::new(&file).unwrap();
        let mut out = Vec::new();
        input.coded_data(&mut out);
        input.restart();
        assert!(input.coded_data(&mut out));
        assert_eq!(out[0], 5);
    }
}
