//! Significance of differences: paired tests of each method against the best other one and the baseline.

use serde::Serialize;
use stillhouse_metrics::mcnemar::{McNemar, p_value};
use stillhouse_metrics::multiple_testing::holm;
use stillhouse_metrics::paired::t_test;

use crate::results_table::BASELINE;

/// The score of one finished seed of a cell.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedScore {
    /// The seed.
    pub seed: u64,
    /// Accuracy or mean IoU in percent.
    pub percent: f64,
    /// Dataset index of each test image and whether it is classified correctly, if known.
    pub images: Option<(Vec<i64>, Vec<bool>)>,
}

/// A method compared with the best other one of the same student and column, on the same images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Registry id of the method.
    pub method: String,
    /// The other method with the highest mean; `baseline` counts, `baseline_plain` does not.
    pub other: String,
    /// Registry id of the student.
    pub student: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training ratio in percent.
    pub ratio: u64,
    /// Mean difference over the seeds that both have, in percentage points.
    pub difference: f64,
    /// McNemar's exact test, seed by seed.
    pub seeds: Vec<SeedTest>,
    /// Student's paired t over the seeds; none below two seeds.
    pub t: Option<f64>,
    /// Its two-sided p-value.
    pub p: Option<f64>,
}

/// A method compared with the student alone, on the same images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BaselineTest {
    /// Registry id of the method.
    pub method: String,
    /// Registry id of the student.
    pub student: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training ratio in percent.
    pub ratio: u64,
    /// Mean difference over the seeds that both have, in percentage points.
    pub difference: f64,
    /// Two-sided p-value: McNemar's exact test, the images of all seeds pooled; without paired images,
    /// Student's paired t over the seeds.
    pub p: Option<f64>,
    /// The p-value, corrected by Holm's method for the methods of this student and column.
    pub p_holm: Option<f64>,
}

/// McNemar's exact test on the test images of one seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SeedTest {
    /// The seed.
    pub seed: u64,
    /// Images that only the method classifies correctly.
    pub only_method: u64,
    /// Images that only the other one classifies correctly.
    pub only_other: u64,
    /// Two-sided p-value.
    pub p: f64,
}

/// Mean difference over shared seeds, McNemar's tests for equal test images, t and its p-value.
type Tests = (f64, Vec<SeedTest>, Option<f64>, Option<f64>);

/// Compares two methods; none without a shared seed.
fn compare(a: &[SeedScore], b: &[SeedScore]) -> Option<Tests> {
    let shared: Vec<(&SeedScore, &SeedScore)> =
        a.iter().filter_map(|x| Some((x, b.iter().find(|y| y.seed == x.seed)?))).collect();
    let (of_a, of_b): (Vec<f64>, Vec<f64>) = shared.iter().map(|(x, y)| (x.percent, y.percent)).unzip();
    let t = t_test(&of_a, &of_b).ok().filter(|t| t.pairs > 0)?;
    let seeds = shared.iter().filter_map(|(x, y)| {
        let ((indices, correct), (other_indices, other_correct)) = (x.images.as_ref()?, y.images.as_ref()?);
        // Different test images cannot be paired.
        if indices != other_indices {
            return None;
        }
        let test = McNemar::new(correct, other_correct).ok()?;
        Some(SeedTest { seed: x.seed, only_method: test.only_a, only_other: test.only_b, p: test.p })
    });
    let finite = |v: f64| v.is_finite().then_some(v);
    Some((t.mean_difference, seeds.collect(), finite(t.t), finite(t.p)))
}

/// Compares each method of one student and column with the best other one.
pub fn compare_with_best(
    cells: &[(String, Vec<SeedScore>)],
    student: &str,
    dataset: &str,
    ratio: u64,
) -> Vec<Comparison> {
    let mean = |seeds: &[SeedScore]| seeds.iter().map(|s| s.percent).sum::<f64>() / seeds.len() as f64;
    let done: Vec<_> = cells.iter().filter(|(_, seeds)| !seeds.is_empty()).collect();
    let comparisons = done.iter().filter_map(|(method, seeds)| {
        // The first of a tie counts.
        let others = done.iter().rev().filter(|(other, _)| other != method);
        let (other, other_seeds) = others.max_by(|a, b| mean(&a.1).total_cmp(&mean(&b.1)))?;
        let (difference, tests, t, p) = compare(seeds, other_seeds)?;
        Some(Comparison {
            method: method.clone(),
            other: other.clone(),
            student: student.into(),
            dataset: dataset.into(),
            ratio,
            difference,
            seeds: tests,
            t,
            p,
        })
    });
    comparisons.collect()
}

