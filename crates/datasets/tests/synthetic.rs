//! Synthetic datasets: pinned bytes and fingerprints; color does not separate the scenes; every class of
//! the fields covers enough pixels.

use std::sync::Arc;
use std::time::Instant;

use stillhouse_core::data::{Dataset, Label, SplitMode, SplitSpec};
use stillhouse_core::fs::sha256;
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::{check, registry, split};

fn synthetic(name: &str, options: &str) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    let options = toml::from_str(options).unwrap();
    let request = DatasetRequest { name: name.to_string(), roots: vec![], path: None, options };
    (registry().get(name)?.build)(&request)
}

fn scenes(options: &str) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    synthetic("scenes", options)
}

fn fields(options: &str) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    synthetic("fields", options)
}

/// Pixels and labels of a field.
fn field(set: &dyn Dataset, index: usize) -> (Vec<u8>, Vec<u8>) {
    let sample = set.sample(index).unwrap();
    let Label::Mask(mask) = sample.label else { panic!("fields have masks") };
    assert_eq!((mask.width, mask.height), (sample.image.width, sample.image.height));
    (sample.image.pixels, mask.labels)
}

/// Pinned: different bytes are a different dataset and need a new version in the fingerprint.
#[test]
fn draws_pinned_scenes() {
    let set = scenes("per_class = 3").unwrap();
    let all: Vec<u8> = (0..set.len()).flat_map(|i| set.sample(i).unwrap().image.pixels).collect();
    assert_eq!(sha256(&all), "03ef07d42561ab599d2ffa4dd84ea6898387cdfec64835d78b84985f06d88839");
    assert_eq!(set.sample(7).unwrap(), scenes("per_class = 3").unwrap().sample(7).unwrap());
    let other = scenes("per_class = 3\nseed = 1").unwrap();
    assert_ne!(set.sample(7).unwrap().image, other.sample(7).unwrap().image);
    assert_ne!(set.fingerprint().unwrap(), other.fingerprint().unwrap());
}

#[test]
fn draws_pinned_fields() {
    let set = fields("images = 20").unwrap();
    let all: Vec<u8> =
        (0..set.len()).map(|i| field(&*set, i)).flat_map(|(image, mask)| [image, mask].concat()).collect();
    assert_eq!(sha256(&all), "2d68bfa58447dfd66bbf25a0bb6e0631bd703996fb3a5a963001e2514a26a821");
    let other = fields("images = 20\nseed = 1").unwrap();
    assert_ne!(field(&*set, 7), field(&*other, 7));
    assert_ne!(set.fingerprint().unwrap(), other.fingerprint().unwrap());
}

/// No class is rare or dominant, and few pixels but edges are ignored.
#[test]
fn covers_every_class_of_the_fields() {
    for size in [32, 72] {
        let set = fields(&format!("images = 200\nsize = {size}")).unwrap();
        let mut counts = [0usize; 256];
        for i in 0..set.len() {
            field(&*set, i).1.iter().for_each(|label| counts[usize::from(*label)] += 1);
        }
        let share = |label: usize| counts[label] as f64 / (set.len() * size * size) as f64;
        let shares: Vec<f64> = (0..6).map(share).collect();
        println!("{size} px: {shares:.3?}, ignored {:.3}", share(255));
        assert!(shares.iter().all(|s| (0.02..0.6).contains(s)), "{shares:?}");
        assert!((0.01..0.3).contains(&share(255)), "{}", share(255));
        assert!((shares.iter().sum::<f64>() + share(255) - 1.0).abs() < 1e-9, "other labels");
    }
}

/// Ignored pixels are adjacent to another class.
#[test]
fn ignores_only_edges_of_the_fields() {
    let set = fields("images = 30").unwrap();
    let side = 72;
    for i in 0..set.len() {
        let (_, labels) = field(&*set, i);
        for at in (0..labels.len()).filter(|at| labels[*at] == 255) {
            let (row, column) = ((at / side) as isize, (at % side) as isize);
            let near = (-3..=3).flat_map(|dy| (-3..=3).map(move |dx| (row + dy, column + dx)));
            let inside =
                near.filter(|(y, x)| (0..side as isize).contains(y) && (0..side as isize).contains(x));
            let mut found: Vec<u8> = inside.map(|(y, x)| labels[y as usize * side + x as usize]).collect();
            found.sort_unstable();
            found.dedup();
            found.retain(|label| *label != 255);
            assert!(!found.is_empty(), "image {i}: nothing but ignored pixels around {row}, {column}");
        }
    }
}

