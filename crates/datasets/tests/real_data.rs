//! Official files, or subsets of them, below `STILLHOUSE_DATA`. Run with `-- --ignored`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use stillhouse_core::Rng;
use stillhouse_core::data::{Dataset, LoaderSpec, Sampler, SplitMode, SplitSpec};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::{check, loader, loader_with_threads, registry, split};

/// A dataset in a folder below `STILLHOUSE_DATA`.
fn request(name: &str, folder: &str) -> DatasetRequest {
    let root = std::env::var_os("STILLHOUSE_DATA").filter(|root| !root.is_empty());
    let root = PathBuf::from(root.expect("STILLHOUSE_DATA is set"));
    assert!(root.join(folder).is_dir(), "{folder} in STILLHOUSE_DATA");
    let (name, path) = (name.to_string(), Some(root.join(folder)));
    DatasetRequest { name, roots: vec![root], path, options: toml::Table::new() }
}

fn ucm() -> (DatasetRequest, Arc<dyn Dataset>) {
    let request = request("ucm", "UCMerced_LandUse");
    let set = (registry().get("ucm").unwrap().build)(&request).unwrap();
    (request, set)
}

/// Complete datasets and subsets: images, classes, official splits.
#[test]
#[ignore = "set STILLHOUSE_DATA"]
fn reads_and_loads_official_files() {
    for (name, folder, images, classes, lists) in [
        ("rsscn7", "RSSCN7", 2800, 7, &[][..]),
        ("aid", "AID", 900, 30, &[]),
        ("cub", "CUB_200-subset", 250, 10, &[150, 100]),
        ("dogs", "StanfordDogs-mini", 120, 120, &[80, 40]),
        ("cityscapes", "Cityscapes", 8, 19, &[6, 2]),
        ("voc", "VOC2012-mini", 7, 21, &[3, 4]),
        ("camvid", "CamVid", 120, 11, &[60, 25, 35]),
    ] {
        let request = request(name, folder);
        let report = check(&request, true).unwrap();
        println!("{report}\n");
        assert!(report.is_ok(), "{name}");
        assert_eq!(report.images, images, "{name}");
        let found: Vec<usize> = report.splits.iter().map(|s| s.found).collect();
        assert_eq!(found, lists, "{name}");
        let set = (registry().get(name).unwrap().build)(&request).unwrap();
        assert_eq!(set.info().classes.len(), classes, "{name}");
        let mode = if lists.is_empty() { SplitMode::Stratified } else { SplitMode::Official };
        let cut = split(&*set, &SplitSpec { ratio: 0.6, mode, seed: 0, per_class: None }).unwrap();
        let tables = r#"t = [{op="resize_short", size=72}, {op="random_crop", size=64}]"#;
        let table: toml::Table = toml::from_str(tables).unwrap();
        let spec = LoaderSpec {
            indices: cut.train.clone(),
            sampler: Sampler::Shuffle { batch: 8, drop_last: false },
            transforms: table["t"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_table().unwrap().clone())
                .collect(),
            rng: Rng::new(0),
            cache_bytes: 0,
        };
        let mut loader = loader(set, &spec).unwrap();
        let mut seen = 0;
        while let Some(batch) = loader.next_batch().unwrap() {
            seen += batch.ids.len();
        }
        assert_eq!(seen, cut.train.len(), "{name}");
    }
}

#[test]
#[ignore = "set STILLHOUSE_DATA"]
fn finds_ucm_complete() {
    let (request, set) = ucm();
    let report = check(&request, false).unwrap();
    println!("{report}");
    assert!(report.is_ok());
    assert_eq!(report.images, 2100);
    assert_eq!((report.sizes[0].width, report.sizes[0].height, report.sizes[0].images), (256, 256, 2056));
    assert_eq!(report.duplicates.len(), 1);
    assert!(report.duplicates[0].iter().all(|k| k.starts_with("airplane/airplane0")));
    for (ratio, test) in [(0.8, 420), (0.6, 840)] {
        let spec = SplitSpec { ratio, mode: Default::default(), seed: 0, per_class: None };
        assert_eq!(split(&*set, &spec).unwrap().test.len(), test);
    }
}

#[test]
#[ignore = "set STILLHOUSE_DATA"]
fn measures_loading_of_ucm() {
    let (_, set) = ucm();
    let tables = |text: &str| -> Vec<toml::Table> {
        let table: toml::Table = toml::from_str(&format!("t = [{text}]")).unwrap();
        table["t"].as_array().unwrap().iter().map(|v| v.as_table().unwrap().clone()).collect()
    };
    let decode = Instant::now();
    (0..300).for_each(|i| drop(set.sample(i * 7).unwrap()));
    println!("decode: {:.0} images/s on one thread", 300.0 / decode.elapsed().as_secs_f64());
    let paper = r#"{op="resize_short", size=256}, {op="random_resized_crop", size=224, scale=[0.5, 1.0], ratio=[0.75, 1.3333]}, {op="hflip"}, {op="vflip"}, {op="normalize"}"#;
    let small = r#"{op="resize_short", size=72}, {op="random_crop", size=64}, {op="hflip"}, {op="vflip"}, {op="normalize"}"#;
    for (name, transforms) in [("224 px", paper), ("64 px", small)] {
        let spec = LoaderSpec {
            indices: (0..set.len()).collect(),
            sampler: Sampler::Shuffle { batch: 60, drop_last: true },
            transforms: tables(transforms),
            rng: Rng::new(0),
            cache_bytes: 1 << 30,
        };
        let mut loader = loader_with_threads(Arc::clone(&set), &spec, 1).unwrap();
        for epoch in ["first epoch (decodes)", "second epoch (from the cache)"] {
            let start = Instant::now();
            let mut images = 0;
            while let Some(batch) = loader.next_batch().unwrap() {
                images += batch.ids.len();
            }
            assert_eq!(images, 2100);
            println!("{name}, {epoch}: {:.0} images/s on one worker", 2100.0 / start.elapsed().as_secs_f64());
        }
    }
    let spec = LoaderSpec {
        indices: (0..set.len()).collect(),
        sampler: Sampler::ClassBalanced { classes: 21, per_class: 3 },
        transforms: tables(small),
        rng: Rng::new(0),
        cache_bytes: 0,
    };
    assert_eq!(loader(set, &spec).unwrap().next_batch().unwrap().unwrap().images.dims(), [63, 3, 64, 64]);
}
