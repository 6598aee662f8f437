//! The loader yields the same batches for any number of workers and from any position.

mod fixtures;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::{ProptestConfig, prop, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};
use stillhouse_core::data::{
    Batch, BatchSource, Dataset, DatasetInfo, LoaderSpec, Position, Sample, Sampler, SplitSpec,
};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_core::{Result, Rng};
use stillhouse_datasets::{loader, loader_with_threads, registry, split};

fn scenes(per_class: i64) -> Arc<dyn Dataset> {
    let options = toml::from_str(&format!("per_class = {per_class}\nsize = 40")).unwrap();
    let request = DatasetRequest { name: "scenes".to_string(), roots: vec![], path: None, options };
    (registry().get("scenes").unwrap().build)(&request).unwrap()
}

fn tables(text: &str) -> Vec<toml::Table> {
    let table: toml::Table = toml::from_str(&format!("t = [{text}]")).unwrap();
    table["t"].as_array().unwrap().iter().map(|v| v.as_table().unwrap().clone()).collect()
}

fn augmented() -> Vec<toml::Table> {
    tables(
        r#"{op="resize_short", size=36}, {op="random_resized_crop", size=24, scale=[0.5, 1.0]},
        {op="hflip"}, {op="vflip"}, {op="rot90"}, {op="color_jitter", brightness=0.2}, {op="normalize"}"#,
    )
}

/// Bits of a batch: indices, classes, values.
type Bits = (Vec<u64>, Vec<u32>, Vec<u32>);

fn bits(batch: &Batch) -> Bits {
    let images = batch.images.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let classes = batch.labels.classes("test").unwrap().to_vec1().unwrap();
    (batch.ids.clone(), classes, images.into_iter().map(f32::to_bits).collect())
}

/// Batches of the next calls; `None` at the end of an epoch.
fn take(loader: &mut dyn BatchSource, count: usize) -> Vec<Option<Bits>> {
    (0..count).map(|_| loader.next_batch().unwrap().map(|b| bits(&b))).collect()
}

