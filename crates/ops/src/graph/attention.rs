//! Window attention, composed of candle operations.

use candle_core::{D, DType, Device, Tensor};

use crate::Result;
use crate::graph::{columns_last, upcast};
use crate::kernels::attention::Windows;

/// Window tables of one map size, on the device.
#[derive(Debug, Clone)]
pub(crate) struct WindowTables {
    windows: usize,
    tokens: usize,
    /// Pixel of every token; the number of pixels if it has none.
    pixel_of: Tensor,
    /// Token of every pixel.
    token_of: Tensor,
    /// Row of the relative position table for every pair of tokens.
    pairs: Tensor,
    /// Additive mask `[windows, 1, tokens, tokens]`, if some window has several regions.
    mask: Option<Tensor>,
}

impl WindowTables {
    pub(crate) fn new(windows: &Windows, dtype: DType, device: &Device) -> Result<Self> {
        let (tokens, pixels) = (windows.tokens(), windows.pixels());
        let mut token_of = vec![0u32; pixels];
        let mut pixel_of = Vec::with_capacity(windows.table().len());
        for (token, pixel) in windows.table().iter().enumerate() {
            match usize::try_from(*pixel) {
                Ok(pixel) => {
                    token_of[pixel] = token as u32;
                    pixel_of.push(pixel as u32);
                }
                Err(_) => pixel_of.push(pixels as u32),
            }
        }
        let mask = match windows.mask() {
            Some(mask) => {
                let shape = (windows.count, 1, tokens, tokens);
                Some(Tensor::from_vec(mask, shape, device)?.to_dtype(dtype)?)
            }
            None => None,
        };
        let pairs: Vec<u32> = windows.pairs().map(|row| row as u32).collect();
        Ok(Self {
            windows: windows.count,
            tokens,
            pixel_of: Tensor::new(pixel_of, device)?,
            token_of: Tensor::new(token_of, device)?,
            pairs: Tensor::new(pairs, device)?,
            mask,
        })
    }
}

/// Multi-head window attention on `qkv [B, 3C, H, W]`, with the projection of a zero pixel `[3C]` and the
/// relative position bias table `[positions, heads]`; returns `[B, C, H, W]`.
pub(crate) fn window_attention(
    qkv: &Tensor,
    outside: &Tensor,
    table: &Tensor,
    heads: usize,
    tables: &WindowTables,
) -> Result<Tensor> {
    let (b, all, h, w) = qkv.dims4()?;
    let (channels, width, dtype) = (all / 3, all / 3 / heads, qkv.dtype());
    let WindowTables { windows, tokens, .. } = *tables;
    // Sums the gradients of all tokens outside the map.
    let rows = upcast(&columns_last(qkv)?.reshape((b, h * w, all))?)?;
    let outside = outside.reshape((1, 1, all))?.broadcast_as((b, 1, all))?;
    let rows = Tensor::cat(&[&rows, &outside.contiguous()?], 1)?;
    let split = rows.index_select(&tables.pixel_of, 1)?.reshape(&[b * windows, tokens, 3, heads, width])?;
    // [B * windows, heads, tokens, width]
    let part = |i: usize| split.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
    let (q, k, v) = ((part(0)? / (width as f64).sqrt())?, part(1)?, part(2)?);
    let (q, k, v) = (q.to_dtype(dtype)?, k.to_dtype(dtype)?, v.to_dtype(dtype)?);
    let bias = table.index_select(&tables.pairs, 0)?.t()?.reshape((1, heads, tokens, tokens))?;
    let mut products = upcast(&q.matmul(&k.t()?)?)?.broadcast_add(&bias)?;
    if let Some(mask) = &tables.mask {
        let by_window = products.reshape(&[b, windows, heads, tokens, tokens])?;
        products = by_window.broadcast_add(&mask.unsqueeze(0)?)?.reshape(products.shape())?;
    }
    let shares = candle_nn::ops::softmax(&products, D::Minus1)?.to_dtype(dtype)?;
    let y = shares.matmul(&v)?.transpose(1, 2)?.reshape((b, windows * tokens, channels))?;
    let y = y.index_select(&tables.token_of, 1)?.reshape((b, h, w, channels))?;
    Ok(y.permute((0, 3, 1, 2))?)
}
