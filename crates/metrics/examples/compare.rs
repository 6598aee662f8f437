//! Compares two methods over five seeds.
//!
//! `cargo run -p stillhouse-metrics --example compare`

use stillhouse_core::Rng;
use stillhouse_metrics::bootstrap::Bootstrap;
use stillhouse_metrics::paired::{Distribution, differences, t_test, wilcoxon};
use stillhouse_metrics::seeds::SeedSummary;

fn main() -> Result<(), stillhouse_metrics::Error> {
    let baseline = [95.24, 94.76, 95.95, 95.00, 95.48];
    let distilled = [97.14, 96.19, 96.90, 96.43, 97.38];
    for (name, values) in [("baseline", &baseline), ("distilled", &distilled)] {
        let s = SeedSummary::new(values);
        println!("{name:<10} {:.2} +- {:.2}  95 % [{:.2}, {:.2}]", s.mean, s.std, s.ci95_low, s.ci95_high);
    }
    let t = t_test(&distilled, &baseline)?;
    let w = wilcoxon(&distilled, &baseline, Distribution::Exact)?;
    let b = Bootstrap::draw(&differences(&distilled, &baseline)?, 2000, 0.95, &Rng::new(0))?;
    println!("gain       {:.2}  95 % [{:.2}, {:.2}] by bootstrap", t.mean_difference, b.low, b.high);
    println!("t-test     t = {:.2}, p = {:.4}", t.t, t.p);
    println!("Wilcoxon   W = {}, p = {:.4} (the minimum for five pairs)", w.statistic, w.p);
    Ok(())
}
