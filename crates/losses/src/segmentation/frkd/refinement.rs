//! FRKDNet's feature refinement: the salient positions of the teacher's logits per class.

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::Result;

use crate::common::softmax::log_softmax;

/// Contribution of a position to a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contribution {
    /// Softmax over the classes of each position, divided by the class's sum over positions.
    #[default]
    ClassSoftmax,
    /// Softmax over the positions of each class.
    SpatialSoftmax,
}

/// Factor of kept positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// 1.
    #[default]
    Binary,
    /// Contribution times probability, times the number of positions.
    Soft,
}

/// Positions that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Positions with at least the mean contribution of the class.
    #[default]
    AboveMean,
    /// The fraction `rho` of the positions with the largest contributions to the class, rounded up; the
    /// first of equal ones.
    TopRatio,
    /// Positions where the class is the teacher's argmax.
    Argmax,
}

/// Refinement of logits `[B, N, P]`, without gradient.
pub(crate) struct Refinement {
    contribution: Contribution,
    /// 1 where a position is kept in a class's channel, `[B, N, P]`.
    pub(crate) keep: Tensor,
    /// Factor of the logits, `[B, N, P]`.
    pub(crate) mask: Tensor,
    /// 1 where the class is the teacher's argmax (the first of equal ones), `[B, N, P]`.
    pub(crate) argmax: Tensor,
    /// Logarithm of the mask, [`LOG_ZERO`] where it is 0.
    log_mask: Tensor,
}

/// Replacement for the logarithm of 0, below all values that result from logits of 1e4.
const LOG_ZERO: f64 = -1e9;

/// Logarithms of probability Q and contribution R, finite even if Q underflows in the whole image.
fn log_contributions(logits: &Tensor, contribution: Contribution) -> Result<(Tensor, Tensor)> {
    match contribution {
        Contribution::ClassSoftmax => {
            let q = log_softmax(&logits.transpose(1, 2)?.contiguous()?)?.transpose(1, 2)?.contiguous()?;
            let r = log_softmax(&q)?;
            Ok((q, r))
        }
        Contribution::SpatialSoftmax => {
            let q = log_softmax(logits)?;
            Ok((q.clone(), q))
        }
    }
}

impl Refinement {
    /// Refines the teacher's logits `[B, N, P]`.
    pub(crate) fn new(
        teacher: &Tensor,
        contribution: Contribution,
        mask: Mask,
        keep: Keep,
        rho: f64,
    ) -> Result<Self> {
        let (_, n, p) = teacher.dims3()?;
        let (dtype, device) = (teacher.dtype(), teacher.device());
        let (log_q, log_r) = log_contributions(teacher, contribution)?;
        let class = Tensor::arange(0, n as u32, device)?.reshape((1, n, 1))?;
        let argmax = teacher.transpose(1, 2)?.contiguous()?.argmax(D::Minus1)?; // [B, P]
        let argmax = argmax.unsqueeze(1)?.broadcast_eq(&class)?.to_dtype(dtype)?;
        let keep = match keep {
            // With a tolerance of a few units in the last place, so that ties are kept.
            Keep::AboveMean => {
                let ulp = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
                let min = -(p as f64).ln() - 8.0 * ulp * (p as f64).ln().max(1.0);
                log_r.ge(min)?.to_dtype(dtype)?
            }
            Keep::TopRatio => top_k(&log_r, (rho * p as f64).ceil() as usize)?,
            Keep::Argmax => argmax.clone(),
        };
        let log_zero = Tensor::full(LOG_ZERO, keep.shape(), device)?.to_dtype(dtype)?;
        let soft = ((log_r + log_q)? + (p as f64).ln())?;
        let log_mask = match mask {
            Mask::Binary => keep.zeros_like()?,
            Mask::Soft => soft.clone(),
        };
        let log_mask = keep.gt(0.0)?.where_cond(&log_mask, &log_zero)?;
        let mask = match mask {
            Mask::Binary => keep.clone(),
            Mask::Soft => (&keep * soft.exp()?)?,
        };
        Ok(Self { contribution, keep, mask, argmax, log_mask })
    }

