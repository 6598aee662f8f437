//! Class-folder datasets: every built-in manifest, on a small dataset generated from it.

mod fixtures;

use std::fs;
use std::path::Path;

use fixtures::{class_folders, edit, jpeg, put, request};
use stillhouse_datasets::manifest::{self, Manifest};
use stillhouse_datasets::{Kind, check, registry, registry_in};

fn manifests() -> Vec<&'static Manifest> {
    manifest::builtin().iter().filter(|m| !m.folders.is_empty()).collect()
}

fn error_of(name: &str, root: &Path) -> Option<String> {
    (registry().get(name).unwrap().build)(&request(name, root)).err().map(|e| e.to_string())
}

#[test]
fn reads_every_layout() {
    let names: Vec<&str> = manifests().iter().map(|m| m.name.as_str()).collect();
    assert_eq!(
        names,
        ["ucm", "rsc11", "rsscn7", "aid", "eurosat", "nwpu_resisc45", "patternnet", "whu_rs19"]
    );
    for manifest in manifests() {
        let root = tempfile::tempdir().unwrap();
        let name = manifest.name.as_str();
        let folder = class_folders(manifest, root.path(), |class| 1 + class % 2);
        let set = (registry().get(name).unwrap().build)(&request(name, root.path())).unwrap();
        let classes = manifest.classes.len();
        assert_eq!((set.len(), set.info().classes.len()), (classes + classes / 2, classes), "{name}");
        assert_eq!(set.info().classes, manifest.class_names());
        assert_eq!(set.info().title, format!("{}, {} images", manifest.title, set.len()));
        // One image of the first class, two of the second.
        assert_eq!([0, 1, 2, 3].map(|i| set.class(i)), [0, 1, 1, 2].map(Some), "{name}");
        assert!(set.key(1).starts_with(&format!("{}/", manifest.classes[1].name)), "{name}");
        set.sample(set.len() - 1).unwrap();
        assert!(set.official_split("train").is_none());
        for path in [root.path(), &folder] {
            let report = check(&request(name, path), true).unwrap();
            assert!(report.is_ok() && report.images == set.len(), "{report}");
        }
        // Incomplete, and the report has the published total.
        let report = check(&request(name, root.path()), false).unwrap();
        assert!(!report.is_ok() && report.expected == manifest.total(), "{report}");
    }
}

#[test]
fn accepts_the_alternative_folders() {
    for manifest in manifests() {
        for alternative in &manifest.folders {
            let root = tempfile::tempdir().unwrap();
            let folder = class_folders(manifest, &root.path().join("original"), |_| 1);
            let moved = root.path().join(alternative);
            fs::create_dir_all(moved.parent().unwrap()).unwrap();
            fs::rename(folder, moved).unwrap();
            assert_eq!(error_of(&manifest.name, root.path()), None, "{alternative}");
        }
    }
}

#[test]
fn reports_seeded_corruptions_in_every_layout() {
    type Apply = fn(&Path, &Manifest);
    let corruptions: [(Kind, Apply, bool); 6] = [
        (
            Kind::MissingClass,
            |folder, manifest| fs::remove_dir_all(folder.join(&manifest.classes[2].name)).unwrap(),
            false,
        ),
        (
            Kind::MissingClass,
            |folder, manifest| {
                let class = folder.join(&manifest.classes[2].name);
                fs::remove_dir_all(&class).unwrap();
                put(&class.join("Thumbs.db"), b"");
            },
            false,
        ),
        (
            Kind::Mislabeled,
            |folder, manifest| {
                let [first, second] = [0, 1].map(|i| folder.join(&manifest.classes[i].name));
                for entry in fs::read_dir(first).unwrap() {
                    let path = entry.unwrap().path();
                    put(&second.join(path.file_name().unwrap()), jpeg(16, 16, 9999));
                }
            },
            false,
        ),
        (Kind::ExtraClass, |folder, _| put(&folder.join("moon/moon01.jpg"), jpeg(16, 16, 9999)), true),
        (
            Kind::Broken,
            |folder, manifest| {
                let path = first_image(&folder.join(&manifest.classes[3].name));
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() / 3]).unwrap();
            },
            true,
        ),
        (
            Kind::DuplicateAcrossClasses,
            |folder, manifest| {
                let [a, b] = [0, 4].map(|i| first_image(&folder.join(&manifest.classes[i].name)));
                fs::copy(a, b).unwrap();
            },
            true,
        ),
    ];
    for manifest in manifests() {
        for (kind, apply, opens) in &corruptions {
            let root = tempfile::tempdir().unwrap();
            let folder = class_folders(manifest, root.path(), |_| 2);
            apply(&folder, manifest);
            let name = manifest.name.as_str();
            // Without a pattern any file name belongs to any class.
            let reported = *kind != Kind::Mislabeled || manifest.file_pattern.is_some();
            let report = check(&request(name, root.path()), false).unwrap();
            let found = report.diagnostics.iter().any(|d| d.kind == *kind && d.is_error);
            assert_eq!(found, reported, "{name}: {kind}: {report}");
            assert_eq!(error_of(name, root.path()).is_none(), *opens || !reported, "{name}: {kind}");
        }
    }
}

