//! Official layouts, on small generated datasets: they are read correctly, and `check` reports every
//! seeded corruption, which is an error in use where it invalidates samples.

mod fixtures;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fixtures::{
    Mat, aid, camvid, cityscapes, cub, dogs, dogs_list, edit, gray, jpeg, nabirds, palette, put, request,
    rsc11, rsscn7, tiff, ucm, voc,
};
use stillhouse_core::data::{Dataset, Label, SplitMode, SplitSpec};
use stillhouse_datasets::{Kind, Report, check, registry, split};

fn open(name: &str, root: &Path) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    (registry().get(name)?.build)(&request(name, root))
}

fn found(name: &str, root: &Path) -> Report {
    check(&request(name, root), true).unwrap()
}

fn dogs_plain(root: &Path) -> PathBuf {
    dogs(root, false)
}

fn dogs_compressed(root: &Path) -> PathBuf {
    dogs(root, true)
}

type Make = fn(&Path) -> PathBuf;

const ALL: [(&str, Make); 11] = [
    ("ucm", ucm),
    ("rsc11", rsc11),
    ("rsscn7", rsscn7),
    ("aid", aid),
    ("cub", cub),
    ("nabirds", nabirds),
    ("dogs", dogs_plain),
    ("dogs", dogs_compressed),
    ("cityscapes", cityscapes),
    ("voc", voc),
    ("camvid", camvid),
];

#[test]
fn reads_official_layouts() {
    for (name, make) in ALL {
        let root = tempfile::tempdir().unwrap();
        let folder = make(root.path());
        let report = found(name, root.path());
        assert!(report.is_ok(), "{report}");
        let set = open(name, root.path()).unwrap();
        assert_eq!(set.len(), report.images, "{name}");
        for index in 0..set.len() {
            set.sample(index).unwrap();
        }
        // The dataset's own folder may be the root.
        assert_eq!(found(name, &folder).images, set.len(), "{name}");
        let whole = check(&request(name, root.path()), false).unwrap();
        assert_eq!(whole.is_ok(), name == "rsscn7", "{whole}");
    }
}

#[test]
fn reads_official_labels_and_splits() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for (_, make) in ALL {
        make(root);
    }
    let official = |name: &str| {
        let set = open(name, root).unwrap();
        let spec = SplitSpec { ratio: 0.0, mode: SplitMode::Official, seed: 0, per_class: None };
        let cut = split(&*set, &spec).unwrap();
        (set, cut)
    };
    let (set, cut) = official("cub");
    assert_eq!((set.class(0), set.class(11)), (Some(0), Some(2)));
    assert_eq!((cut.train, cut.test), (vec![0, 1, 4, 5, 8, 9], vec![2, 3, 6, 7, 10, 11]));
    // Sparse ids are numbered in numerical order, regardless of the file order.
    let (set, cut) = official("nabirds");
    assert_eq!(
        set.info().classes,
        ["295 American Kestrel (Adult male)", "817 Ovenbird", "1010 Lark Sparrow"]
    );
    assert_eq!([0, 3, 6].map(|i| set.class(i)), [Some(1), Some(0), Some(2)]);
    assert_eq!(cut.train, [0, 3, 6]);
    let (set, cut) = official("dogs");
    assert_eq!(set.info().classes.len(), 120);
    assert_eq!(
        cut.train.iter().map(|&i| set.class(i).unwrap()).collect::<Vec<_>>(),
        [0, 0, 1, 1, 57, 57, 119, 119]
    );
    assert_eq!(cut.test.len(), 4);
    let mask = |set: &Arc<dyn Dataset>, index: usize| match set.sample(index).unwrap().label {
        Label::Mask(mask) => mask.labels,
        Label::Class(class) => panic!("class {class}"),
    };
    let (set, cut) = official("cityscapes");
    assert_eq!((cut.train.len(), cut.test.len()), (2, 1));
    let ids = mask(&set, 0);
    assert_eq!((ids[7], ids[8], ids[11], ids[33], ids[0], ids[6]), (0, 1, 2, 18, 255, 255));
    let (set, cut) = official("voc");
    assert_eq!((cut.train.len(), cut.test.len()), (2, 2));
    assert_eq!(&mask(&set, 0)[..8], [0, 0, 1, 1, 2, 255, 3, 3]);
    let (set, cut) = official("camvid");
    assert_eq!((cut.train, cut.test), (vec![0, 1], vec![4, 5]));
    assert_eq!(&mask(&set, 0)[9..13], [9, 10, 255, 0]);
    for name in ["ucm", "rsc11", "rsscn7", "aid"] {
        assert!(open(name, root).unwrap().official_split("train").is_none());
    }
    let set = open("rsc11", root).unwrap();
    assert_eq!((set.len(), set.class(21)), (22, Some(10)));
}

