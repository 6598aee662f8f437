//! Segmentation end to end: table, page, masks of own images, invalid masks.

use std::fs;
use std::path::Path;

use png::ColorType::{Grayscale, Rgb};
use stillhouse_tests::{run, stillhouse};

/// Settings for small models.
const SMALL_MODELS: [&str; 6] = [
    "student.init=scratch",
    "teacher.weights=scratch",
    "teacher.model=deeplabv3plus",
    "teacher.variant={ backbone = 'mobilenetv2_035' }",
    "student.variant={ backbone = 'mobilenetv2_035' }",
    "matrix.student=['deeplabv3plus']",
];

#[test]
fn frkdnet_ablation_end_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut args = vec!["reproduce", "frkd_table1", "--profile", "quick"];
    let sets = [
        "data.dataset=fields",
        "data.image_size=32",
        "data.per_class=[4, 2]",
        "data.options={ size = 33, images = 20 }",
        "data.train_transforms=[{ op = 'random_scale_crop', size = 32, scale = [0.5, 2.0] }]",
        "data.test_transforms=[]",
        "train.epochs=1",
        "train.sampler.batch=2",
        "teacher.train.epochs=1",
        "teacher.train.sampler.batch=2",
        "matrix.method=['baseline', 'frkd_refine', 'frkd']",
    ];
    for set in SMALL_MODELS.iter().chain(&sets) {
        args.extend(["--set", set]);
    }
    run(folder, &args).expect_code(0);
    let table = folder.join("runs/frkd_table1/quick");
    let text = fs::read_to_string(table.join("table.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["measure"], "mean IoU");
    for part in ["QUICK RUN", "not real images", "Tested on whole images."] {
        assert!(json["caption"].as_str().unwrap().contains(part), "no `{part}` in {}", json["caption"]);
    }
    let cells = json["cells"].as_array().unwrap();
    let states: Vec<_> =
        cells.iter().map(|c| (c["method"].as_str().unwrap(), &c["state"], &c["total"])).collect();
    for method in ["baseline", "frkd_refine", "frkd"] {
        assert!(states.contains(&(method, &"done".into(), &serde_json::json!([2]))), "{states:?}");
    }
    for cell in cells.iter().filter(|c| c["state"] == "done") {
        let miou = cell["mean"].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&miou) && cell["class_iou"].as_array().unwrap().len() == 6, "{cell}");
    }
    let page = fs::read_to_string(table.join("report.html")).unwrap();
    for part in ["<h2>Mean IoU</h2>", "IoU by class", "alt=\"truth\"", "alt=\"frkd\"", "meadow", "77.74"] {
        assert!(page.contains(part), "no `{part}` on the page");
    }
    let markdown = fs::read_to_string(table.join("table.md")).unwrap();
    assert!(markdown.contains("IoU by class") && markdown.contains("| building |"), "{markdown}");
}

/// Writes a gray or RGB PNG.
fn write_png(
    path: &Path,
    (width, height): (usize, usize),
    color: png::ColorType,
    value: impl Fn(usize, usize) -> u8,
) {
    let channels = color.samples();
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let data: Vec<u8> = pixels.flat_map(|(x, y)| std::iter::repeat_n(value(x, y), channels)).collect();
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), width as u32, height as u32);
    encoder.set_color(color);
    encoder.write_header().unwrap().write_image_data(&data).unwrap();
}

const OWN: &str = r#"
[data]
dataset = "folder"
path = "set"
options = { classes = ["left", "right"], train = "train.txt", test = "test.txt" }
split = "official"
image_size = 24
train_transforms = [{ op = "random_scale_crop", size = 24, scale = [0.5, 2.0] }]
test_transforms = []
[student]
model = "deeplabv3plus"
variant = { backbone = "mobilenetv2_035" }
[train]
epochs = 2
sampler = { kind = "shuffle", batch = 2 }
optimizer = { kind = "adam", lr = 0.003 }
schedule = { kind = "poly", power = 0.9 }
[eval]
batch = 1
metrics = ["segmentation"]
"#;