fn first_image(folder: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.remove(0)
}

const OWN: &str = r#"
name = "harbors"
title = "Harbors"
summary = "own images of harbors"
license = "internal"
folders = ["harbors/images"]
file_pattern = "{class:lower}-{digits:3}"
classes = [
    { name = "Full", images = 2 },
    { name = "Empty", images = 2, color = [1, 2, 3] },
]
"#;

#[test]
fn registers_a_manifest_of_a_data_root() {
    let root = tempfile::tempdir().unwrap();
    let roots = vec![root.path().to_path_buf()];
    put(&root.path().join("harbors.toml"), OWN);
    let own = manifest::find("harbors", &roots).unwrap().unwrap();
    let folder = class_folders(&own, root.path(), |_| 2);
    let all = registry_in(&roots);
    assert_eq!(all.get("harbors").unwrap().summary, "own images of harbors");
    let set = (all.get("harbors").unwrap().build)(&request("harbors", root.path())).unwrap();
    assert_eq!(
        (set.info().classes.as_slice(), set.len()),
        (&["Full".to_string(), "Empty".to_string()][..], 4)
    );
    assert_eq!(set.key(0), "Full/full-001.jpg");
    let report = check(&request("harbors", root.path()), false).unwrap();
    assert!(report.is_ok() && report.expected == Some(4), "{report}");
    assert_eq!(stillhouse_datasets::palette::colors(Some(&own))[1], [1, 2, 3]);
    put(&folder.join("Full/ship.jpg"), jpeg(16, 16, 7));
    let e = (all.get("harbors").unwrap().build)(&request("harbors", root.path())).err().unwrap();
    assert!(e.to_string().contains("ship.jpg") && e.to_string().contains("full-001"), "{e}");

    // A manifest that becomes invalid is still listed, and an error where it is used.
    edit(&root.path().join("harbors.toml"), "images = 2 }", "images = \"two\" }");
    let all = registry_in(&roots);
    for message in [
        all.get("harbors").unwrap().summary.to_string(),
        check(&request("harbors", root.path()), false).unwrap_err().to_string(),
        (all.get("harbors").unwrap().build)(&request("harbors", root.path())).err().unwrap().to_string(),
    ] {
        assert!(message.contains("harbors.toml:9: `classes[0].images`"), "{message}");
    }
    // Other datasets are not affected.
    assert!((all.get("scenes").unwrap().build)(&request("scenes", root.path())).is_ok());
}

#[test]
fn rejects_a_manifest_with_a_builtin_name() {
    let root = tempfile::tempdir().unwrap();
    put(&root.path().join("scenes.toml"), OWN.replace("harbors", "scenes"));
    let e = error_of("scenes", root.path()).unwrap();
    assert!(e.contains("scenes.toml:1: `scenes` is the name of a built-in dataset"), "{e}");
    assert!(check(&request("scenes", root.path()), false).is_err());
}