#[test]
fn splits_fields_officially() {
    let set = fields("images = 23").unwrap();
    let spec = SplitSpec { ratio: 0.0, mode: SplitMode::Official, seed: 0, per_class: None };
    let cut = split(&*set, &spec).unwrap();
    assert_eq!(cut.test, [4, 9, 14, 19]);
    assert_eq!(cut.train.len(), 19);
    assert!(cut.train.iter().all(|i| !cut.test.contains(i)));
}

#[test]
fn draws_pinned_species() {
    let set = synthetic("species", "per_class = 5").unwrap();
    let all: Vec<u8> = (0..set.len()).flat_map(|i| set.sample(i).unwrap().image.pixels).collect();
    assert_eq!(sha256(&all), "de87b5e19eac7ff0b4f4142aa83ef3313e687ab9c2ddb6556b18cff203a867ad");
    let other = synthetic("species", "per_class = 5\nseed = 1").unwrap();
    assert_ne!(set.sample(7).unwrap().image, other.sample(7).unwrap().image);
    assert_ne!(set.fingerprint().unwrap(), other.fingerprint().unwrap());
    let spec = SplitSpec { ratio: 0.0, mode: SplitMode::Official, seed: 0, per_class: None };
    let cut = split(&*set, &spec).unwrap();
    assert_eq!(cut.test, (0..20).map(|class| 5 * class + 4).collect::<Vec<_>>());
    let error = |options| synthetic("species", options).err().unwrap().to_string();
    assert!(error("size = 3").contains("16 to 1024") && error("per_class = 4").contains("per_class = 4"));
}

#[test]
fn rejects_invalid_settings() {
    assert_eq!(scenes("").unwrap().len(), 21 * 200);
    assert_eq!(scenes("size = 17").unwrap().sample(0).unwrap().image.height, 17);
    let error = |options| scenes(options).err().unwrap().to_string();
    assert!(error("siz = 3").contains("did you mean `size`"));
    assert!(error("size = 3").contains("16 to 1024"));
    assert!(error("per_class = 0").contains("per_class = 0"));
    assert!(error("seed = -1").contains("seed"));
    assert_eq!(fields("").unwrap().len(), 500);
    let error = |options| fields(options).err().unwrap().to_string();
    assert!(error("image = 3").contains("did you mean `images`"));
    assert!(error("size = 3").contains("16 to 1024") && error("images = 4").contains("images = 4"));
}

#[test]
fn agrees_with_the_manifests_without_duplicates() {
    for (name, values) in [("scenes", &[][..]), ("species", &[]), ("fields", &[0, 1, 2, 3, 4, 5, 255])] {
        let (roots, options) = (Vec::new(), toml::Table::new());
        let request = DatasetRequest { name: name.to_string(), roots, path: None, options };
        let report = check(&request, false).unwrap();
        assert!(report.is_ok(), "{report}");
        assert!(report.duplicates.is_empty());
        assert_eq!(report.sizes.len(), 1);
        assert_eq!(report.mask_values, values);
    }
}

/// Pinned: a run's hash depends on them.
#[test]
fn has_pinned_fingerprints() {
    for (name, fingerprint) in [
        ("scenes", "e204d01ffa0dd50c1e2542b9052b6811ca9308a03681dd7bde73c4cac97b4cb8"),
        ("fields", "d85618b28755c28c4dcc1f17389e8d494c5a0199eaf1f325a435159d039632c8"),
        ("species", "f4e15ced841be4fd7e7a4df803a1043a0a67d71a1e3fc63d6acd89d02dd19f8c"),
    ] {
        assert_eq!(synthetic(name, "").unwrap().fingerprint().unwrap(), fingerprint, "{name}");
    }
}

/// Mean red, green and blue of an image, and its class.
type Point = ([f64; 3], usize);

fn mean_colors(set: &dyn Dataset, indices: &[usize]) -> Vec<Point> {
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
fn colors_do_not_separate_the_scenes() {
    let set = scenes("").unwrap();
    let spec = SplitSpec { ratio: 0.8, mode: Default::default(), seed: 0, per_class: None };
    let cut = split(&*set, &spec).unwrap();
    let (mut train, mut test) = (mean_colors(&*set, &cut.train), mean_colors(&*set, &cut.test));
    // Standardized with the statistics of the training images.
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
    println!("by mean color: nearest mean {near:.3}, linear {linear:.3}, quadratic {quadratic:.3}");
    assert!(near < 0.4 && linear < 0.4 && quadratic < 0.4);
}

#[test]
fn draws_scenes_fast() {
    let set = scenes("").unwrap();
    let start = Instant::now();
    (0..set.len()).for_each(|i| drop(set.sample(i).unwrap()));
    let each = start.elapsed().as_secs_f64() * 1e3 / set.len() as f64;
    println!("{each:.3} ms each on one thread");
    // Generous, for loaded machines.
    assert!(each < 10.0);
}