/// Odd sizes and a fully ignored image; then masks of whole images, one of them in tiles; then invalid masks.
#[test]
fn segmentation_with_odd_image_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("set")).unwrap();
    let sizes = [(31, 45), (57, 23), (40, 40), (33, 64), (1, 37), (61, 29)];
    for (i, (width, height)) in sizes.into_iter().enumerate() {
        let at = |name: &str| folder.join(format!("set/{name}{i}.png"));
        write_png(&at("image"), (width, height), Rgb, |x, _| if x < width / 2 { 20 } else { 220 });
        // The third image is ignored completely.
        write_png(&at("mask"), (width, height), Grayscale, |x, _| {
            if i == 2 { 255 } else { u8::from(x >= width / 2) }
        });
    }
    let list = |range: std::ops::Range<usize>| -> String {
        range.map(|i| format!("image{i}.png mask{i}.png\n")).collect()
    };
    fs::write(folder.join("set/train.txt"), list(0..4)).unwrap();
    fs::write(folder.join("set/test.txt"), list(2..6)).unwrap();
    fs::write(folder.join("own.toml"), OWN).unwrap();
    run(folder, &["train", "own.toml", "--output", "out"]).expect_code(0);
    let text = fs::read_to_string(folder.join("out/result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&result["total"], &result["correct"]), (&4.into(), &serde_json::Value::Null));
    let miou = result["scores"]["miou"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&miou) && result["terms"]["ce"].as_f64().unwrap() > 0.0, "{text}");
    let pixels: usize = [33 * 64, 37, 61 * 29].iter().sum();
    assert_eq!(result["scores"]["total"].as_f64(), Some(pixels as f64), "ignored ones do not count");

    // Whole images at their own size.
    let args = ["predict", "out", "set/image0.png", "set/image4.png", "--json", "--output", "masks"];
    let said = run(folder, &args).expect_code(0).stdout;
    let found: serde_json::Value = serde_json::from_str(&said).unwrap();
    for (one, i) in found.as_array().unwrap().iter().zip([0, 4]) {
        let (width, height) = sizes[i];
        let areas = one["areas"].as_array().unwrap();
        let sum: u64 = areas.iter().map(|a| a["pixels"].as_u64().unwrap()).sum();
        assert_eq!((areas.len(), sum), (2, (width * height) as u64), "{one}");
        for file in ["mask", "overlay"] {
            assert!(folder.join(one[file].as_str().unwrap()).is_file(), "{one}");
        }
    }
    let line = run(folder, &["predict", "out", "set/image1.png"]).expect_code(0).stdout;
    assert!(line.contains("image1.png: ") && line.contains(" % (predictions/image1-mask.png"), "{line}");
    fs::create_dir(folder.join("other")).unwrap();
    fs::copy(folder.join("set/image0.png"), folder.join("other/image0.png")).unwrap();
    let twice = run(folder, &["predict", "out", "set/image0.png", "other/image0.png"]).expect_code(2).stderr;
    assert!(twice.contains("another image is also named `image0`"), "{twice}");
    let no_image = run(folder, &["predict", "out", "set/train.txt"]).expect_code(1).stderr;
    assert!(no_image.contains("train.txt"), "{no_image}");

    // A mask of another size and a label out of range: both are located, and nothing is trained.
    write_png(&folder.join("set/mask0.png"), (31, 44), Grayscale, |_, _| 0);
    let wrong = run(folder, &["train", "own.toml", "--output", "size"]).expect_code(2).stderr;
    assert!(wrong.contains("mask0.png") && wrong.contains("31x44") && wrong.contains("31x45"), "{wrong}");
    write_png(
        &folder.join("set/mask0.png"),
        (31, 45),
        Grayscale,
        |x, y| if (x, y) == (4, 3) { 3 } else { 0 },
    );
    run(folder, &["train", "own.toml", "--output", "label"]).expect_code(2).expect_stderr(&[
        "mask0.png",
        "3 (1 pixels)",
        "0 to 1",
    ]);
    // A class that no training mask has.
    fs::copy(folder.join("set/mask3.png"), folder.join("set/mask0.png")).unwrap();
    let three = "data.options.classes=['left', 'right', 'nowhere']";
    run(folder, &["train", "own.toml", "--output", "class", "--set", three])
        .expect_code(2)
        .expect_stderr(&["`nowhere` (value 2) never occurs"]);
    assert!(!folder.join("label").exists() && !folder.join("class").exists());
}

/// One step of the paper profile within 24 GiB: ResNet101 trains on one 512x1024 crop, then teaches ResNet18,
/// with frozen batch norm statistics; both are evaluated on a 1024x1024 image.
#[test]
#[ignore = "takes minutes: make test-long"]
fn paper_profile_trains_one_step() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = vec!["reproduce", "frkd_table1", "--profile", "paper"];
    for set in [
        "data.dataset=fields",
        "data.options={ size = 1024, images = 5 }",
        "data.per_class=[1, 1]",
        "matrix.method=['frkd']",
        "student.init=scratch",
        "train.epochs=1",
        "train.sampler.batch=1",
        "train.frozen_bn=true", // one image gives one value per channel after the pyramid's pooling: no statistics
        "teacher.weights=scratch",
        "teacher.train.epochs=1",
        "teacher.train.sampler.batch=1",
        "teacher.train.frozen_bn=true",
    ] {
        args.extend(["--set", set]);
    }
    let mut child = stillhouse(folder.path(), &args).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0u64;
    let status_code = loop {
        let kib = fs::read_to_string(&status).ok().and_then(|text| {
            let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
            line.split_whitespace().next()?.parse().ok()
        });
        peak = peak.max(kib.unwrap_or(0));
        if let Some(exit) = child.try_wait().unwrap() {
            break exit;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    assert!(status_code.success());
    let mut seconds = Vec::new();
    for below in ["runs/teachers", "runs/frkd_table1/paper"] {
        for entry in fs::read_dir(folder.path().join(below)).unwrap() {
            let Ok(text) = fs::read_to_string(entry.unwrap().path().join("result.json")) else { continue };
            let result: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(result["terms"]["ce"].as_f64().unwrap().is_finite(), "{text}");
            let part = |key: &str| result["seconds"][key].as_f64().unwrap();
            seconds.push(format!(
                "{}: {:.1} s a step, {:.1} s a test image",
                result["student"],
                part("train"),
                part("test")
            ));
        }
    }
    assert_eq!(seconds.len(), 2);
    println!("{}; at most {:.2} GiB", seconds.join("; "), peak as f64 / f64::from(1 << 20));
    assert!(peak < 24 << 20, "{peak} KiB");
}