#[test]
fn reads_the_augmented_list_of_voc() {
    let root = tempfile::tempdir().unwrap();
    let folder = voc(root.path());
    put(&folder.join("JPEGImages/2008_000002.jpg"), jpeg(40, 30, 9));
    put(&folder.join("SegmentationClassAug/2008_000002.png"), gray(40, 30, |_, _| 20));
    put(&folder.join("JPEGImages/2008_000003.jpg"), jpeg(8, 16, 10));
    let labels: Vec<u8> = (0..128).map(|i| (i / 16) as u8).collect();
    let mat = Mat::new(true).labels(16, 8, &labels).bytes();
    put(&root.path().join("benchmark_RELEASE/dataset/cls/2008_000003.mat"), mat);
    let names = "2007_000032\n2007_000039\n2008_000002\n2008_000003\n";
    put(&folder.join("ImageSets/Segmentation/train_aug.txt"), names);
    let mut request = request("voc", root.path());
    request.options.insert("train".to_string(), "train_aug".into());
    let set = (registry().get("voc").unwrap().build)(&request).unwrap();
    assert_eq!(set.official_split("train").unwrap(), [0, 1, 2, 3]);
    assert_eq!(set.official_split("val").unwrap(), [4, 5]);
    set.sample(2).unwrap();
    // MATLAB stores columns first.
    let Label::Mask(mask) = set.sample(3).unwrap().label else { panic!("no mask") };
    assert_eq!((mask.width, mask.height, &mask.labels[..9]), (8, 16, &[0, 1, 2, 3, 4, 5, 6, 7, 0][..]));
}

#[test]
fn reads_own_masks_from_lists() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    for n in 0..3 {
        put(&folder.join(format!("a/{n}.jpg")), jpeg(16, 16, n));
        put(&folder.join(format!("m/{n}.png")), gray(16, 16, |x, _| if x == 0 { 255 } else { x as u8 % 2 }));
    }
    put(&folder.join("train.txt"), "a/0.jpg m/0.png\na/1.jpg m/1.png\n");
    put(&folder.join("test.txt"), "a/2.jpg m/2.png\n");
    let mut request = request("folder", folder);
    request.path = Some(folder.to_path_buf());
    request.options =
        toml::from_str("classes = ['water', 'land']\ntrain = 'train.txt'\ntest = 'test.txt'").unwrap();
    let report = check(&request, false).unwrap();
    assert!(report.is_ok(), "{report}");
    assert_eq!(report.mask_values, [0, 1, 255]);
    put(&folder.join("m/2.png"), gray(16, 16, |x, _| x as u8));
    let report = check(&request, false).unwrap();
    assert_eq!(report.diagnostics[0].kind, Kind::MaskValue);
    assert!(
        report.diagnostics[0].message.contains("mask value at column 2, row 0: expected 0 to 1"),
        "{report}"
    );
    put(&folder.join("train.txt"), "a/0.jpg ../m/0.png\n");
    let e = (registry().get("folder").unwrap().build)(&request).err().unwrap().to_string();
    assert!(e.contains("train.txt:1"), "{e}");
}

/// A corruption of a dataset and the expected diagnostic.
struct Corruption {
    name: &'static str,
    make: Make,
    apply: fn(&Path),
    kind: Kind,
    words: &'static [&'static str],
    /// Whether the dataset can still be opened: the corruption is tolerated, or found on decoding.
    opens: bool,
}

