//! Squared maximum mean discrepancy (MMD) between teacher and student, per group of a batch.
//!
//! Three losses use it with different groups: single images (`nst`), the images of a class
//! (`class_centric`) and the whole batch (`nst_all`). With weights `n_g / B`, Jensen's inequality gives
//! `nst_all <= class_centric <= nst`.
//!
//! Value and gradient are computed together without candle's graph: the teacher needs no gradient, a
//! symmetric product needs one backward product instead of two, and only the gradient is stored. The
//! result can be differentiated once, not twice.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::{Error, Result};

use super::reduce::sum;

/// Kernel of two points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// `(x . y)^2`
    #[default]
    Poly2,
    /// `x . y`
    Linear,
    /// `exp(-|x - y|^2 / 2)`
    Gaussian,
}

/// Weights of the groups in [`Groups::average`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupWeight {
    /// Share of the batch, `n_g / B`.
    #[default]
    NOverB,
    /// Equal weights, `1 / G`.
    Uniform,
}

/// A partition of a batch into groups of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    images: usize,
    buckets: Vec<Bucket>,
}

/// Groups of equal size, processed together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bucket {
    /// Images per group.
    size: usize,
    /// Image indices, grouped.
    images: Vec<u32>,
}

impl Groups {
    /// Groups images with equal ids.
    ///
    /// # Errors
    /// If `ids` is empty.
    pub fn by_id(ids: &[u32]) -> Result<Self> {
        if ids.is_empty() {
            return Err(Error::incompatible("groups", "expected a batch of at least one image, found none"));
        }
        let mut groups = BTreeMap::<u32, Vec<u32>>::new();
        for (image, id) in (0..).zip(ids) {
            groups.entry(*id).or_default().push(image);
        }
        let mut buckets = BTreeMap::<usize, Vec<u32>>::new();
        for group in groups.into_values() {
            buckets.entry(group.len()).or_default().extend(group);
        }
        let buckets = buckets.into_iter().map(|(size, images)| Bucket { size, images }).collect();
        Ok(Self { images: ids.len(), buckets })
    }

    /// One group per image.
    pub fn per_image(images: usize) -> Result<Self> {
        Self::by_id(&(0..images as u32).collect::<Vec<_>>())
    }

    /// One group of all images.
    pub fn whole_batch(images: usize) -> Result<Self> {
        Self::by_id(&vec![0; images])
    }

    /// Sizes of the groups in the order of [`grouped_mmd2`]'s values.
    pub fn sizes(&self) -> Vec<usize> {
        self.buckets.iter().flat_map(|b| std::iter::repeat_n(b.size, b.images.len() / b.size)).collect()
    }

    /// Weighted mean of one value per group, `[G] -> []`.
    pub fn average(&self, values: &Tensor, weight: GroupWeight) -> Result<Tensor> {
        let sizes = self.sizes();
        let groups = sizes.len();
        let share = |size: usize| match weight {
            GroupWeight::NOverB => size as f64 / self.images as f64,
            GroupWeight::Uniform => 1.0 / groups as f64,
        };
        let weights: Vec<f64> = sizes.into_iter().map(share).collect();
        let weights = Tensor::from_vec(weights, groups, values.device())?.to_dtype(values.dtype())?;
        sum(&(values * weights)?)
    }
}

/// Squared MMD of each group, `[G]`: the squared distance between the means of the teacher's and of the
/// student's points in the kernel's feature space, over all points of the group's images.
///
/// `teacher [B, P_T, d]` and `student [B, P_S, d]` have P points of length d per image. Only the
/// student gets a gradient, and only of first order. Rounding may cause tiny negative values.
///
/// # Errors
/// If batch sizes or lengths of the points differ.
pub fn grouped_mmd2(teacher: &Tensor, student: &Tensor, groups: &Groups, kernel: Kernel) -> Result<Tensor> {
    let ((bt, pt, dt), (bs, ps, ds)) = (teacher.dims3()?, student.dims3()?);
    if (bt, dt) != (bs, ds) || bt != groups.images {
        return Err(Error::incompatible(
            "MMD",
            format!(
                "expected points [B, P, d] of equal B and d, found {:?} (teacher) and {:?} (student) for {} images",
                teacher.dims(),
                student.dims(),
                groups.images
            ),
        ));
    }
    let values = groups.buckets.iter().map(|bucket| {
        let t = bucket.points(&teacher.detach())?;
        let s = bucket.points(student)?;
        let form = cheaper(kernel, bucket.size * pt, bucket.size * ps, ds);
        let (value, gradient) = mmd2(&t, &s.detach(), kernel, form)?;
        with_gradient(&value, &gradient, &s)
    });
    let values = values.collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&values, 0)?)
}

