//! The embedded scenes: the same bytes everywhere, not to be told by colour.

use std::sync::Arc;
use std::time::Instant;

use stillhouse_core::data::{Dataset, SplitSpec};
use stillhouse_core::files::sha256;
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::{check, registry, split};

fn scenes(options: &str) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    let options = toml::from_str(options).unwrap();
    let request = DatasetRequest { name: "scenes".to_string(), roots: vec![], path: None, options };
    (registry().get("scenes")?.build)(&request)
}

/// Pinned: other bytes are another dataset and need another version in its identity.
#[test]
fn the_bytes_are_fixed() {
    let set = scenes("per_class = 3").unwrap();
    let all: Vec<u8> = (0..set.len()).flat_map(|i| set.sample(i).unwrap().image.pixels).collect();
    assert_eq!(sha256(&all), "03ef07d42561ab599d2ffa4dd84ea6898387cdfec64835d78b84985f06d88839");
    assert_eq!(set.sample(7).unwrap(), scenes("per_class = 3").unwrap().sample(7).unwrap());
    let other = scenes("per_class = 3\nseed = 1").unwrap();
    assert_ne!(set.sample(7).unwrap().image, other.sample(7).unwrap().image);
    assert_ne!(set.identity().unwrap(), other.identity().unwrap());
}

#[test]
fn settings_are_checked() {
    assert_eq!(scenes("").unwrap().len(), 21 * 200);
    assert_eq!(scenes("size = 17").unwrap().sample(0).unwrap().image.height, 17);
    let error = |options| scenes(options).err().unwrap().to_string();
    assert!(error("siz = 3").contains("did you mean `size`"));
    assert!(error("size = 3").contains("16 to 1024"));
    assert!(error("per_class = 0").contains("per_class 0"));
    assert!(error("seed = -1").contains("seed"));
}

#[test]
fn the_manifest_agrees_and_no_two_are_alike() {
    let (name, roots, options) = ("scenes".to_string(), Vec::new(), toml::Table::new());
    let report = check(&DatasetRequest { name, roots, path: None, options }, false).unwrap();
    assert!(report.is_ok(), "{report}");
    assert!(report.duplicates.is_empty());
    assert_eq!(report.sizes.len(), 1);
}

/// Mean red, green and blue of an image, and its class.
type Point = ([f64; 3], usize);

fn mean_colours(set: &dyn Dataset, indices: &[usize]) -> Vec<Point> {
    let mean = |i: usize| {
        let pixels = set.sample(i).unwrap().image.pixels;
        let mut sums = [0.0; 3];
        pixels.chunks_exact(3).for_each(|p| (0..3).for_each(|c| sums[c] += f64::from(p[c])));
        sums.map(|s| s / (pixels.len() as f64 / 3.0) / 255.0)
    };
    indices.iter().map(|&i| (mean(i), set.class(i).unwrap() as usize)).collect()
}

fn accuracy(points: &[Point], guess: impl Fn(&[f64; 3]) -> usize) -> f64 {
    points.iter().filter(|(x, y)| guess(x) == *y).count() as f64 / points.len() as f64
}

fn nearest_mean(train: &[Point], test: &[Point]) -> f64 {
    let mut means = vec![([0.0; 3], 0.0); 21];
    for (x, y) in train {
        (0..3).for_each(|c| means[*y].0[c] += x[c]);
        means[*y].1 += 1.0;
    }
    let distance =
        |x: &[f64; 3], k: usize| (0..3).map(|c| (x[c] - means[k].0[c] / means[k].1).powi(2)).sum::<f64>();
    accuracy(test, |x| (0..21).min_by(|a, b| distance(x, *a).total_cmp(&distance(x, *b))).unwrap())
}

/// Multinomial logistic regression on `features`, by gradient descent.
fn logistic<const N: usize>(
    train: &[Point],
    test: &[Point],
    features: impl Fn(&[f64; 3]) -> [f64; N],
) -> f64 {
    let mut weights = vec![[0.0f64; N]; 21];
    let rows: Vec<([f64; N], usize)> = train.iter().map(|(x, y)| (features(x), *y)).collect();
    let logits = |weights: &[[f64; N]], x: &[f64; N]| -> Vec<f64> {
        weights.iter().map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    };
    for _ in 0..400 {
        let mut gradient = vec![[0.0f64; N]; 21];
        for (x, y) in &rows {
            let logits = logits(&weights, x);
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
            for (k, g) in gradient.iter_mut().enumerate() {
                let error = (logits[k] - most).exp() / sum - f64::from(u8::from(k == *y));
                (0..N).for_each(|c| g[c] += error * x[c]);
            }
        }
        let step = 2.0 / rows.len() as f64;
        for (w, g) in weights.iter_mut().zip(&gradient) {
            (0..N).for_each(|c| w[c] -= step * g[c]);
        }
    }
    accuracy(test, |x| {
        let logits = logits(&weights, &features(x));
        (0..21).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
    })
}

#[test]
fn colour_does_not_tell_the_classes() {
    let set = scenes("").unwrap();
    let spec = SplitSpec { ratio: 0.8, mode: Default::default(), seed: 0, per_class: None };
    let cut = split(&*set, &spec).unwrap();
    let (mut train, mut test) = (mean_colours(&*set, &cut.train), mean_colours(&*set, &cut.test));
    // Standardised by the training images.
    let n = train.len() as f64;
    for c in 0..3 {
        let mean = train.iter().map(|p| p.0[c]).sum::<f64>() / n;
        let deviation = (train.iter().map(|p| (p.0[c] - mean).powi(2)).sum::<f64>() / n).sqrt();
        train.iter_mut().chain(&mut test).for_each(|p| p.0[c] = (p.0[c] - mean) / deviation);
    }
    let near = nearest_mean(&train, &test);
    let linear = logistic(&train, &test, |&[r, g, b]| [1.0, r, g, b]);
    let quadratic = logistic(&train, &test, |&[r, g, b]| {
        [1.0, r, g, b, r * r, g * g, b * b, r * g, g * b, b * r].map(|v| v / 2.0)
    });
    println!("by mean colour: nearest mean {near:.3}, linear {linear:.3}, quadratic {quadratic:.3}");
    assert!(near < 0.4 && linear < 0.4 && quadratic < 0.4);
}

#[test]
fn they_are_made_fast() {
    let set = scenes("").unwrap();
    let start = Instant::now();
    (0..set.len()).for_each(|i| drop(set.sample(i).unwrap()));
    let each = start.elapsed().as_secs_f64() * 1e3 / set.len() as f64;
    println!("{each:.3} ms each on one thread");
    // Far above what it takes, for busy machines.
    assert!(each < 10.0);
}