/// Corruptions by name.
fn corruptions() -> Vec<(&'static str, Vec<Corruption>)> {
    fn cut(path: &Path) {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
    }
    const CUB: &str = "003.Sooty_Albatross/Sooty_Albatross_0001_10.jpg";
    const FRAME: &str = "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png";
    let corruption =
        |name, make, apply, kind, words, opens| Corruption { name, make, apply, kind, words, opens };
    vec![
        (
            "a mislabeled class",
            vec![
                corruption(
                    "ucm",
                    ucm,
                    |f| put(&f.join("beach/airplane05.tif"), tiff(16, 16, 99)),
                    Kind::Mislabeled,
                    &["airplane05.tif", "beach"],
                    false,
                ),
                corruption(
                    "aid",
                    aid,
                    |f| put(&f.join("Pond/park_7.jpg"), jpeg(16, 16, 99)),
                    Kind::Mislabeled,
                    &["park_7.jpg", "pond_"],
                    false,
                ),
                corruption(
                    "rsscn7",
                    rsscn7,
                    |f| fs::rename(f.join("eForest/e017.jpg"), f.join("eForest/a017.jpg")).unwrap(),
                    Kind::Mislabeled,
                    &["a017.jpg", "e001"],
                    false,
                ),
                corruption(
                    "cub",
                    cub,
                    |f| edit(&f.join("image_class_labels.txt"), "10 3\n", "10 2\n"),
                    Kind::Mislabeled,
                    &["image_class_labels.txt:10", "found 2"],
                    false,
                ),
                corruption(
                    "nabirds",
                    nabirds,
                    |f| edit(&f.join("image_class_labels.txt"), " 817\n", " 295\n"),
                    Kind::Mislabeled,
                    &["image_class_labels.txt:1", "817"],
                    false,
                ),
                corruption(
                    "dogs",
                    dogs_plain,
                    |f| {
                        let files = [
                            "n02085620-Chihuahua/n02085620_100.jpg",
                            "n02085782-Japanese_spaniel/n02085782_100.jpg",
                        ];
                        dogs_list(f, "train", &files.map(String::from), &[1.0, 1.0], true);
                    },
                    Kind::Mislabeled,
                    &["n02085782_100.jpg", "found 1"],
                    false,
                ),
            ],
        ),
        (
            "a missing file",
            vec![
                corruption(
                    "cub",
                    cub,
                    |f| fs::remove_file(f.join("images").join(CUB)).unwrap(),
                    Kind::MissingFile,
                    &["Sooty_Albatross_0001_10.jpg", "images.txt"],
                    false,
                ),
                corruption(
                    "voc",
                    voc,
                    |f| fs::remove_file(f.join("SegmentationClass/2007_000033.png")).unwrap(),
                    Kind::MissingFile,
                    &["2007_000033.png", "val.txt:1"],
                    false,
                ),
                corruption(
                    "cityscapes",
                    cityscapes,
                    |f| fs::remove_file(f.join(FRAME)).unwrap(),
                    Kind::MissingFile,
                    &["aachen_000000_000019"],
                    false,
                ),
                corruption(
                    "dogs",
                    dogs_compressed,
                    |f| fs::remove_dir_all(f.join("Images/n02085620-Chihuahua")).unwrap(),
                    Kind::MissingFile,
                    &["n02085620_100.jpg"],
                    false,
                ),
                corruption(
                    "nabirds",
                    nabirds,
                    |f| fs::remove_dir_all(f.join("images")).unwrap(),
                    Kind::MissingFile,
                    &["0817", "images.txt"],
                    false,
                ),
            ],
        ),
        (
            "a truncated image",
            vec![
                corruption(
                    "ucm",
                    ucm,
                    |f| cut(&f.join("river/river01.tif")),
                    Kind::Broken,
                    &["river01.tif"],
                    true,
                ),
                corruption(
                    "cub",
                    cub,
                    |f| cut(&f.join("images").join(CUB)),
                    Kind::Broken,
                    &["Sooty_Albatross_0001_10.jpg", "truncated"],
                    true,
                ),
                corruption(
                    "camvid",
                    camvid,
                    |f| cut(&f.join("valannot/0016E5_00001.png")),
                    Kind::Broken,
                    &["valannot/0016E5_00001.png"],
                    true,
                ),
            ],
        ),
        (
            "a mask with a wrong size",
            vec![
                corruption(
                    "voc",
                    voc,
                    |f| put(&f.join("SegmentationClass/2007_000039.png"), palette(30, 40, |_, _| 0)),
                    Kind::MaskSize,
                    &["2007_000039.png", "30x40", "40x30"],
                    true,
                ),
                corruption(
                    "cityscapes",
                    cityscapes,
                    |f| put(&f.join(FRAME), gray(16, 16, |_, _| 7)),
                    Kind::MaskSize,
                    &["16x16"],
                    true,
                ),
            ],
        ),
        (
            "a mask value out of range",
            vec![
                corruption(
                    "voc",
                    voc,
                    |f| {
                        put(
                            &f.join("SegmentationClass/2007_000039.png"),
                            palette(40, 30, |x, y| if (x, y) == (3, 2) { 21 } else { 0 }),
                        )
                    },
                    Kind::MaskValue,
                    &["at column 3, row 2", "found 21"],
                    true,
                ),
                corruption(
                    "cityscapes",
                    cityscapes,
                    |f| put(&f.join(FRAME), gray(32, 16, |_, _| 34)),
                    Kind::MaskValue,
                    &["found 34", "0 to 33"],
                    true,
                ),
            ],
        ),
        (
            "labels with a constant offset",
            vec![
                corruption(
                    "cub",
                    cub,
                    |f| {
                        let text: String = (0..12).map(|i| format!("{} {}\n", i + 1, i / 4)).collect();
                        put(&f.join("image_class_labels.txt"), text);
                    },
                    Kind::LabelRange,
                    &["offset of -1"],
                    false,
                ),
                corruption(
                    "nabirds",
                    nabirds,
                    |f| {
                        let text = fs::read_to_string(f.join("image_class_labels.txt")).unwrap();
                        put(
                            &f.join("image_class_labels.txt"),
                            text.replace(" 817\n", " 818\n")
                                .replace(" 295\n", " 296\n")
                                .replace(" 1010\n", " 1011\n"),
                        );
                    },
                    Kind::LabelRange,
                    &["offset of +1"],
                    false,
                ),
                corruption(
                    "dogs",
                    dogs_plain,
                    |f| {
                        let files = [
                            "n02085620-Chihuahua/n02085620_100.jpg",
                            "n02085782-Japanese_spaniel/n02085782_100.jpg",
                        ];
                        dogs_list(f, "train", &files.map(String::from), &[0.0, 1.0], false);
                    },
                    Kind::LabelRange,
                    &["offset of -1"],
                    false,
                ),
                corruption(
                    "camvid",
                    camvid,
                    |f| {
                        put(
                            &f.join("trainannot/0016E5_00000.png"),
                            gray(24, 18, |x, y| (1 + (x + y) % 12) as u8),
                        )
                    },
                    Kind::MaskValue,
                    &["found 12"],
                    true,
                ),
            ],
        ),
        (
            "a duplicate across splits",
            vec![
                corruption(
                    "cub",
                    cub,
                    |f| {
                        fs::copy(
                            f.join("images/001.Black_footed_Albatross/Black_footed_Albatross_0000_1.jpg"),
                            f.join("images/001.Black_footed_Albatross/Black_footed_Albatross_0003_4.jpg"),
                        )
                        .unwrap();
                    },
                    Kind::DuplicateAcrossSplits,
                    &["_0000_1.jpg (train)", "_0003_4.jpg (test)"],
                    true,
                ),
                corruption(
                    "voc",
                    voc,
                    |f| {
                        fs::copy(f.join("JPEGImages/2007_000032.jpg"), f.join("JPEGImages/2007_000042.jpg"))
                            .unwrap();
                    },
                    Kind::DuplicateAcrossSplits,
                    &["2007_000032 (train)", "2007_000042 (val)"],
                    true,
                ),
                corruption(
                    "ucm",
                    ucm,
                    |f| {
                        fs::copy(f.join("river/river01.tif"), f.join("beach/beach01.tif")).unwrap();
                    },
                    Kind::DuplicateAcrossClasses,
                    &["river01.tif", "beach01.tif"],
                    true,
                ),
            ],
        ),
        (
            "an unreadable line of a list",
            vec![
                corruption(
                    "cub",
                    cub,
                    |f| edit(&f.join("images.txt"), "3 001", "three"),
                    Kind::ListLine,
                    &["train_test_split.txt:3"],
                    false,
                ),
                corruption(
                    "cub",
                    cub,
                    |f| edit(&f.join("image_class_labels.txt"), "7 2\n", "7\n"),
                    Kind::ListLine,
                    &["image_class_labels.txt:7", "found `7`"],
                    false,
                ),
                corruption(
                    "cub",
                    cub,
                    |f| edit(&f.join("images.txt"), "5 002.", "5 ../../002."),
                    Kind::ListLine,
                    &["images.txt:5"],
                    false,
                ),
                corruption(
                    "nabirds",
                    nabirds,
                    |f| edit(&f.join("train_test_split.txt"), " 1\n", " yes\n"),
                    Kind::ListLine,
                    &["train_test_split.txt:1"],
                    false,
                ),
                corruption(
                    "voc",
                    voc,
                    |f| edit(&f.join("ImageSets/Segmentation/train.txt"), "2007_000039", "2007_000039 1"),
                    Kind::ListLine,
                    &["train.txt:2"],
                    false,
                ),
                corruption(
                    "camvid",
                    camvid,
                    |f| edit(&f.join("val.txt"), "valannot/0016E5_00000.png", "valannot"),
                    Kind::ListLine,
                    &["val.txt:1"],
                    false,
                ),
            ],
        ),
        (
            "a byte order mark or CRLF",
            vec![
                corruption(
                    "cub",
                    cub,
                    |f| edit(&f.join("images.txt"), "1 001", "\u{feff}1 001"),
                    Kind::TextForm,
                    &["images.txt", "byte order mark"],
                    true,
                ),
                corruption(
                    "cub",
                    cub,
                    |f| {
                        let text = fs::read_to_string(f.join("classes.txt")).unwrap();
                        put(&f.join("classes.txt"), text.replace('\n', "\r\n"));
                    },
                    Kind::TextForm,
                    &["classes.txt", "3 lines", "CRLF"],
                    true,
                ),
            ],
        ),
        (
            "an image that is not RGB",
            vec![
                corruption(
                    "ucm",
                    ucm,
                    |f| {
                        put(&f.join("river/river01.png"), gray(16, 16, |x, y| (x * y) as u8));
                        fs::remove_file(f.join("river/river01.tif")).unwrap();
                    },
                    Kind::NotRgb,
                    &["river01.png", "gray"],
                    true,
                ),
                corruption(
                    "voc",
                    voc,
                    |f| put(&f.join("JPEGImages/2007_000032.jpg"), palette(40, 30, |x, _| x as u8)),
                    Kind::NotRgb,
                    &["palette"],
                    true,
                ),
            ],
        ),
        (
            "an extra class",
            vec![
                corruption(
                    "ucm",
                    ucm,
                    |f| put(&f.join("moon/moon00.tif"), tiff(16, 16, 99)),
                    Kind::ExtraClass,
                    &["moon"],
                    true,
                ),
                corruption(
                    "cub",
                    cub,
                    |f| put(&f.join("images/201.Dodo/Dodo_0001_1.jpg"), jpeg(16, 16, 99)),
                    Kind::ExtraClass,
                    &["201.Dodo"],
                    true,
                ),
                corruption(
                    "dogs",
                    dogs_plain,
                    |f| put(&f.join("Images/n09999999-Cat/n09999999_1.jpg"), jpeg(16, 16, 99)),
                    Kind::ExtraClass,
                    &["n09999999-Cat"],
                    true,
                ),
            ],
        ),
        (
            "a wrong count",
            vec![corruption(
                "rsscn7",
                rsscn7,
                |f| fs::remove_file(f.join("gParking/g400.jpg")).unwrap(),
                Kind::Count,
                &["expected 2800", "found 2799"],
                true,
            )],
        ),
    ]
}

