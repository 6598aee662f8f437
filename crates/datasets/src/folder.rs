//! Any folder of class folders.

use std::sync::Arc;

use stillhouse_core::data::{Dataset, DatasetInfo, Task};
use stillhouse_core::registry::{DatasetBuild, DatasetRequest, Entry};

use crate::listing::{Listing, class_items, folders_in};
use crate::ucm::no_options;
use crate::{Error, Result};

pub(crate) const ENTRY: Entry<DatasetBuild> = Entry {
    name: "folder",
    summary: "any folder with one folder of images per class; classes in byte order of their names",
    source: "your own files: PATH/CLASS/*.{jpg,jpeg,png,tif,tiff}",
    defaults: || String::from("# path = \"...\"  # required: the folder of the class folders\n"),
    build: |request| Ok(open(request)?),
};

fn open(request: &DatasetRequest) -> Result<Arc<dyn Dataset>> {
    no_options(request)?;
    let Some(path) = &request.path else {
        return Err(Error::setting(
            "dataset `folder`",
            "expected a path, found none; name the folder of the class folders",
        ));
    };
    let classes = folders_in(path)?;
    if classes.is_empty() {
        return Err(Error::setting(
            path.display(),
            "expected one folder of images per class, found no folder; sort the images into class folders",
        ));
    }
    let mut items = Vec::new();
    for (class, name) in classes.iter().enumerate() {
        items.extend(class_items(&path.join(name), name, class as u32, |_| Ok(()))?);
    }
    let title = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into());
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("{title}, {} images", items.len()),
        classes,
        task: Task::Classification,
        embedded: false,
    };
    Ok(Arc::new(Listing { info, items }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn request(path: Option<PathBuf>) -> DatasetRequest {
        DatasetRequest { name: "folder".to_string(), roots: vec![], path, options: toml::Table::new() }
    }

    #[test]
    fn classes_are_in_byte_order() {
        let root = tempfile::tempdir().unwrap();
        for (class, file) in
            [("b", "1.JPG"), ("B", "2.png"), ("ä", "3.tiff"), ("a", "4.jpeg"), (".git", "5.png")]
        {
            fs::create_dir(root.path().join(class)).unwrap();
            fs::write(root.path().join(class).join(file), b"x").unwrap();
        }
        fs::write(root.path().join("notes.txt"), b"").unwrap();
        let set = open(&request(Some(root.path().to_path_buf()))).unwrap();
        assert_eq!(set.info().classes, ["B", "a", "b", "ä"]);
        assert_eq!((set.len(), set.key(2), set.class(3)), (4, "b/1.JPG".to_string(), Some(3)));
    }

    #[test]
    fn empty_things_are_named() {
        let root = tempfile::tempdir().unwrap();
        let error = |path: Option<PathBuf>| open(&request(path)).err().unwrap().to_string();
        assert!(error(None).contains("path"));
        assert!(error(Some(root.path().join("absent"))).contains("absent"));
        assert!(error(Some(root.path().to_path_buf())).contains("no folder"));
        fs::create_dir(root.path().join("kelp")).unwrap();
        fs::write(root.path().join("kelp/readme.txt"), b"").unwrap();
        let e = error(Some(root.path().to_path_buf()));
        assert!(e.contains("`kelp`") && e.contains("1 other files"), "{e}");
    }
}
