//! Exact t-SNE (van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008): `O(n^2)` in time
//! and memory. The initial positions come from a counter-based generator and sums run in a fixed order: the same
//! points always have the same embedding.

use stillhouse_core::Rng;

/// Most points that [`tsne`] embeds.
pub const MAX_POINTS: usize = 2000;

/// Steps of the gradient descent; the first quarter uses early exaggeration.
const STEPS: usize = 600;
const EXAGGERATED: usize = 150;
const EXAGGERATION: f64 = 12.0;

/// Embeds points in the plane. `perplexity` is the effective number of neighbors of a point, at most a third of
/// the other points. Returns `None` for more than [`MAX_POINTS`] points, for points of different lengths or that
/// are not finite; fewer than four points are embedded at 0.
///
/// *Equation.* `p_{j|i} ~ exp(-d_ij^2 / 2 s_i^2)` with `s_i` such that its perplexity is reached,
/// `p_ij = (p_{j|i} + p_{i|j}) / 2n`, `q_ij ~ 1 / (1 + |y_i - y_j|^2)`, and gradient descent on
/// `KL(P || Q)` with momentum 0.5, then 0.8, and gains.
pub fn tsne(points: &[Vec<f32>], perplexity: f64, seed: u64) -> Option<Vec<[f64; 2]>> {
    let n = points.len();
    let valid = |p: &Vec<f32>| p.len() == points[0].len() && p.iter().all(|v| v.is_finite());
    if n > MAX_POINTS || !points.iter().all(valid) {
        return None;
    }
    if n < 4 {
        return Some(vec![[0.0; 2]; n]);
    }
    let p = affinities(points, perplexity.min((n - 1) as f64 / 3.0).max(1.0));
    let rng = Rng::new(seed).stream("tsne");
    let mut y: Vec<[f64; 2]> = (0..n as u64).map(|i| rng.at(0, i).normals()).collect();
    y.iter_mut().flatten().for_each(|v| *v *= 1e-4);
    let mut velocity = vec![[0.0; 2]; n];
    let mut gains = vec![[1.0f64; 2]; n];
    let mut weights = vec![0.0; n * n];
    // The step of scikit-learn's "auto": n / exaggeration / 4, at least 50.
    let rate = (n as f64 / EXAGGERATION / 4.0).max(50.0);
    for step in 0..STEPS {
        let (attract, momentum) = if step < EXAGGERATED { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        let mut sum = 0.0;
        for i in 0..n {
            for j in 0..n {
                let (a, b) = (y[i][0] - y[j][0], y[i][1] - y[j][1]);
                let weight = if i == j { 0.0 } else { 1.0 / (1.0 + a * a + b * b) };
                weights[i * n + j] = weight;
                sum += weight;
            }
        }
        for i in 0..n {
            let mut gradient = [0.0; 2];
            for j in 0..n {
                let weight = weights[i * n + j];
                let pull = 4.0 * (attract * p[i * n + j] - weight / sum) * weight;
                gradient[0] += pull * (y[i][0] - y[j][0]);
                gradient[1] += pull * (y[i][1] - y[j][1]);
            }
            for axis in 0..2 {
                let (g, v) = (gradient[axis], &mut velocity[i][axis]);
                let gain = &mut gains[i][axis];
                *gain = if (g > 0.0) == (*v > 0.0) { (*gain * 0.8).max(0.01) } else { *gain + 0.2 };
                *v = momentum * *v - rate * *gain * g;
            }
        }
        for (y, v) in y.iter_mut().zip(&velocity) {
            y[0] += v[0];
            y[1] += v[1];
        }
        for axis in 0..2 {
            let mean = y.iter().map(|y| y[axis]).sum::<f64>() / n as f64;
            y.iter_mut().for_each(|y| y[axis] -= mean);
        }
    }
    Some(y)
}

/// `p_ij`, `[n, n]`, row by row; sums to 1.
fn affinities(points: &[Vec<f32>], perplexity: f64) -> Vec<f64> {
    let n = points.len();
    let mut distances = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..i {
            let d: f64 = points[i].iter().zip(&points[j]).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            (distances[i * n + j], distances[j * n + i]) = (d, d);
        }
    }
    let mut conditional = vec![0.0; n * n];
    for i in 0..n {
        neighbors(&distances[i * n..][..n], i, perplexity.ln(), &mut conditional[i * n..][..n]);
    }
    let mut p = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            let both = conditional[i * n + j] + conditional[j * n + i];
            p[i * n + j] = (both / (2 * n) as f64).max(if i == j { 0.0 } else { 1e-12 });
        }
    }
    p
}