/// Asserts that `check` reports a corruption, and whether the dataset can be opened.
fn assert_reported(corruption: &Corruption) {
    let root = tempfile::tempdir().unwrap();
    let folder = (corruption.make)(root.path());
    (corruption.apply)(&folder);
    // Only complete datasets have the right count.
    let subset = corruption.kind != Kind::Count;
    let report = check(&request(corruption.name, root.path()), subset).unwrap();
    assert!(!report.is_ok(), "{}: {:?}: {report}", corruption.name, corruption.kind);
    let reported = report.diagnostics.iter().find(|f| {
        f.kind == corruption.kind && f.is_error && corruption.words.iter().all(|w| f.message.contains(w))
    });
    assert!(
        reported.is_some(),
        "{}: no {:?} with {:?} in\n{report}",
        corruption.name,
        corruption.kind,
        corruption.words
    );
    let used = open(corruption.name, root.path());
    let error = used.as_ref().err().map(ToString::to_string);
    assert_eq!(used.is_ok(), corruption.opens, "{}: {:?}: {error:?}", corruption.name, corruption.kind);
}

#[test]
fn reports_seeded_corruptions() {
    let all = corruptions();
    assert_eq!(all.len(), 12);
    for (name, corruptions) in &all {
        println!("{name}: {} datasets", corruptions.len());
        corruptions.iter().for_each(assert_reported);
    }
}