/// Compares each method of one student and column with the student alone.
pub fn compare_with_baseline(
    cells: &[(String, Vec<SeedScore>)],
    student: &str,
    dataset: &str,
    ratio: u64,
) -> Vec<BaselineTest> {
    let Some((_, baseline)) = cells.iter().find(|(method, _)| method == BASELINE) else { return Vec::new() };
    let tests = cells.iter().filter(|(method, _)| method != BASELINE).filter_map(|(method, seeds)| {
        let (difference, by_seed, _, t_p) = compare(seeds, baseline)?;
        let sum = |count: fn(&SeedTest) -> u64| by_seed.iter().map(count).sum();
        let pooled = p_value(sum(|s| s.only_method), sum(|s| s.only_other));
        Some(BaselineTest {
            method: method.clone(),
            student: student.into(),
            dataset: dataset.into(),
            ratio,
            difference,
            p: if by_seed.is_empty() { t_p } else { Some(pooled) },
            p_holm: None,
        })
    });
    let mut tests: Vec<BaselineTest> = tests.collect();
    let adjusted = holm(&tests.iter().filter_map(|test| test.p).collect::<Vec<f64>>());
    let tested = tests.iter_mut().filter(|test| test.p.is_some());
    tested.zip(adjusted).for_each(|(test, p)| test.p_holm = Some(p));
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(seed: u64, correct: &[bool]) -> SeedScore {
        let percent = 100.0 * correct.iter().filter(|r| **r).count() as f64 / correct.len() as f64;
        SeedScore { seed, percent, images: Some(((0..correct.len() as i64).collect(), correct.to_vec())) }
    }

    #[test]
    fn compares_each_method_with_the_best_other() {
        let (t, f) = (true, false);
        let cells = vec![
            ("a".to_string(), vec![seed(0, &[t, t, t, f]), seed(1, &[t, t, f, f])]),
            ("b".to_string(), vec![seed(0, &[t, f, f, f]), seed(1, &[f, t, f, f])]),
            ("c".to_string(), vec![seed(0, &[f, f, f, f])]),
            ("d".to_string(), vec![]),
        ];
        let all = compare_with_best(&cells, "s", "x", 80);
        let who: Vec<_> = all.iter().map(|c| (c.method.as_str(), c.other.as_str())).collect();
        assert_eq!(who, [("a", "b"), ("b", "a"), ("c", "a")]);
        assert_eq!(all[0].difference, (50.0 + 25.0) / 2.0);
        assert_eq!((all[0].seeds[0].only_method, all[0].seeds[0].only_other), (2, 0));
        assert!((all[0].seeds[0].p - 0.5).abs() < 1e-12, "two of two: 2 / 4");
        // d = 50, 25: t = mean / (std / sqrt 2) = 37.5 / 12.5
        assert!((all[0].t.unwrap() - 3.0).abs() < 1e-12);
        assert_eq!((all[2].t, all[2].seeds.len(), all[2].difference), (None, 1, -75.0));
    }

    #[test]
    fn compares_each_method_with_the_baseline() {
        let (good, bad) = ([true; 8], [false; 8]);
        let cells = vec![
            ("kd".to_string(), vec![seed(0, &good)]),
            (BASELINE.to_string(), vec![seed(0, &bad), seed(1, &bad)]),
            ("sp".to_string(), vec![seed(0, &[true, false, false, false, false, false, false, false])]),
            ("masks".to_string(), vec![SeedScore { seed: 0, percent: 10.0, images: None }]),
            ("later".to_string(), vec![]),
        ];
        let tests = compare_with_baseline(&cells, "s", "x", 80);
        assert_eq!(tests.iter().map(|t| t.method.as_str()).collect::<Vec<_>>(), ["kd", "sp", "masks"]);
        assert_eq!((tests[0].difference, tests[1].difference), (100.0, 12.5));
        // 2 / 2^8, times the two tests; 2 / 2^1 is 1.
        let near = |p: Option<f64>, want: f64| (p.unwrap() - want).abs() < 1e-12;
        assert!(near(tests[0].p, 2.0 / 256.0) && near(tests[0].p_holm, 4.0 / 256.0));
        assert_eq!((tests[1].p, tests[1].p_holm), (Some(1.0), Some(1.0)));
        assert_eq!((tests[2].p, tests[2].p_holm), (None, None));
        assert!(compare_with_baseline(&cells[..1], "s", "x", 80).is_empty());
    }

    #[test]
    fn does_not_pair_different_images() {
        let mut b = seed(0, &[true, false]);
        b.images.as_mut().unwrap().0 = vec![7, 8];
        let (_, tests, ..) = compare(&[seed(0, &[true, true])], &[b]).unwrap();
        assert!(tests.is_empty());
        assert!(compare(&[seed(0, &[true])], &[seed(1, &[true])]).is_none());
    }
}
