//! Pooling and nearest-neighbor resizing with correct gradients.
//!
//! Averages are products with constant matrices: candle has no adaptive pooling, and the gradient of
//! its `avg_pool2d` is wrong if the window does not divide the size. Maxima are gathered by index: the
//! gradient of its `max_pool2d` is wrong. Its nearest-neighbor resizing overwrites gradients of other
//! uses of the same tensor.

use candle_core::{D, Device, Tensor};
use stillhouse_core::Result;

/// Rows `start..end` of a window.
type Window = (usize, usize);

/// Window i is the rows `floor(i * from / to) .. ceil((i + 1) * from / to)`.
fn adaptive(from: usize, to: usize) -> Vec<Window> {
    (0..to).map(|i| (i * from / to, ((i + 1) * from).div_ceil(to))).collect()
}

/// Adjacent windows; the last one is cut if `size` does not divide the rows.
fn tiles(from: usize, size: usize) -> Vec<Window> {
    (0..from).step_by(size.max(1)).map(|start| (start, (start + size.max(1)).min(from))).collect()
}

/// Mean of each window, `[B, C, H, W] -> [B, C, rows, columns]`.
fn average(x: &Tensor, rows: &[Window], columns: &[Window]) -> Result<Tensor> {
    // [from, to]: column i averages the rows of window i.
    let matrix = |from: usize, windows: &[Window]| -> Result<Tensor> {
        let to = windows.len();
        let mut values = vec![0f64; from * to];
        for (i, (start, end)) in windows.iter().enumerate() {
            (*start..*end).for_each(|row| values[row * to + i] = 1.0 / (end - start) as f64);
        }
        let matrix = Tensor::from_vec(values, (from, to), &Device::Cpu)?;
        Ok(matrix.to_dtype(x.dtype())?.to_device(x.device())?)
    };
    let ((b, c, from_h, from_w), h, w) = (x.dims4()?, rows.len(), columns.len());
    let mut y = x.clone();
    if from_w != w {
        y = y.reshape((b * c * from_h, from_w))?.matmul(&matrix(from_w, columns)?)?;
        y = y.reshape((b, c, from_h, w))?;
    }
    if from_h != h {
        y = y.transpose(2, 3)?.reshape((b * c * w, from_h))?.matmul(&matrix(from_h, rows)?)?;
        y = y.reshape((b, c, w, h))?.transpose(2, 3)?;
    }
    Ok(y)
}

/// Adaptive average pooling, `[B, C, H, W] -> [B, C, h, w]`; windows overlap if the sizes do not divide.
pub(crate) fn adaptive_avg_pool(x: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (_, _, from_h, from_w) = x.dims4()?;
    average(x, &adaptive(from_h, h), &adaptive(from_w, w))
}

/// Mean of adjacent windows, `[B, C, H, W] -> [B, C, ceil(H / h), ceil(W / w)]`; windows that are cut
/// at the edge average the pixels inside.
pub(crate) fn avg_pool(x: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (_, _, from_h, from_w) = x.dims4()?;
    average(x, &tiles(from_h, h), &tiles(from_w, w))
}

/// Maximum of adjacent windows as in [`avg_pool`]; the first of equal pixels gets the whole gradient.
pub(crate) fn max_pool(x: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (b, c, from_h, from_w) = x.dims4()?;
    let (rows, columns) = (tiles(from_h, h), tiles(from_w, w));
    let flat = x.reshape((b * c, from_h * from_w))?;
    // Pixel indices of each window; windows that are cut repeat the last row and column.
    let (mut cells, size) = (Vec::new(), h.max(1) * w.max(1));
    for ((top, bottom), (left, right)) in rows.iter().flat_map(|r| columns.iter().map(move |c| (r, c))) {
        for (i, j) in (0..h.max(1)).flat_map(|i| (0..w.max(1)).map(move |j| (i, j))) {
            cells.push(((top + i).min(bottom - 1) * from_w + (left + j).min(right - 1)) as u32);
        }
    }
    let cells = Tensor::from_vec(cells, (rows.len() * columns.len(), size), x.device())?;
    let values = flat.detach().index_select(&cells.flatten_all()?, 1)?;
    let nodes = cells.dim(0)?;
    let best = values.reshape((b * c, nodes, size))?.argmax(D::Minus1)?; // [B * C, nodes]
    let cells = cells.t()?.contiguous()?; // [size, nodes]
    let column = Tensor::arange(0, nodes as u32, x.device())?.broadcast_as((b * c, nodes))?;
    let indices = ((best * nodes as f64)? + column)?.flatten_all()?;
    let indices = cells.flatten_all()?.index_select(&indices, 0)?.reshape((b * c, nodes))?;
    Ok(flat.gather(&indices, 1)?.reshape((b, c, rows.len(), columns.len()))?)
}