impl Bucket {
    /// `[B, P, d] -> [groups, size * P, d]`
    fn points(&self, features: &Tensor) -> Result<Tensor> {
        let (b, p, d) = features.dims3()?;
        let in_order = self.images.iter().copied().eq(0..b as u32);
        let own = if in_order {
            features.clone()
        } else {
            features.index_select(&Tensor::new(self.images.as_slice(), features.device())?, 0)?
        };
        Ok(own.reshape((self.images.len() / self.size, self.size * p, d))?)
    }
}

/// Two algorithms for the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Means over all pairs of points, for every kernel. The matrix of pairs is computed in tiles.
    Gram,
    /// Difference of the points' mean features: `d` values (linear) or `d x d` (poly2).
    Moment,
}

/// The cheaper form for groups of `nt` and `ns` points of length `d`. Its matrices are never larger
/// than the points.
fn cheaper(kernel: Kernel, nt: usize, ns: usize, d: usize) -> Form {
    match kernel {
        Kernel::Linear => Form::Moment,
        Kernel::Gaussian => Form::Gram,
        Kernel::Poly2 if d * (nt + ns) < nt * nt + ns * ns + nt * ns => Form::Moment,
        Kernel::Poly2 => Form::Gram,
    }
}

/// Squared MMD `[g]` and its gradient with respect to the student's points: `t [g, N_T, d]`,
/// `s [g, N_S, d]`.
fn mmd2(t: &Tensor, s: &Tensor, kernel: Kernel, form: Form) -> Result<(Tensor, Tensor)> {
    match (form, kernel) {
        (Form::Moment, Kernel::Linear) => {
            let difference = (mean_point(t)? - mean_point(s)?)?; // [g, 1, d]
            let slope = (&difference * (-2.0 / s.dim(1)? as f64))?;
            Ok((group_sums(&difference.sqr()?)?.to_dtype(s.dtype())?, slope.broadcast_as(s.shape())?))
        }
        (Form::Moment, Kernel::Poly2) => {
            let difference = (second_moment(t)? - second_moment(s)?)?; // [g, d, d]
            let slope = (s.matmul(&difference)? * (-4.0 / s.dim(1)? as f64))?;
            Ok((group_sums(&difference.sqr()?)?.to_dtype(s.dtype())?, slope))
        }
        _ => gram(t, s, kernel, tile(s.dim(0)?, t.dim(1)?.max(s.dim(1)?))),
    }
}

/// `[g, N, d] -> [g, 1, d]`
fn mean_point(x: &Tensor) -> Result<Tensor> {
    let (g, n, _) = x.dims3()?;
    let share = Tensor::full(1.0 / n as f64, (g, 1, n), x.device())?.to_dtype(x.dtype())?;
    Ok(share.matmul(&x.contiguous()?)?)
}

/// Mean of `x x^T`, `[g, N, d] -> [g, d, d]`.
fn second_moment(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    Ok((x.transpose(1, 2)?.matmul(&x)? / x.dim(1)? as f64)?)
}

/// `[g, a, b] -> [g]`: rows are summed in the tensor's dtype, sums of rows in f64.
fn group_sums(x: &Tensor) -> Result<Tensor> {
    Ok(x.sum(2)?.to_dtype(DType::F64)?.sum(1)?)
}

/// Rows of a tile of the matrix of pairs, which limits it to a few million values.
fn tile(groups: usize, columns: usize) -> usize {
    ((1 << 22) / (groups * columns).max(1)).max(64)
}

/// The Gram form: `mean k(t, t') + mean k(s, s') - 2 mean k(t, s)` and its gradient.
fn gram(t: &Tensor, s: &Tensor, kernel: Kernel, tile: usize) -> Result<(Tensor, Tensor)> {
    let (nt, ns) = (t.dim(1)? as f64, s.dim(1)? as f64);
    let mut total = (same_side(t, kernel, tile)? / (nt * nt))?;
    total = (total + (same_side(s, kernel, tile)? / (ns * ns))?)?;
    let mut slopes = Vec::new();
    for start in (0..s.dim(1)?).step_by(tile) {
        let rows = s.narrow(1, start, tile.min(s.dim(1)? - start))?.contiguous()?;
        let across = Pairs::new(&rows, t, kernel)?;
        total = (total - (group_sums(&across.k)? * (2.0 / (nt * ns)))?)?;
        let within = Pairs::new(&rows, s, kernel)?;
        let slope = ((within.slope(&rows, s)? * (2.0 / (ns * ns)))?
            - (across.slope(&rows, t)? * (2.0 / (nt * ns)))?)?;
        slopes.push(slope);
    }
    Ok((total.to_dtype(s.dtype())?, Tensor::cat(&slopes, 1)?))
}

