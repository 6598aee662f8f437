//! Own images on the command line: refused before training with what to do, and checked with the same eyes.

use std::fs;
use std::path::Path;

use stillhouse_tests::{images, on_images, run, write};

fn gray_png(path: &Path, pixels: [u8; 4]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), 2, 2);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
}

#[test]
fn distill_names_all_broken_images() {
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("own"));
    for name in ["meadow/jpeg_420.image.png", "quarry/jpeg_restart.image.png"] {
        let file = folder.path().join("own").join(name);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    }
    run(folder.path(), &["distill", "own", "--output", "out"]).expect_code(2).expect_stderr(&[
        "2 of 8 images cannot be read",
        "meadow/jpeg_420.image.png",
        "quarry/jpeg_restart.image.png",
        "stillhouse data check",
    ]);
    assert!(!folder.path().join("out").exists());
}

#[test]
fn train_uses_the_split_of_the_folders() {
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("own/Train"));
    images(&folder.path().join("own/valid"));
    write(folder.path(), "x.toml", &on_images(&folder.path().join("own")));
    let said =
        run(folder.path(), &["train", "x.toml", "--output", "out", "--set", "train.epochs=1"]).expect_code(0);
    said.expect_stderr(&["split given by folders (train and val)", "split by its folders, not by a ratio"]);
    let result: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("out/result.json")).unwrap()).unwrap();
    assert_eq!(result["total"], 8);
    run(folder.path(), &["data", "split", "folder", "--path", "own", "--output", "lists"]).expect_code(0);
    let list = fs::read_to_string(folder.path().join("lists/test.txt")).unwrap();
    assert!(list.lines().count() == 8 && list.lines().all(|l| l.starts_with("valid/")), "{list}");
}

#[test]
fn masks_are_checked_with_their_classes() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..4 {
        gray_png(&folder.path().join(format!("own/images/{n}.png")), [n, 1, 2, 3]);
        gray_png(&folder.path().join(format!("own/masks/{n}_mask.png")), [0, 0, 255, 255]);
    }
    let check = ["data", "check", "folder", "--path", "own"];
    run(folder.path(), &check).expect_code(2).expect_stderr(&["mask values 0, 255", "mask_values"]);
    let hint = "mask_values = { 0 = \"land\", 255 = \"water\" }";
    let said =
        run(folder.path(), &[&check[..], &["--set", "classes=['land', 'water']"]].concat()).expect_code(1);
    assert!(
        said.stdout.contains("50.0 % of their pixels are 255") && said.stdout.contains(hint),
        "{}",
        said.stdout
    );
    let options = hint.replace(" = {", "={");
    run(folder.path(), &[&check[..], &["--set", &options]].concat()).expect_code(0);
    let text = on_images(&folder.path().join("own")).replace(
        "ratio = 50",
        "ratio = 50\nsplit = \"global_random\"\noptions = { classes = [\"land\", \"water\"] }",
    );
    write(folder.path(), "x.toml", &text);
    run(folder.path(), &["train", "x.toml", "--output", "out"])
        .expect_code(2)
        .expect_stderr(&["`water` (value 1) never occurs", hint]);
    run(folder.path(), &["distill", "own", "--output", "out"])
        .expect_code(2)
        .expect_stderr(&["images and masks"]);
    assert!(!folder.path().join("out").exists());
}
