//! Conversion of parquet tables into class folders.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::{Progress, ProgressFn, parquet};
use crate::layout::class_folders::simplified;
use crate::manifest::Class;
use crate::{Error, Result, decode};

/// Writes the image of each row of all `*.parquet` files below `tables` to `CLASS/NNNNN.EXT` below
/// `into`, where NNNNN is the index among all rows. The encoded images are not changed.
///
/// # Errors
///
/// An unreadable table, label names in another order than the classes, a label out of range, a row
/// that is not an image.
pub(crate) fn unpack(tables: &Path, classes: &[Class], into: &Path, progress: ProgressFn) -> Result<()> {
    let mut paths = Vec::new();
    find(tables, &mut paths)?;
    paths.sort();
    let mut row = 0usize;
    for path in &paths {
        let name = path.display().to_string();
        let corrupt = |message: String| Error::Decode { name: name.clone(), format: "parquet", message };
        progress(Progress::Message(format!(
            "unpacking {}",
            path.file_name().unwrap_or_default().to_string_lossy()
        )));
        let footer = parquet::footer(path)?;
        if let Some(names) = &footer.names {
            let same = names.len() == classes.len()
                && names.iter().zip(classes).all(|(a, b)| simplified(a) == simplified(&b.name));
            if !same {
                return Err(corrupt(format!(
                    "expected the labels of the manifest in their order, found {names:?}"
                )));
            }
        }
        parquet::rows(path, &footer, |bytes, label| {
            let class = usize::try_from(label).ok().and_then(|l| classes.get(l));
            let Some(class) = class else {
                return Err(corrupt(format!(
                    "row {row}: expected a label from 0 to {}, found {label}",
                    classes.len() - 1
                )));
            };
            let extension = match decode::format(bytes) {
                Some("JPEG") => "jpg",
                Some("PNG") => "png",
                Some("TIFF") => "tif",
                _ => return Err(corrupt(format!("row {row}: expected an image"))),
            };
            let folder = into.join(&class.name);
            fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            let file = folder.join(format!("{row:05}.{extension}"));
            let mut out = fs::File::create(&file).map_err(Error::io(&file))?;
            out.write_all(bytes).and_then(|()| out.sync_all()).map_err(Error::io(&file))?;
            row += 1;
            Ok(())
        })?;
    }
    if row == 0 {
        return Err(Error::Decode {
            name: tables.display().to_string(),
            format: "parquet",
            message: "expected a table with at least one row".to_string(),
        });
    }
    Ok(())
}

fn find(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_dir() {
            find(&path, paths)?;
        } else if path.extension().is_some_and(|e| e == "parquet") {
            paths.push(path);
        }
    }
    Ok(())
}