/// Sum of `k(x, x')` over all pairs, `[g]` in f64. By symmetry, pairs to the right of a diagonal tile
/// count twice.
fn same_side(x: &Tensor, kernel: Kernel, tile: usize) -> Result<Tensor> {
    let (g, n, _) = x.dims3()?;
    let mut total = Tensor::zeros(g, DType::F64, x.device())?;
    for start in (0..n).step_by(tile) {
        let height = tile.min(n - start);
        let rows = x.narrow(1, start, height)?.contiguous()?;
        let pairs = Pairs::new(&rows, &x.narrow(1, start, n - start)?, kernel)?.k; // [g, height, n - start]
        let sums = (group_sums(&pairs)? * 2.0)?;
        total = ((total + sums)? - group_sums(&pairs.narrow(2, 0, height)?.contiguous()?)?)?;
    }
    Ok(total)
}

/// Kernel values `[g, n, m]` of points `x [g, n, d]` with points `y [g, m, d]`.
struct Pairs {
    kernel: Kernel,
    dot: Tensor,
    k: Tensor,
}

impl Pairs {
    fn new(x: &Tensor, y: &Tensor, kernel: Kernel) -> Result<Self> {
        let dot = x.matmul(&y.transpose(1, 2)?)?;
        let k = match kernel {
            Kernel::Linear => dot.clone(),
            Kernel::Poly2 => dot.sqr()?,
            Kernel::Gaussian => {
                let half = |z: &Tensor| z.contiguous()?.sqr()?.sum_keepdim(2)? / 2.0;
                dot.broadcast_sub(&half(x)?)?.broadcast_sub(&half(y)?.transpose(1, 2)?)?.exp()?
            }
        };
        Ok(Self { kernel, dot, k })
    }

    /// `sum_j dk(x_i, y_j) / dx_i`, `[g, n, d]`.
    fn slope(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(match self.kernel {
            Kernel::Linear => self.dot.ones_like()?.matmul(y)?,
            Kernel::Poly2 => (self.dot.matmul(y)? * 2.0)?,
            Kernel::Gaussian => (self.k.matmul(y)? - x.broadcast_mul(&self.k.sum_keepdim(2)?)?)?,
        })
    }
}