/// Computes `p_{j|i}` of a given entropy by bisection.
fn neighbors(squared: &[f64], own: usize, entropy: f64, out: &mut [f64]) {
    let nearest = squared.iter().enumerate().filter(|(j, _)| *j != own).map(|(_, d)| *d);
    let nearest = nearest.fold(f64::INFINITY, f64::min);
    let scale = squared.iter().sum::<f64>() / squared.len() as f64;
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut beta = if scale > 0.0 { 1.0 / scale } else { 1.0 };
    for _ in 0..200 {
        let mut sum = 0.0;
        for (j, (p, d)) in out.iter_mut().zip(squared).enumerate() {
            // Relative to the nearest point, so that no row underflows to zeros.
            *p = if j == own { 0.0 } else { (-beta * (d - nearest)).exp() };
            sum += *p;
        }
        out.iter_mut().for_each(|p| *p /= sum);
        let found: f64 = -out.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>();
        if (found - entropy).abs() < 1e-7 {
            break;
        }
        if found > entropy {
            low = beta;
            beta = if high.is_finite() { (beta + high) / 2.0 } else { beta * 2.0 };
        } else {
            high = beta;
            beta = (beta + low) / 2.0;
        }
        if !beta.is_finite() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three clusters far apart in ten dimensions.
    fn clusters() -> Vec<Vec<f32>> {
        let rng = Rng::new(5);
        let point = |i: u64| -> Vec<f32> {
            let mut draw = rng.at(0, i);
            (0..10).map(|d| draw.normal() as f32 * 0.1 + if d == i % 3 { 5.0 } else { 0.0 }).collect()
        };
        (0..60).map(point).collect()
    }

    #[test]
    fn separates_clusters() {
        let y = tsne(&clusters(), 10.0, 0).unwrap();
        let distance = |a: &[f64; 2], b: &[f64; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
        for i in 0..60 {
            let nearest = (0..60)
                .filter(|j| *j != i)
                .min_by(|a, b| distance(&y[i], &y[*a]).total_cmp(&distance(&y[i], &y[*b])));
            assert_eq!(nearest.unwrap() % 3, i % 3, "the nearest of {i} is of another cluster");
        }
        assert_eq!(tsne(&clusters(), 10.0, 0).unwrap(), y, "deterministic");
    }

    #[test]
    fn affinities_reach_the_perplexity() {
        let points = clusters();
        let p = affinities(&points, 10.0);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        let squared: Vec<f64> = points
            .iter()
            .map(|q| q.iter().zip(&points[0]).map(|(a, b)| f64::from(a - b).powi(2)).sum())
            .collect();
        let mut row = vec![0.0; 60];
        neighbors(&squared, 0, 10f64.ln(), &mut row);
        let entropy: f64 = -row.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>();
        assert!((entropy.exp() - 10.0).abs() < 1e-4, "{}", entropy.exp());
    }

    #[test]
    fn accepts_or_rejects_degenerate_points() {
        assert_eq!(tsne(&[], 30.0, 0), Some(vec![]));
        assert_eq!(tsne(&vec![vec![1.0]; 3], 30.0, 0), Some(vec![[0.0; 2]; 3]));
        assert_eq!(tsne(&[vec![f32::NAN]], 30.0, 0), None);
        assert_eq!(tsne(&[vec![1.0], vec![1.0, 2.0]], 30.0, 0), None);
        let same = tsne(&vec![vec![1.0, 2.0]; 8], 30.0, 0).unwrap();
        assert!(same.iter().flatten().all(|v| v.is_finite()));
    }
}
