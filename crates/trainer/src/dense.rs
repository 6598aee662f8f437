//! Label maps of whole images, of any size, in bounded memory.

use std::ops::Range;

use candle_core::Tensor;
use stillhouse_core::Rng;
use stillhouse_ops::Tape;
use stillhouse_ops::graph::resize_bilinear;

use crate::{Error, Network, Result};

/// Pixels that go through a network at once: an image of Cityscapes, 2048 x 1024. What a network needs
/// for a pass grows with them and with nothing else: 1.8 GiB in all for DeepLabV3+ on ResNet50.
pub const MOST_PIXELS: usize = 1 << 21;

/// Side of the tiles that a larger image is cut into, and what is seen around each.
const CORE: usize = 1024;
const RIM: usize = 128;

/// A part of an image: what the network sees of it, and what is taken of what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tile {
    seen: [Range<usize>; 2],
    /// Rows and columns of the image.
    pub(crate) taken: [Range<usize>; 2],
}

/// The tiles of an image; one for an image of at most [`MOST_PIXELS`].
pub(crate) fn tiles(height: usize, width: usize) -> Vec<Tile> {
    if height.saturating_mul(width) <= MOST_PIXELS {
        return vec![Tile { seen: [0..height, 0..width], taken: [0..height, 0..width] }];
    }
    let cut = |side: usize| -> Vec<[Range<usize>; 2]> {
        let parts = side.div_ceil(CORE);
        let taken = (0..parts).map(|i| i * side / parts..(i + 1) * side / parts);
        taken.map(|r| [r.start.saturating_sub(RIM)..(r.end + RIM).min(side), r]).collect()
    };
    let columns = cut(width);
    let row = |[seen, taken]: [Range<usize>; 2]| {
        let of = move |[other, own]: &[Range<usize>; 2]| Tile {
            seen: [seen.clone(), other.clone()],
            taken: [taken.clone(), own.clone()],
        };
        columns.iter().map(of).collect::<Vec<_>>()
    };
    cut(height).into_iter().flat_map(row).collect()
}

/// The rows and columns of `[B, C, H, W]` or `[B, H, W]`.
pub(crate) fn part(x: &Tensor, [rows, columns]: &[Range<usize>; 2]) -> Result<Tensor> {
    let (y_axis, x_axis) = (x.rank() - 2, x.rank() - 1);
    let whole = rows.len() == x.dim(y_axis)? && columns.len() == x.dim(x_axis)?;
    if whole {
        return Ok(x.clone());
    }
    let cut = x.narrow(y_axis, rows.start, rows.len())?.narrow(x_axis, columns.start, columns.len())?;
    Ok(cut.contiguous()?)
}

/// Runs the network over `images [B, 3, H, W]` and gives its logits `[b, classes, h, w]` in the size of
/// the images, part by part: which images of the batch, which part of them. Maps of logits of another
/// size are brought to that of the images (bilinear, half-pixel centers). At most [`MOST_PIXELS`] go
/// through the network at once: a batch of more goes image by image, a larger image in tiles with a rim
/// of 128 pixels. A network that averages over its whole input then averages over a tile.
pub(crate) fn logits_by_part(
    network: &Network,
    tape: &mut Tape,
    images: &Tensor,
    mut take: impl FnMut(Range<usize>, &Tile, &Tensor) -> Result<()>,
) -> Result<()> {
    let (batch, _, height, width) = images.dims4()?;
    let at_once = (MOST_PIXELS / (height * width).max(1)).clamp(1, batch.max(1));
    for first in (0..batch).step_by(at_once) {
        let range = first..(first + at_once).min(batch);
        let some =
            if range.len() == batch { images.clone() } else { images.narrow(0, first, range.len())? };
        for tile in tiles(height, width) {
            let seen = part(&some, &tile.seen)?;
            tape.begin(Rng::new(0), 0);
            let features = network.model.forward(&seen, tape)?;
            let logits = features.logits()?;
            if logits.rank() != 4 {
                let what = format!(
                    "`{}` gives logits of the shape {:?}, one class for an image; expected a map [B, N, H, W]",
                    network.model.name(),
                    logits.dims()
                );
                return Err(Error::config("label masks", what));
            }
            let [rows, columns] = &tile.seen;
            let logits = match logits.dims4()? {
                (_, _, h, w) if (h, w) == (rows.len(), columns.len()) => logits.clone(),
                _ => resize_bilinear(logits, (rows.len(), columns.len()), false)?,
            };
            let inner =
                |own: &Range<usize>, seen: &Range<usize>| own.start - seen.start..own.end - seen.start;
            let core = [inner(&tile.taken[0], rows), inner(&tile.taken[1], columns)];
            take(range.clone(), &tile, &part(&logits, &core)?)?;
        }
    }
    Ok(())
}

/// The class of each pixel of one image `[1, 3, H, W]`, `H * W` values row by row; of equal logits the
/// first class. In bounded memory, whatever the size of the image.
///
/// # Errors
/// A network without maps of logits, or of more than 255 classes; those of the network.
pub fn label_map(network: &Network, tape: &mut Tape, image: &Tensor) -> Result<Vec<u8>> {
    let (_, _, height, width) = image.dims4()?;
    if network.model.classes() > 255 {
        let what = format!("{} classes, a mask holds at most 255", network.model.classes());
        return Err(Error::config("label masks", what));
    }
    let mut labels = vec![0u8; height * width];
    logits_by_part(network, tape, &image.narrow(0, 0, 1)?, |_, tile, logits| {
        let classes = logits.argmax(1)?.squeeze(0)?.to_vec2::<u32>()?;
        let [rows, columns] = tile.taken.clone();
        for (row, found) in rows.zip(classes) {
            let to = &mut labels[row * width..][columns.clone()];
            to.iter_mut().zip(found).for_each(|(to, class)| *to = class as u8);
        }
        Ok(())
    })?;
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_an_image_once() {
        assert_eq!(tiles(1024, 2048).len(), 1);
        assert_eq!(tiles(1, 7), [Tile { seen: [0..1, 0..7], taken: [0..1, 0..7] }]);
        for (height, width) in [(1025, 2049), (3000, 1700), (70_000, 33), (5000, 5001)] {
            let tiles = tiles(height, width);
            let pixels: usize = tiles.iter().map(|t| t.taken[0].len() * t.taken[1].len()).sum();
            assert_eq!(pixels, height * width);
            for tile in &tiles {
                let [rows, columns] = &tile.seen;
                assert!(rows.len() * columns.len() <= MOST_PIXELS, "{tile:?}");
                for (own, seen, side) in [(&tile.taken[0], rows, height), (&tile.taken[1], columns, width)] {
                    assert!(
                        seen.start == own.start.saturating_sub(RIM) && seen.end == (own.end + RIM).min(side)
                    );
                }
            }
            let mut seen = vec![0u8; height * width];
            for tile in tiles {
                for row in tile.taken[0].clone() {
                    seen[row * width..][tile.taken[1].clone()].iter_mut().for_each(|n| *n += 1);
                }
            }
            assert!(seen.iter().all(|n| *n == 1), "{height} x {width}");
        }
    }
}