/// Nearest-neighbor resizing, `[B, C, H, W] -> [B, C, h, w]`: row i is row `floor(i * H / h)`, columns
/// likewise.
pub(crate) fn resize_nearest(x: &Tensor, (h, w): (usize, usize)) -> Result<Tensor> {
    let (_, _, from_h, from_w) = x.dims4()?;
    if (from_h, from_w) == (h, w) {
        return Ok(x.clone());
    }
    let indices = |from: usize, to: usize| {
        Tensor::from_vec((0..to).map(|i| (i * from / to) as u32).collect::<Vec<_>>(), to, x.device())
    };
    // Channels last is the layout of a tape's maps, so this is no copy.
    let rows = x.permute((0, 2, 3, 1))?.contiguous()?;
    let rows = rows.index_select(&indices(from_h, h)?, 1)?.index_select(&indices(from_w, w)?, 2)?;
    Ok(rows.permute((0, 3, 1, 2))?)
}

/// Pools both maps to the smaller height and the smaller width of the two.
pub(crate) fn pool_pair(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((_, _, ah, aw), (_, _, bh, bw)) = (a.dims4()?, b.dims4()?);
    let size = (ah.min(bh), aw.min(bw));
    Ok((adaptive_avg_pool(a, size)?, adaptive_avg_pool(b, size)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn matches_pytorch_windows() {
        // torch.nn.functional.adaptive_avg_pool2d of arange(5) to 3: windows 0..2, 1..4, 3..5
        let x = Tensor::arange(0f64, 5., &Device::Cpu).unwrap().reshape((1, 1, 1, 5)).unwrap();
        let y = adaptive_avg_pool(&x, (1, 3)).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(y.iter().zip([0.5, 2.0, 3.5]).all(|(g, w)| (g - w).abs() < 1e-15), "{y:?}");
    }

    #[test]
    fn distributes_gradients_over_windows() {
        // 3 x 4 to 2 x 2 with weights 1, 2, 3, 4
        let x = Var::zeros((1, 1, 3, 4), candle_core::DType::F64, &Device::Cpu).unwrap();
        let weights = Tensor::new(&[[[[1f64, 2.], [3., 4.]]]], &Device::Cpu).unwrap();
        let y = adaptive_avg_pool(&x, (2, 2)).unwrap();
        let grads = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let g = grads.get(&x).unwrap().squeeze(0).unwrap().squeeze(0).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(g, [[0.25, 0.25, 0.5, 0.5], [1., 1., 1.5, 1.5], [0.75, 0.75, 1., 1.]]);
    }

    #[test]
    fn ignores_pixels_outside_of_cut_windows() {
        let x = Var::new(
            &[[[[1f64, 5., 2., 0., 7.], [5., 5., 0., 1., -1.], [-3., -2., -9., -9., -4.]]]],
            &Device::Cpu,
        );
        let x = x.unwrap();
        let rows = |t: &Tensor| t.squeeze(0).unwrap().squeeze(0).unwrap().to_vec2::<f64>().unwrap();
        let weights = Tensor::new(&[[[[1f64, 2., 3.], [4., 5., 6.]]]], &Device::Cpu).unwrap();
        let gradient = |y: &Tensor| {
            rows((y * &weights).unwrap().sum_all().unwrap().backward().unwrap().get(&x).unwrap())
        };
        let max = max_pool(&x, (2, 2)).unwrap();
        assert_eq!(rows(&max), [[5., 2., 7.], [-2., -9., -4.]]);
        let want = [[0., 1., 2., 0., 3.], [0.; 5], [0., 4., 5., 0., 6.]]; // the first of equal ones
        assert_eq!(gradient(&max), want);
        let mean = avg_pool(&x, (2, 2)).unwrap();
        assert_eq!(rows(&mean), [[4., 0.75, 3.], [-2.5, -9., -4.]]);
        let want = [[0.25, 0.25, 0.5, 0.5, 1.5], [0.25, 0.25, 0.5, 0.5, 1.5], [2., 2., 2.5, 2.5, 6.]];
        assert_eq!(gradient(&mean), want);
    }

    #[test]
    fn accumulates_gradients_of_nearest_pixels() {
        let x = Var::new(&[[[[1f64, 2., 3.], [4., 5., 6.]]]], &Device::Cpu).unwrap();
        let wide = resize_nearest(&x, (2, 6)).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(wide, [1., 1., 2., 2., 3., 3., 4., 4., 5., 5., 6., 6.]);
        let uneven = resize_nearest(&x, (3, 2)).unwrap(); // rows 0, 0, 1 and columns 0, 1
        assert_eq!(uneven.flatten_all().unwrap().to_vec1::<f64>().unwrap(), [1., 2., 1., 2., 4., 5.]);
        // with other uses of the same map before and after
        let large = resize_nearest(&x, (4, 6)).unwrap();
        let both =
            ((large.sum_all().unwrap() + x.sum_all().unwrap()).unwrap() + uneven.sum_all().unwrap()).unwrap();
        let g = both.backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(g, [7., 7., 5., 6., 6., 5.]);
    }

    #[test]
    fn keeps_maps_of_equal_size() {
        let x = Tensor::arange(0f32, 6., &Device::Cpu).unwrap().reshape((1, 1, 2, 3)).unwrap();
        let (a, b) = pool_pair(&x, &Tensor::zeros((1, 4, 3, 2), x.dtype(), &Device::Cpu).unwrap()).unwrap();
        assert_eq!((a.dims(), b.dims()), (&[1, 1, 2, 2][..], &[1, 4, 2, 2][..]));
        let same = adaptive_avg_pool(&x, (2, 3)).unwrap();
        assert_eq!(same.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 1., 2., 3., 4., 5.]);
    }
}