fn samplers() -> impl Strategy<Value = Sampler> {
    prop_oneof![
        (1usize..20, prop::bool::ANY).prop_map(|(batch, drop_last)| Sampler::Shuffle { batch, drop_last }),
        (1usize..20).prop_map(|batch| Sampler::Sequential { batch }),
        (1usize..9, 1usize..4).prop_map(|(classes, per_class)| Sampler::ClassBalanced { classes, per_class }),
        Just(Sampler::ClassBalanced { classes: 30, per_class: 1 }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn yields_the_same_batches_for_any_number_of_workers(sampler in samplers(), seed: u64, cache in 0usize..100_000) {
        let spec = LoaderSpec {
            indices: (0..42).collect(),
            sampler,
            transforms: augmented(),
            rng: Rng::new(seed),
            cache_bytes: cache,
        };
        let mut runs = [1, 2, 4].map(|threads| {
            let mut loader = loader_with_threads(scenes(2), &spec, threads).unwrap();
            let count = loader.batches_per_epoch() as usize * 2 + 1;
            take(&mut *loader, count.min(30))
        }).into_iter();
        let first = runs.next();
        for other in runs {
            prop_assert_eq!(first.as_ref(), Some(&other));
        }
    }

    #[test]
    fn seeks_to_the_same_batches(sampler in samplers(), seed: u64, at in 0usize..12, cache in 0usize..100_000) {
        let spec = LoaderSpec {
            indices: (0..42).step_by(2).chain([3, 5]).collect(),
            sampler,
            transforms: augmented(),
            rng: Rng::new(seed),
            cache_bytes: cache,
        };
        let mut through = loader(scenes(2), &spec).unwrap();
        take(&mut *through, at);
        let position = through.position();
        let rest = take(&mut *through, 4);
        let mut sought = loader(scenes(2), &spec).unwrap();
        sought.next_batch().unwrap();
        sought.seek(position).unwrap();
        prop_assert_eq!(sought.position(), position);
        prop_assert_eq!(&take(&mut *sought, 4), &rest);
        through.seek(position).unwrap();
        prop_assert_eq!(take(&mut *through, 4), rest);
    }
}

#[test]
fn loads_both_parts_of_a_split() {
    let set = scenes(5);
    let spec = SplitSpec { ratio: 0.8, mode: Default::default(), seed: 1, per_class: None };
    let cut = split(&*set, &spec).unwrap();
    assert_eq!((cut.train.len(), cut.test.len()), (84, 21));
    let spec = LoaderSpec {
        indices: cut.test,
        sampler: Sampler::Sequential { batch: 10 },
        transforms: tables(r#"{op="center_crop", size=32}, {op="normalize"}"#),
        rng: Rng::new(0),
        cache_bytes: 1 << 20,
    };
    let mut loader = loader(set, &spec).unwrap();
    let mut classes = Vec::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        assert_eq!(&batch.images.dims()[1..], [3, 32, 32]);
        classes.extend(batch.labels.classes("test").unwrap().to_vec1::<u32>().unwrap());
    }
    assert!(classes.into_iter().eq(0..21));
    assert_eq!(loader.position(), Position { epoch: 1, batch: 0 });
}

/// Counts decoded images.
struct Counting(Arc<dyn Dataset>, AtomicUsize);

impl Dataset for Counting {
    fn info(&self) -> &DatasetInfo {
        self.0.info()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn key(&self, index: usize) -> String {
        self.0.key(index)
    }
    fn class(&self, index: usize) -> Option<u32> {
        self.0.class(index)
    }
    fn sample(&self, index: usize) -> Result<Sample> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.sample(index)
    }
    fn fingerprint(&self) -> Result<String> {
        self.0.fingerprint()
    }
}

#[test]
fn caches_what_fits() {
    // A resized image has 24 * 24 * 3 = 1728 bytes; ten fit.
    for (cache_bytes, decodes) in [(1 << 20, 42), (17_280, 42 + 2 * 32), (0, 3 * 42)] {
        let set = Arc::new(Counting(scenes(2), AtomicUsize::new(0)));
        let spec = LoaderSpec {
            indices: (0..42).collect(),
            sampler: Sampler::Sequential { batch: 42 },
            transforms: tables(r#"{op="resize", width=24, height=24}, {op="hflip"}"#),
            rng: Rng::new(0),
            cache_bytes,
        };
        let mut loader = loader_with_threads(Arc::clone(&set) as Arc<dyn Dataset>, &spec, 2).unwrap();
        take(&mut *loader, 6);
        // Prefetching may have started.
        drop(loader);
        let count = set.1.load(Ordering::Relaxed);
        assert!((decodes..=decodes + 2 * 42).contains(&count), "{cache_bytes}: {count}");
        // The next epoch may need an image that another worker is still decoding.
        assert!(cache_bytes != 1 << 20 || count <= decodes + 1, "{count}");
    }
}

/// The cache size does not change batches.
#[test]
fn yields_the_same_batches_with_any_cache() {
    let run = |cache_bytes: usize| {
        let spec = LoaderSpec {
            indices: (0..42).collect(),
            sampler: Sampler::Shuffle { batch: 8, drop_last: false },
            transforms: augmented(),
            rng: Rng::new(5),
            cache_bytes,
        };
        take(&mut *loader_with_threads(scenes(2), &spec, 2).unwrap(), 21)
    };
    let without = run(0);
    assert_eq!(without.iter().flatten().count(), 18);
    // No image fits, some, all.
    for bytes in [100, 50_000, 1 << 20] {
        assert_eq!(run(bytes), without, "{bytes}");
    }
}

/// Memory does not grow between ten and a hundred epochs, with and without a cache. Measured in a child
/// process, since other tests run in this one.
#[test]
fn uses_constant_memory_over_100_epochs() {
    const CHILD: &str = "STILLHOUSE_TEST_EPOCHS";
    /// MiB; one epoch decodes 4.
    const MORE: f64 = 4.0;
    let Ok(cache) = std::env::var(CHILD) else {
        for cache in [0, 300_000] {
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "uses_constant_memory_over_100_epochs", "--nocapture"])
                .env(CHILD, cache.to_string())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&child.stdout);
            println!("cache of {cache} bytes: {}", text.lines().find(|l| l.contains("MiB")).unwrap_or(&text));
            assert!(child.status.success(), "{text}\n{}", String::from_utf8_lossy(&child.stderr));
        }
        return;
    };
    // Peak memory, which temporary releases do not hide.
    let held = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?;
        Some(kib.parse::<f64>().ok()? / 1024.0)
    };
    let root = tempfile::tempdir().unwrap();
    for i in 0..42 {
        let path = root.path().join(format!("class{}/{i}.jpg", i % 3));
        fixtures::put(&path, fixtures::jpeg(224, 160, i));
    }
    let mut request = fixtures::request("folder", root.path());
    request.path = Some(root.path().to_path_buf());
    let set = (registry().get("folder").unwrap().build)(&request).unwrap();
    let spec = LoaderSpec {
        indices: (0..42).collect(),
        sampler: Sampler::Shuffle { batch: 7, drop_last: false },
        transforms: tables(r#"{op="random_resized_crop", size=64, scale=[0.5, 1.0]}, {op="hflip"}"#),
        rng: Rng::new(0),
        cache_bytes: cache.parse().unwrap(),
    };
    let mut loader = loader_with_threads(set, &spec, 2).unwrap();
    let mut marks = Vec::new();
    for epoch in 1..=100 {
        while loader.next_batch().unwrap().is_some() {}
        if [10, 100].contains(&epoch) {
            marks.extend(held());
        }
    }
    // Only Linux reports it.
    let [early, late] = marks[..] else { return };
    println!("{early:.1} MiB after 10 epochs, {late:.1} MiB after 100");
    assert!(late - early < MORE, "{early:.1} MiB after 10 epochs, {late:.1} MiB after 100");
}
