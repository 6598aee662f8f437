//! From the tables of a repository to folders of images.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::{Progress, Tell, parquet};
use crate::class_folders::simplified;
use crate::manifest::Class;
use crate::{Error, Result, image};

/// Writes the image of each row of all `*.parquet` files below `tables` to `CLASS/NNNNN.EXT` below
/// `into`, by its label and its place among all rows. The files' bytes stay as they are.
///
/// # Errors
///
/// A table that cannot be read, labels that are named in another order than the classes, a label of
/// no class, a row that is no image.
pub(crate) fn unpack(tables: &Path, classes: &[Class], into: &Path, tell: Tell) -> Result<()> {
    let mut paths = Vec::new();
    find(tables, &mut paths)?;
    paths.sort();
    let mut place = 0usize;
    for path in &paths {
        let name = path.display().to_string();
        let broken = |message: String| Error::Decode { name: name.clone(), format: "parquet", message };
        tell(Progress::Say(format!("unpacking {}", path.file_name().unwrap_or_default().to_string_lossy())));
        let footer = parquet::footer(path)?;
        if let Some(names) = &footer.names {
            let same = names.len() == classes.len()
                && names.iter().zip(classes).all(|(a, b)| simplified(a) == simplified(&b.name));
            if !same {
                return Err(broken(format!(
                    "its labels are {names:?}, not the classes of the manifest in their order"
                )));
            }
        }
        parquet::rows(path, &footer, |bytes, label| {
            let class = usize::try_from(label).ok().and_then(|l| classes.get(l));
            let Some(class) = class else {
                return Err(broken(format!(
                    "the label {label} in row {place}, expected 0 to {}",
                    classes.len() - 1
                )));
            };
            let extension = match image::format(bytes) {
                Some("JPEG") => "jpg",
                Some("PNG") => "png",
                Some("TIFF") => "tif",
                _ => return Err(broken(format!("row {place} is no image"))),
            };
            let folder = into.join(&class.name);
            fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            let file = folder.join(format!("{place:05}.{extension}"));
            let mut out = fs::File::create(&file).map_err(Error::io(&file))?;
            out.write_all(bytes).and_then(|()| out.sync_all()).map_err(Error::io(&file))?;
            place += 1;
            Ok(())
        })?;
    }
    if place == 0 {
        return Err(Error::Decode {
            name: tables.display().to_string(),
            format: "parquet",
            message: "no table, or no row in them".to_string(),
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
