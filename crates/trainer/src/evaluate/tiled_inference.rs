//! Label masks of whole images of any size in bounded memory.

use std::ops::Range;

use candle_core::Tensor;
use stillhouse_core::Rng;
use stillhouse_ops::Tape;
use stillhouse_ops::graph::resize_bilinear;

use crate::{Error, Network, Result};

/// Maximum pixels per forward pass: an image of Cityscapes, 2048 x 1024. It bounds the memory: 1.8 GiB in all
/// for DeepLabV3+ on ResNet50.
pub const MAX_PIXELS: usize = 1 << 21;

/// Maximum side of the output of a tile in pixels.
const TILE: usize = 1024;
/// Context around a tile in pixels.
const OVERLAP: usize = 128;

/// A tile of an image, as rows and columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Input of the network: the output with its overlap.
    input: [Range<usize>; 2],
    /// Pixels whose logits are used.
    pub(crate) output: [Range<usize>; 2],
}

/// Returns the tiles of an image; a single one up to [`MAX_PIXELS`].
fn tiles(height: usize, width: usize) -> Vec<Tile> {
    if height.saturating_mul(width) <= MAX_PIXELS {
        return vec![Tile { input: [0..height, 0..width], output: [0..height, 0..width] }];
    }
    // Input and output ranges along one side.
    let split = |side: usize| -> Vec<[Range<usize>; 2]> {
        let count = side.div_ceil(TILE);
        let outputs = (0..count).map(|i| i * side / count..(i + 1) * side / count);
        outputs.map(|r| [r.start.saturating_sub(OVERLAP)..(r.end + OVERLAP).min(side), r]).collect()
    };
    let columns = split(width);
    let tile_row = |[input, output]: [Range<usize>; 2]| {
        let tile = move |[input_columns, output_columns]: &[Range<usize>; 2]| Tile {
            input: [input.clone(), input_columns.clone()],
            output: [output.clone(), output_columns.clone()],
        };
        columns.iter().map(tile).collect::<Vec<_>>()
    };
    split(height).into_iter().flat_map(tile_row).collect()
}

/// Crops the last two axes of `[B, C, H, W]` or `[B, H, W]` to rows and columns.
pub(crate) fn crop(x: &Tensor, [rows, columns]: &[Range<usize>; 2]) -> Result<Tensor> {
    let (y_axis, x_axis) = (x.rank() - 2, x.rank() - 1);
    if rows.len() == x.dim(y_axis)? && columns.len() == x.dim(x_axis)? {
        return Ok(x.clone());
    }
    let cropped = x.narrow(y_axis, rows.start, rows.len())?.narrow(x_axis, columns.start, columns.len())?;
    Ok(cropped.contiguous()?)
}

/// Runs the network over `images [B, 3, H, W]` and passes the logits of each tile to `visit`: the images of
/// the batch, the tile, and `[b, classes, h, w]` of its output.
///
/// Logits of another size are resized to the images (bilinear, half-pixel centers). At most [`MAX_PIXELS`]
/// are in one forward pass: a larger batch is split by images, a larger image into tiles with an overlap of
/// 128 pixels. A network with global pooling then pools over a tile.
pub(crate) fn for_each_tile(
    network: &Network,
    tape: &mut Tape,
    images: &Tensor,
    mut visit: impl FnMut(Range<usize>, &Tile, &Tensor) -> Result<()>,
) -> Result<()> {
    let (batch, _, height, width) = images.dims4()?;
    let per_pass = (MAX_PIXELS / (height * width).max(1)).clamp(1, batch.max(1));
    for first in (0..batch).step_by(per_pass) {
        let range = first..(first + per_pass).min(batch);
        let own = if range.len() == batch { images.clone() } else { images.narrow(0, first, range.len())? };
        for tile in tiles(height, width) {
            tape.begin(Rng::new(0), 0);
            let features = network.model.forward(&crop(&own, &tile.input)?, tape)?;
            let logits = features.logits()?;
            if logits.rank() != 4 {
                let message = format!(
                    "invalid logits of `{}`: expected a map [B, N, H, W], found {:?}: one class per image",
                    network.model.name(),
                    logits.dims()
                );
                return Err(Error::config("label masks", message));
            }
            let [rows, columns] = &tile.input;
            let logits = match logits.dims4()? {
                (_, _, h, w) if (h, w) == (rows.len(), columns.len()) => logits.clone(),
                _ => resize_bilinear(logits, (rows.len(), columns.len()), false)?,
            };
            let relative = |output: &Range<usize>, input: &Range<usize>| {
                output.start - input.start..output.end - input.start
            };
            let inner = [relative(&tile.output[0], rows), relative(&tile.output[1], columns)];
            visit(range.clone(), &tile, &crop(&logits, &inner)?)?;
        }
    }
    Ok(())
}

/// Returns the class of each pixel of one image `[1, 3, H, W]`: `H * W` values row by row, the first class
/// among equal logits. The memory is bounded for any size of the image.
///
/// # Errors
/// If the network's logits are not maps, or it has more than 255 classes.
pub fn label_map(network: &Network, tape: &mut Tape, image: &Tensor) -> Result<Vec<u8>> {
    let (_, _, height, width) = image.dims4()?;
    if network.model.classes() > 255 {
        let message = format!("expected at most 255 classes, found {}", network.model.classes());
        return Err(Error::config("label masks", message));
    }
    let mut labels = vec![0u8; height * width];
    for_each_tile(network, tape, &image.narrow(0, 0, 1)?, |_, tile, logits| {
        let classes = logits.argmax(1)?.squeeze(0)?.to_vec2::<u32>()?;
        let [rows, columns] = tile.output.clone();
        for (row, classes) in rows.zip(classes) {
            let target = &mut labels[row * width..][columns.clone()];
            target.iter_mut().zip(classes).for_each(|(label, class)| *label = class as u8);
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
        assert_eq!(tiles(1, 7), [Tile { input: [0..1, 0..7], output: [0..1, 0..7] }]);
        for (height, width) in [(1025, 2049), (3000, 1700), (70_000, 33), (5000, 5001)] {
            let tiles = tiles(height, width);
            let pixels: usize = tiles.iter().map(|t| t.output[0].len() * t.output[1].len()).sum();
            assert_eq!(pixels, height * width);
            for tile in &tiles {
                let [rows, columns] = &tile.input;
                assert!(rows.len() * columns.len() <= MAX_PIXELS, "{tile:?}");
                for (output, input, side) in
                    [(&tile.output[0], rows, height), (&tile.output[1], columns, width)]
                {
                    let start = output.start.saturating_sub(OVERLAP);
                    assert!(input.start == start && input.end == (output.end + OVERLAP).min(side));
                }
            }
            let mut covered = vec![0u8; height * width];
            for tile in tiles {
                for row in tile.output[0].clone() {
                    covered[row * width..][tile.output[1].clone()].iter_mut().for_each(|n| *n += 1);
                }
            }
            assert!(covered.iter().all(|n| *n == 1), "{height} x {width}");
        }
    }
}