/// The value `[g]` with `gradient [g, n, d]` as its derivative with respect to `x`: adds a linear
/// function of `x` with this gradient and subtracts its value.
pub(crate) fn with_gradient(value: &Tensor, gradient: &Tensor, x: &Tensor) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(value.clone());
    }
    let linear = (x * gradient)?.sum((1, 2))?;
    Ok((value + (&linear - linear.detach())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use stillhouse_core::Rng;

    fn points(name: &str, shape: (usize, usize, usize)) -> Tensor {
        let mut draw = Rng::new(5).stream(name).at(0, 0);
        let values: Vec<f64> = (0..shape.0 * shape.1 * shape.2).map(|_| draw.normal()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn worst(a: &Tensor, b: &Tensor) -> f64 {
        let gap = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        gap.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
    }

    #[test]
    fn gram_and_moment_forms_agree() {
        for kernel in [Kernel::Poly2, Kernel::Linear] {
            let (t, s) = (points("t", (3, 7, 5)), points("s", (3, 4, 5)));
            let (gram_value, gram_slope) = mmd2(&t, &s, kernel, Form::Gram).unwrap();
            let (value, slope) = mmd2(&t, &s, kernel, Form::Moment).unwrap();
            assert!(worst(&gram_value, &value) < 1e-10 && worst(&gram_slope, &slope) < 1e-10, "{kernel:?}");
            let single = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
            let (in_f32, _) = mmd2(&single(&t), &single(&s), kernel, Form::Gram).unwrap();
            let relative = ((in_f32.to_dtype(DType::F64).unwrap() / &value).unwrap() - 1.0).unwrap();
            assert!(worst(&relative, &relative.zeros_like().unwrap()) < 1e-4, "{kernel:?}");
        }
    }

    #[test]
    fn is_independent_of_the_tile_size() {
        for kernel in [Kernel::Poly2, Kernel::Linear, Kernel::Gaussian] {
            let (t, s) = (points("t", (2, 11, 5)), points("s", (2, 7, 5)));
            let (value, slope) = gram(&t, &s, kernel, 100).unwrap();
            for tile in [1, 3, 7] {
                let (v, g) = gram(&t, &s, kernel, tile).unwrap();
                assert!(worst(&value, &v) < 1e-12 && worst(&slope, &g) < 1e-12, "{kernel:?} {tile}");
            }
        }
    }

    /// Compares with loops over pairs.
    #[test]
    fn matches_the_definition() {
        let (t, s) = (points("t", (3, 2, 3)), points("s", (3, 4, 3)));
        let ids = [8, 2, 8];
        let groups = Groups::by_id(&ids).unwrap();
        assert_eq!(groups.sizes(), [1, 2]);
        let (tv, sv) = (t.to_vec3::<f64>().unwrap(), s.to_vec3::<f64>().unwrap());
        for kernel in [Kernel::Poly2, Kernel::Linear, Kernel::Gaussian] {
            let k = |a: &[f64], b: &[f64]| {
                let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                let distance: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
                match kernel {
                    Kernel::Poly2 => dot * dot,
                    Kernel::Linear => dot,
                    Kernel::Gaussian => (-distance / 2.0).exp(),
                }
            };
            let mean = |a: &[&Vec<f64>], b: &[&Vec<f64>]| {
                let all: f64 = a.iter().map(|a| b.iter().map(|b| k(a, b)).sum::<f64>()).sum();
                all / (a.len() * b.len()) as f64
            };
            let want = [&[1][..], &[0, 2]].map(|images| {
                let ts: Vec<_> = images.iter().flat_map(|i| &tv[*i]).collect();
                let ss: Vec<_> = images.iter().flat_map(|i| &sv[*i]).collect();
                mean(&ts, &ts) + mean(&ss, &ss) - 2.0 * mean(&ts, &ss)
            });
            let got = grouped_mmd2(&t, &s, &groups, kernel).unwrap().to_vec1::<f64>().unwrap();
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{kernel:?}: {got:?} {want:?}");
        }
    }

    #[test]
    fn gradients_match_central_differences() {
        let (t, s) = (points("t", (3, 2, 3)), points("s", (3, 4, 3)));
        let groups = Groups::by_id(&[1, 0, 1]).unwrap();
        for kernel in [Kernel::Poly2, Kernel::Linear, Kernel::Gaussian] {
            let value = |s: &Tensor| {
                // a square root, so that the gradient passes through later operations
                let v = grouped_mmd2(&t, s, &groups, kernel).unwrap().sqrt().unwrap();
                groups.average(&v, GroupWeight::NOverB).unwrap()
            };
            let var = Var::from_tensor(&s).unwrap();
            let got = value(var.as_tensor()).backward().unwrap().get(&var).unwrap().flatten_all().unwrap();
            let at = |x: &[f64]| {
                value(&Tensor::from_slice(x, s.shape(), &Device::Cpu).unwrap()).to_scalar().unwrap()
            };
            let x = s.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let want = stillhouse_testkit::finite_diff::central_difference(at, &x, 1e-5);
            stillhouse_testkit::finite_diff::assert_close(
                &got.to_vec1::<f64>().unwrap(),
                &want,
                1e-6,
                1e-8,
                "gradient",
            );
        }
    }

    #[test]
    fn chooses_the_cheaper_form() {
        // ResNet50 -> ResNet18 at 224, classes of 8: Gram for the first stage, moments after it.
        let forms = [(256, 64, 3136), (512, 128, 784), (1024, 256, 196), (2048, 512, 49)]
            .map(|(ct, cs, d)| cheaper(Kernel::Poly2, 8 * ct, 8 * cs, d));
        assert_eq!(forms, [Form::Gram, Form::Moment, Form::Moment, Form::Moment]);
    }

    #[test]
    fn rejects_mismatched_points() {
        let (t, s) = (points("t", (3, 2, 3)), points("s", (3, 4, 2)));
        let groups = Groups::per_image(3).unwrap();
        assert!(
            grouped_mmd2(&t, &s, &groups, Kernel::Linear).unwrap_err().to_string().contains("equal B and d")
        );
        assert!(grouped_mmd2(&t, &t, &Groups::per_image(2).unwrap(), Kernel::Linear).is_err());
        assert!(Groups::by_id(&[]).is_err());
    }
}
