//! Properties of metrics and statistics for random inputs.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use stillhouse_core::Rng;
use stillhouse_metrics::bootstrap::{Bootstrap, quantile};
use stillhouse_metrics::calibration::Calibration;
use stillhouse_metrics::mcnemar::McNemar;
use stillhouse_metrics::paired::{Distribution, t_test, wilcoxon};
use stillhouse_metrics::seeds::SeedSummary;
use stillhouse_metrics::special_functions::{regularized_beta, student_t_quantile, student_t_two_sided};
use stillhouse_metrics::topk::{argmax, rank};
use stillhouse_metrics::{ConfusionMatrix, classification, segmentation};

const C: usize = 5;

fn labels() -> impl Strategy<Value = Vec<(u32, u32)>> {
    vec((0..C as u32, 0..C as u32), 0..60)
}

fn matrix(pairs: &[(u32, u32)]) -> ConfusionMatrix {
    let (truth, predicted): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
    ConfusionMatrix::from_labels(C, &truth, &predicted).unwrap()
}

fn near(a: f64, b: f64) -> bool {
    (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-9 * (1.0 + a.abs())
}

/// `a <= b`, if both are defined.
fn at_most(a: f64, b: f64) -> bool {
    a.is_nan() || b.is_nan() || a <= b + 1e-12
}

fn is_fraction(v: f64) -> bool {
    v.is_nan() || (0.0..=1.0 + 1e-12).contains(&v)
}

/// Stores failing inputs in a file next to this one.
fn config() -> ProptestConfig {
    let regressions = FileFailurePersistence::WithSource("regressions");
    ProptestConfig { failure_persistence: Some(Box::new(regressions)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn counts_are_independent_of_order_and_batches(pairs in labels(), cut in 0usize..60) {
        let whole = matrix(&pairs);
        let reversed: Vec<_> = pairs.iter().rev().copied().collect();
        prop_assert_eq!(&whole, &matrix(&reversed));
        let (a, b) = pairs.split_at(cut.min(pairs.len()));
        let mut sum = matrix(a);
        sum.merge(&matrix(b)).unwrap();
        prop_assert_eq!(&whole, &sum);
        prop_assert_eq!(whole.total(), pairs.len() as u64);
        prop_assert_eq!(whole.support().iter().sum::<u64>(), whole.predicted().iter().sum::<u64>());
    }

    #[test]
    fn scores_are_in_range(pairs in labels()) {
        let m = matrix(&pairs);
        let s = classification::Scores::new(&m);
        prop_assert_eq!(s.overall_accuracy.is_nan(), pairs.is_empty());
        for v in s.recall.iter().chain(&s.precision).chain(&s.f1) {
            prop_assert!(is_fraction(*v));
        }
        for v in [s.overall_accuracy, s.macro_recall_zero, s.macro_f1_present, s.weighted_f1] {
            prop_assert!(is_fraction(v));
        }
        prop_assert!(at_most(s.macro_recall_zero, s.macro_recall_present));
        prop_assert!(at_most(s.macro_f1_zero, s.macro_f1_present));
        prop_assert!(at_most(s.kappa, 1.0) && at_most(s.kappa, s.overall_accuracy));
        // kappa is symmetric in truth and prediction
        let turned: Vec<_> = pairs.iter().map(|(t, p)| (*p, *t)).collect();
        let t = classification::Scores::new(&matrix(&turned));
        prop_assert!(near(s.kappa, t.kappa) && near(s.kappa_linear, t.kappa_linear));
        prop_assert!(near(s.kappa_quadratic, t.kappa_quadratic));
        for (r, p) in s.recall.iter().zip(&t.precision) {
            prop_assert!(near(*r, *p));
        }
    }

    #[test]
    fn iou_is_bounded_by_recall(pairs in labels()) {
        let m = matrix(&pairs);
        let s = segmentation::Scores::new(&m);
        let c = classification::Scores::new(&m);
        prop_assert!(near(s.pixel_accuracy, c.overall_accuracy));
        prop_assert!(near(s.mean_class_accuracy, c.macro_recall_present));
        for (iou, (recall, f1)) in s.iou.iter().zip(c.recall.iter().zip(&c.f1)) {
            prop_assert!(is_fraction(*iou) && at_most(*iou, *recall));
            prop_assert!(near(2.0 * iou / (1.0 + iou), *f1)); // Dice from Jaccard
        }
        prop_assert!(at_most(s.miou_zero, s.miou_union) && at_most(s.miou_union, s.miou_truth));
    }

    #[test]
    fn ranks_are_a_permutation(scores in vec(prop_oneof![-3.0..3.0f64, Just(1.0), Just(f64::NAN)], 1..12)) {
        let mut ranks: Vec<usize> = (0..scores.len()).map(|t| rank(&scores, t).unwrap()).collect();
        prop_assert_eq!(ranks[argmax(&scores).unwrap()], 0);
        ranks.sort_unstable();
        prop_assert_eq!(ranks, (0..scores.len()).collect::<Vec<_>>());
    }

    #[test]
    fn calibration_scores_are_in_range(
        rows in vec((vec(-30.0..30.0f64, C), 0..C), 1..40), bins in 1usize..20
    ) {
        let mut c = Calibration::new(bins).unwrap();
        for (logits, target) in &rows {
            c.add_logits(logits, *target).unwrap();
        }
        prop_assert_eq!(c.bin_count().iter().sum::<u64>(), rows.len() as u64);
        prop_assert!(is_fraction(c.ece()) && is_fraction(c.mce()) && c.ece() <= c.mce() + 1e-12);
        prop_assert!((0.0..=2.0 + 1e-12).contains(&c.brier()) && c.nll() >= 0.0);
        prop_assert!(c.mean_confidence() >= 1.0 / C as f64 - 1e-12 && is_fraction(c.mean_confidence()));
        // one bin: the gap of accuracy and mean confidence
        let mut one = Calibration::new(1).unwrap();
        for (logits, target) in &rows {
            one.add_logits(logits, *target).unwrap();
        }
        prop_assert!(near(one.ece(), (one.bin_accuracy()[0] - one.mean_confidence()).abs()));
        // a shift of all logits changes nothing
        let mut shifted = Calibration::new(bins).unwrap();
        for (logits, target) in &rows {
            let moved: Vec<f64> = logits.iter().map(|z| z + 7.0).collect();
            shifted.add_logits(&moved, *target).unwrap();
        }
        prop_assert!(near(c.nll(), shifted.nll()) && near(c.brier(), shifted.brier()));
    }

    #[test]
    fn seed_summaries_are_equivariant(values in vec(-50.0..50.0f64, 2..20), shift in -1e3..1e3f64) {
        let s = SeedSummary::new(&values);
        prop_assert!(s.min <= s.median && s.median <= s.max);
        prop_assert!(s.min - 1e-9 <= s.mean && s.mean <= s.max + 1e-9);
        prop_assert!(s.ci95_low <= s.mean && s.mean <= s.ci95_high);
        let moved = SeedSummary::new(&values.iter().map(|v| 2.0 * v + shift).collect::<Vec<_>>());
        prop_assert!(near(2.0 * s.mean + shift, moved.mean) && near(2.0 * s.std, moved.std));
        prop_assert!(near(2.0 * s.ci95_low + shift, moved.ci95_low));
        let naive = values.iter().sum::<f64>() / values.len() as f64;
        prop_assert!(near(naive, s.mean));
    }

    #[test]
    fn paired_tests_are_antisymmetric(pairs in vec((-9.0..9.0f64, -9.0..9.0f64), 2..15)) {
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let (ab, ba) = (t_test(&a, &b).unwrap(), t_test(&b, &a).unwrap());
        prop_assert!(near(ab.t, -ba.t) && near(ab.p, ba.p) && is_fraction(ab.p));
        for d in [Distribution::Exact, Distribution::Normal] {
            let (ab, ba) = (wilcoxon(&a, &b, d).unwrap(), wilcoxon(&b, &a, d).unwrap());
            prop_assert!(near(ab.statistic, ba.statistic) && near(ab.p, ba.p) && is_fraction(ab.p));
            prop_assert!(ab.p > 0.0);
        }
    }

    #[test]
    fn exact_wilcoxon_enumerates_sign_patterns(d in vec(-4i32..5, 1..10)) {
        let d: Vec<f64> = d.into_iter().map(f64::from).collect();
        let test = wilcoxon(&d, &vec![0.0; d.len()], Distribution::Exact).unwrap();
        let sizes: Vec<f64> = d.iter().filter(|v| **v != 0.0).map(|v| v.abs()).collect();
        let mean_rank = |v: f64| {
            let below = sizes.iter().filter(|s| **s < v).count() as f64;
            let equal = sizes.iter().filter(|s| **s == v).count() as f64;
            below + (equal + 1.0) / 2.0
        };
        let ranks: Vec<f64> = sizes.iter().map(|v| mean_rank(*v)).collect();
        let patterns = 1u32 << ranks.len();
        let at_most = (0..patterns).filter(|bits| {
            let sum: f64 = ranks.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, r)| r).sum();
            sum <= test.statistic
        });
        let p = (2.0 * at_most.count() as f64 / f64::from(patterns)).min(1.0);
        prop_assert_eq!(test.nonzero_pairs, ranks.len() as u64);
        let want = if ranks.is_empty() { f64::NAN } else { p };
        prop_assert!(near(test.p, want), "{} {want}", test.p);
    }

    #[test]
    fn mcnemar_is_a_binomial_tail(only_a in 0u32..30, only_b in 0u32..30) {
        let correct_a: Vec<bool> = (0..only_a + only_b).map(|i| i < only_a).collect();
        let correct_b: Vec<bool> = correct_a.iter().map(|r| !r).collect();
        let test = McNemar::new(&correct_a, &correct_b).unwrap();
        let n = only_a + only_b;
        let (mut term, mut sum) = (0.5f64.powi(n as i32), 0.0);
        for k in 0..=only_a.min(only_b) {
            sum += term;
            term *= f64::from(n - k) / f64::from(k + 1);
        }
        prop_assert!(near(test.p, (2.0 * sum).min(1.0)), "{} {}", test.p, 2.0 * sum);
        prop_assert_eq!(test.p, McNemar::new(&correct_b, &correct_a).unwrap().p);
    }

    #[test]
    fn bootstrap_intervals_stay_within_the_values(values in vec(-5.0..5.0f64, 1..20), seed: u64, level in 0.5..0.99f64) {
        let b = Bootstrap::draw(&values, 50, level, &Rng::new(seed)).unwrap();
        let s = SeedSummary::new(&values);
        prop_assert!(b.low <= b.high && b.low >= s.min - 1e-12 && b.high <= s.max + 1e-12);
        prop_assert!(near(b.estimate, s.mean));
        let narrow = Bootstrap::draw(&values, 50, 0.4, &Rng::new(seed)).unwrap();
        prop_assert!(narrow.low >= b.low && narrow.high <= b.high);
    }

    #[test]
    fn quantiles_are_monotonic(mut values in vec(-5.0..5.0f64, 1..20), q in 0.0..1.0f64, r in 0.0..1.0f64) {
        values.sort_by(f64::total_cmp);
        prop_assert!(quantile(&values, q.min(r)) <= quantile(&values, q.max(r)) + 1e-12);
        prop_assert_eq!(quantile(&values, 0.0), values[0]);
        prop_assert_eq!(quantile(&values, 1.0), values[values.len() - 1]);
    }

    #[test]
    fn regularized_beta_is_symmetric(a in 0.1..60.0f64, b in 0.1..60.0f64, x in 0.0..1.0f64) {
        let sum = regularized_beta(a, b, x) + regularized_beta(b, a, 1.0 - x);
        prop_assert!((sum - 1.0).abs() < 1e-10, "{sum}");
    }

    #[test]
    fn student_t_quantile_inverts_the_tail(p in 0.5001..0.9999f64, df in 1.0..200.0f64) {
        let t = student_t_quantile(p, df);
        prop_assert!((student_t_two_sided(t, df) - 2.0 * (1.0 - p)).abs() < 1e-11);
        prop_assert!(near(t, -student_t_quantile(1.0 - p, df)));
    }
}
