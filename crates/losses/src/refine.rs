//! FRKDNet's feature refinement: which positions of the teacher's logits are salient for which class.

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::Result;

use crate::softmax::log_softmax;

/// What a position contributes to a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contribution {
    /// Softmax over the classes of each position, as a share of the class's sum over positions.
    #[default]
    ClassSoftmax,
    /// Softmax over the positions of each class.
    SpatialSoftmax,
}

/// What kept positions are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// 1.
    #[default]
    Binary,
    /// Contribution times probability, times the number of positions.
    Soft,
}

/// Which positions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Those that contribute at least the mean of their class.
    #[default]
    AboveMean,
    /// The part `C8_rho` of the positions that contribute most to the class, rounded up; of equal
    /// ones the first.
    TopRatio,
    /// Those where the class is the teacher's largest.
    Argmax,
}

/// What is kept of logits `[B, N, P]`; constants.
pub(crate) struct Refined {
    contribution: Contribution,
    /// 1 where a position is kept in a class's channel, `[B, N, P]`.
    pub(crate) keep: Tensor,
    /// What the logits are multiplied by, `[B, N, P]`.
    pub(crate) mask: Tensor,
    /// 1 where the class is the teacher's largest (of equal ones the first), `[B, N, P]`.
    pub(crate) largest: Tensor,
    /// The logarithm of the mask; far below all logits where it is 0.
    log_mask: Tensor,
}

/// Stands for the logarithm of 0: below all that logits of 1e4 can make.
const NOTHING: f64 = -1e9;

/// Logarithms of probability Q and contribution R: of shares they stay finite where Q is 0 in the
/// whole image.
fn logs(logits: &Tensor, contribution: Contribution) -> Result<(Tensor, Tensor)> {
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

impl Refined {
    pub(crate) fn of(
        teacher: &Tensor,
        contribution: Contribution,
        mask: Mask,
        keep: Keep,
        rho: f64,
    ) -> Result<Self> {
        let (_, n, p) = teacher.dims3()?;
        let (dtype, device) = (teacher.dtype(), teacher.device());
        let (log_q, log_r) = logs(teacher, contribution)?;
        let class = Tensor::arange(0, n as u32, device)?.reshape((1, n, 1))?;
        let largest = teacher.transpose(1, 2)?.contiguous()?.argmax(D::Minus1)?; // [B, P]
        let largest = largest.unsqueeze(1)?.broadcast_eq(&class)?.to_dtype(dtype)?;
        let keep = match keep {
            // Ties are kept: a few units in the last place are no difference.
            Keep::AboveMean => {
                let ulp = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
                let least = -(p as f64).ln() - 8.0 * ulp * (p as f64).ln().max(1.0);
                log_r.ge(least)?.to_dtype(dtype)?
            }
            Keep::TopRatio => top(&log_r, (rho * p as f64).ceil() as usize)?,
            Keep::Argmax => largest.clone(),
        };
        let nothing = Tensor::full(NOTHING, keep.shape(), device)?.to_dtype(dtype)?;
        let soft = ((log_r + log_q)? + (p as f64).ln())?;
        let log_mask = match mask {
            Mask::Binary => keep.zeros_like()?,
            Mask::Soft => soft.clone(),
        };
        let log_mask = keep.gt(0.0)?.where_cond(&log_mask, &nothing)?;
        let mask = match mask {
            Mask::Binary => keep.clone(),
            Mask::Soft => (&keep * soft.exp()?)?,
        };
        Ok(Self { contribution, keep, mask, largest, log_mask })
    }

    /// A network's own contributions times the mask, as shares of each class that add up to 1 over
    /// the positions, `[B, N, P]`.
    pub(crate) fn own_weights(&self, logits: &Tensor) -> Result<Tensor> {
        let (_, log_r) = logs(logits, self.contribution)?;
        Ok(log_softmax(&(log_r + &self.log_mask)?)?.exp()?)
    }
}

/// 1 for the `count` largest of each row along the last axis, of equal ones the first.
fn top(x: &Tensor, count: usize) -> Result<Tensor> {
    let (_, _, p) = x.dims3()?;
    let values = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let mut kept = vec![0u8; values.len()];
    for (row, kept) in values.chunks(p).zip(kept.chunks_mut(p)) {
        let mut order: Vec<usize> = (0..p).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.iter().take(count).for_each(|at| kept[*at] = 1);
    }
    Ok(Tensor::from_vec(kept, x.shape(), x.device())?.to_dtype(x.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn refined(values: &[[f64; 4]; 2], contribution: Contribution, mask: Mask, keep: Keep) -> Refined {
        let logits = Tensor::new(values, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        Refined::of(&logits, contribution, mask, keep, 0.3).unwrap()
    }

    fn rows(x: &Tensor) -> Vec<Vec<f64>> {
        x.squeeze(0).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn ties_are_kept_and_the_first_of_equal_ones_is_taken() {
        // Equal positions all contribute the mean, whatever the classes' values.
        let flat = [[0.3; 4], [-1.7; 4]];
        for contribution in [Contribution::ClassSoftmax, Contribution::SpatialSoftmax] {
            let all = refined(&flat, contribution, Mask::Binary, Keep::AboveMean);
            assert_eq!(rows(&all.keep), [[1.0; 4]; 2]);
            // 0.3 of 4 positions, rounded up
            let two = refined(&flat, contribution, Mask::Binary, Keep::TopRatio);
            assert_eq!(rows(&two.keep), [[1., 1., 0., 0.]; 2]);
        }
        let argmax =
            refined(&[[1., 2., 0., 5.], [1., 3., -1., 4.]], Default::default(), Mask::Binary, Keep::Argmax);
        assert_eq!(rows(&argmax.keep), [[1., 0., 1., 1.], [0., 1., 0., 0.]]);
    }

    #[test]
    fn the_definition_by_hand() {
        // Q of class 0: 3/4, 1/2, 1/4, 1/2, in all 2; so R is half of it, and the mean is 1/4.
        let logits = [[3f64.ln(), 0., 0., 0.], [0., 0., 3f64.ln(), 0.]];
        let soft = refined(&logits, Contribution::ClassSoftmax, Mask::Soft, Keep::AboveMean);
        assert_eq!(rows(&soft.keep)[0], [1., 1., 0., 1.]);
        let want = [4. * 0.375 * 0.75, 4. * 0.25 * 0.5, 0., 4. * 0.25 * 0.5];
        assert!(rows(&soft.mask)[0].iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-15), "{:?}", soft.mask);
    }

    #[test]
    fn shares_of_huge_logits_add_up() {
        let logits = [[1e4, -1e4, 1e4, -1e4], [-1e4; 4]];
        for mask in [Mask::Binary, Mask::Soft] {
            let refined = refined(&logits, Contribution::ClassSoftmax, mask, Keep::TopRatio);
            let student = Tensor::new(&[[-1e4, 1e4, -1e4, 1e4], [1e4, -1e4, 1e4, 0.]], &Device::Cpu).unwrap();
            let shares = rows(&refined.own_weights(&student.unsqueeze(0).unwrap()).unwrap());
            for (row, keep) in shares.iter().zip(rows(&refined.keep)) {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{row:?}");
                assert!(row.iter().zip(keep).all(|(share, keep)| keep == 1.0 || *share == 0.0), "{row:?}");
            }
        }
    }
}
