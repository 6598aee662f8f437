//! UC Merced Land Use (Yang and Newsam, ACM GIS 2010) in its official layout.

use stillhouse_core::registry::Entry;

use crate::class_folders::{ClassFolders, is_numbered};
use crate::listing;
use crate::set::Set;

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "ucm",
        summary: "UC Merced Land Use: 21 classes of 100 aerial images, 256x256 but for 44",
        source: "Yang and Newsam, ACM GIS 2010; manifest datasets/ucm.toml",
        defaults: || String::from("# the folder UCMerced_LandUse lies under a data root\n"),
        build: |request| Ok(listing::open(request, |r, n| FOLDERS.read(r, n))?),
    },
    read: |request, notes| FOLDERS.read(request, notes),
};

/// The classes in the order of their indices.
pub(crate) const CLASSES: [&str; 21] = [
    "agricultural",
    "airplane",
    "baseballdiamond",
    "beach",
    "buildings",
    "chaparral",
    "denseresidential",
    "forest",
    "freeway",
    "golfcourse",
    "harbor",
    "intersection",
    "mediumresidential",
    "mobilehomepark",
    "overpass",
    "parkinglot",
    "river",
    "runway",
    "sparseresidential",
    "storagetanks",
    "tenniscourt",
];

pub(crate) const FOLDER: &str = "UCMerced_LandUse/Images";

const FOLDERS: ClassFolders = ClassFolders {
    title: "UC Merced Land Use",
    folders: &[FOLDER],
    classes: &CLASSES,
    hint: "unpack UCMerced_LandUse.zip and set STILLHOUSE_DATA to the folder that holds \
           UCMerced_LandUse, or `stillhouse data fetch ucm` (sources: datasets/ucm.toml); `scenes` \
           needs no files",
    accept: |class, stem| {
        if is_numbered(stem, class, 2, 2) {
            Ok(())
        } else {
            Err(format!("{class}00 to {class}99 with .tif, .jpg or .png"))
        }
    },
};

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use stillhouse_core::data::Dataset;
    use stillhouse_core::registry::DatasetRequest;

    use super::*;

    fn open(request: &DatasetRequest) -> crate::Result<Arc<dyn Dataset>> {
        listing::open(request, ENTRY.read)
    }

    fn request(root: &Path) -> DatasetRequest {
        DatasetRequest {
            name: "ucm".to_string(),
            roots: vec![root.join("absent"), root.to_path_buf()],
            path: None,
            options: toml::Table::new(),
        }
    }

    fn error(request: &DatasetRequest) -> String {
        open(request).err().map(|e| e.to_string()).unwrap_or_default()
    }

    /// Two files of a class each, one of them with the official extension.
    fn fake(root: &Path) {
        for name in CLASSES {
            let folder = root.join(FOLDER).join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("{name}00.tif")), b"x").unwrap();
            fs::write(folder.join(format!("{name}01.jpg")), b"yy").unwrap();
            fs::write(folder.join("Thumbs.db"), b"").unwrap();
        }
    }

    #[test]
    fn layout_is_read_in_class_order() {
        let root = tempfile::tempdir().unwrap();
        fake(root.path());
        let set = open(&request(root.path())).unwrap();
        assert_eq!(set.len(), 42);
        assert_eq!(set.info().classes.len(), 21);
        assert_eq!((set.key(3), set.class(3)), ("airplane/airplane01.jpg".to_string(), Some(1)));
        let fingerprint = set.fingerprint().unwrap();
        let file = root.path().join(FOLDER).join("beach/beach00.tif");
        fs::write(&file, b"longer").unwrap();
        assert_ne!(open(&request(root.path())).unwrap().fingerprint().unwrap(), fingerprint);
        let e = set.sample(6).unwrap_err().to_string();
        assert!(e.contains("beach00.tif") && e.contains("not an image"), "{e}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let root = tempfile::tempdir().unwrap();
        let e = error(&request(root.path()));
        assert!(e.contains(FOLDER) && e.contains("STILLHOUSE_DATA") && e.contains("absent"), "{e}");
        fake(root.path());
        let harbor = root.path().join(FOLDER).join("harbor");
        fs::remove_file(harbor.join("harbor00.tif")).unwrap();
        fs::remove_file(harbor.join("harbor01.jpg")).unwrap();
        let e = error(&request(root.path()));
        assert!(e.contains("`harbor`") && e.contains("no image") && e.contains("tif"), "{e}");
        fs::remove_dir_all(&harbor).unwrap();
        let e = error(&request(root.path()));
        assert!(e.contains("`harbor`") && e.contains("21") && e.contains("found 20"), "{e}");
    }

    #[test]
    fn files_off_the_layout_are_named() {
        let root = tempfile::tempdir().unwrap();
        fake(root.path());
        fs::write(root.path().join(FOLDER).join("river/lake00.jpg"), b"x").unwrap();
        let e = error(&request(root.path()));
        assert!(e.contains("lake00.jpg") && e.contains("river00"), "{e}");
        let mut wrong = request(root.path());
        wrong.options.insert("size".to_string(), toml::Value::Integer(3));
        assert!(error(&wrong).contains("`size`"));
    }
}