#[test]
fn reports_wrong_counts() {
    let root = tempfile::tempdir().unwrap();
    let folder = rsscn7(root.path());
    fs::remove_file(folder.join("gParking/g400.jpg")).unwrap();
    let report = check(&request("rsscn7", root.path()), false).unwrap();
    let messages: Vec<&str> = report.diagnostics.iter().map(|f| f.message.as_str()).collect();
    assert_eq!(
        messages,
        ["images: expected 2800, found 2799", "images of the class `gParking`: expected 400, found 399"]
    );
    assert!(report.diagnostics.iter().all(|f| f.kind == Kind::Count) && !report.is_ok());
    assert!(check(&request("rsscn7", root.path()), true).unwrap().is_ok());
    fs::remove_dir_all(folder.join("bField")).unwrap();
    let report = check(&request("rsscn7", root.path()), false).unwrap();
    assert!(report.diagnostics.iter().any(|f| f.kind == Kind::MissingClass && f.message.contains("bField")));
}

/// `on_error = "skip"` leaves out unreadable files and keeps the rest unchanged.
#[test]
fn skips_unreadable_files_on_request() {
    let root = tempfile::tempdir().unwrap();
    let folder = cub(root.path());
    fs::remove_file(folder.join("images/001.Black_footed_Albatross/Black_footed_Albatross_0000_1.jpg"))
        .unwrap();
    let cut = folder.join("images/002.Laysan_Albatross/Laysan_Albatross_0003_8.jpg");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert!(open("cub", root.path()).is_err());
    let mut request = request("cub", root.path());
    request.options.insert("on_error".to_string(), "skip".into());
    let set = (registry().get("cub").unwrap().build)(&request).unwrap();
    assert_eq!(set.len(), 10);
    assert!(set.info().title.contains("1 unreadable"), "{}", set.info().title);
    assert_eq!(set.official_split("train").unwrap(), [0, 3, 4, 6, 7]);
    assert_eq!(set.official_split("test").unwrap(), [1, 2, 5, 8, 9]);
    (0..10).for_each(|i| drop(set.sample(i).unwrap()));
    request.options.insert("on_error".to_string(), "ignore".into());
    let e = (registry().get("cub").unwrap().build)(&request).err().unwrap().to_string();
    assert!(e.contains("on_error") && e.contains("skip"), "{e}");
}