    /// A network's own contributions times the mask, normalized to a sum of 1 over the positions,
    /// `[B, N, P]`.
    pub(crate) fn own_weights(&self, logits: &Tensor) -> Result<Tensor> {
        let (_, log_r) = log_contributions(logits, self.contribution)?;
        Ok(log_softmax(&(log_r + &self.log_mask)?)?.exp()?)
    }
}

/// 1 for the `count` largest of each row along the last axis, the first of equal ones.
fn top_k(x: &Tensor, count: usize) -> Result<Tensor> {
    let (_, _, p) = x.dims3()?;
    let values = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let mut kept = vec![0u8; values.len()];
    for (row, kept) in values.chunks(p).zip(kept.chunks_mut(p)) {
        let mut order: Vec<usize> = (0..p).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.iter().take(count).for_each(|i| kept[*i] = 1);
    }
    Ok(Tensor::from_vec(kept, x.shape(), x.device())?.to_dtype(x.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn refine(values: &[[f64; 4]; 2], contribution: Contribution, mask: Mask, keep: Keep) -> Refinement {
        let logits = Tensor::new(values, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        Refinement::new(&logits, contribution, mask, keep, 0.3).unwrap()
    }

    fn rows(x: &Tensor) -> Vec<Vec<f64>> {
        x.squeeze(0).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn keeps_ties_or_the_first_of_equal_positions() {
        // Equal positions have the mean contribution.
        let flat = [[0.3; 4], [-1.7; 4]];
        for contribution in [Contribution::ClassSoftmax, Contribution::SpatialSoftmax] {
            let all = refine(&flat, contribution, Mask::Binary, Keep::AboveMean);
            assert_eq!(rows(&all.keep), [[1.0; 4]; 2]);
            // 0.3 of 4 positions, rounded up
            let two = refine(&flat, contribution, Mask::Binary, Keep::TopRatio);
            assert_eq!(rows(&two.keep), [[1., 1., 0., 0.]; 2]);
        }
        let argmax =
            refine(&[[1., 2., 0., 5.], [1., 3., -1., 4.]], Default::default(), Mask::Binary, Keep::Argmax);
        assert_eq!(rows(&argmax.keep), [[1., 0., 1., 1.], [0., 1., 0., 0.]]);
    }

    #[test]
    fn matches_a_computation_by_hand() {
        // Q of class 0: 3/4, 1/2, 1/4, 1/2 with the sum 2, so R = Q / 2 with the mean 1/4.
        let logits = [[3f64.ln(), 0., 0., 0.], [0., 0., 3f64.ln(), 0.]];
        let soft = refine(&logits, Contribution::ClassSoftmax, Mask::Soft, Keep::AboveMean);
        assert_eq!(rows(&soft.keep)[0], [1., 1., 0., 1.]);
        let want = [4. * 0.375 * 0.75, 4. * 0.25 * 0.5, 0., 4. * 0.25 * 0.5];
        assert!(rows(&soft.mask)[0].iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-15), "{:?}", soft.mask);
    }

    #[test]
    fn normalizes_weights_of_large_logits() {
        let logits = [[1e4, -1e4, 1e4, -1e4], [-1e4; 4]];
        for mask in [Mask::Binary, Mask::Soft] {
            let refinement = refine(&logits, Contribution::ClassSoftmax, mask, Keep::TopRatio);
            let student = Tensor::new(&[[-1e4, 1e4, -1e4, 1e4], [1e4, -1e4, 1e4, 0.]], &Device::Cpu).unwrap();
            let shares = rows(&refinement.own_weights(&student.unsqueeze(0).unwrap()).unwrap());
            for (row, keep) in shares.iter().zip(rows(&refinement.keep)) {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{row:?}");
                assert!(row.iter().zip(keep).all(|(share, keep)| keep == 1.0 || *share == 0.0), "{row:?}");
            }
        }
    }
}
