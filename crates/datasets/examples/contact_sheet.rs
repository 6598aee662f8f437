//! Writes a contact sheet of a dataset: eight images of each class, one class a row.
//!
//! `cargo run --release -p stillhouse-datasets --example contact_sheet -- scenes sheet.png`

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::Raster;
use stillhouse_datasets::transform::{Filter, resize};

const SIDE: usize = 96;
const COLUMNS: usize = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "scenes".to_string());
    let out = arguments.next().unwrap_or_else(|| "sheet.png".to_string());
    let request = DatasetRequest {
        name: name.clone(),
        roots: std::env::var_os("STILLHOUSE_DATA").map(PathBuf::from).into_iter().collect(),
        path: arguments.next().map(PathBuf::from),
        options: toml::Table::new(),
    };
    let set = (stillhouse_datasets::registry().get(&name)?.build)(&request)?;
    let classes = set.info().classes.len();
    let mut sheet = Raster::filled(COLUMNS * SIDE, classes * SIDE, 3, 0);
    let mut shown = vec![0; classes];
    for index in 0..set.len() {
        let class = set.class(index).unwrap_or(0) as usize;
        if shown[class] == COLUMNS {
            continue;
        }
        let image = resize(&set.sample(index)?.image.into(), SIDE, SIDE, Filter::Bicubic);
        for (y, row) in image.pixels.chunks_exact(3 * SIDE).enumerate() {
            let at = ((class * SIDE + y) * COLUMNS + shown[class]) * SIDE * 3;
            sheet.pixels[at..at + row.len()].copy_from_slice(row);
        }
        shown[class] += 1;
    }
    let mut encoder =
        png::Encoder::new(BufWriter::new(File::create(&out)?), sheet.width as u32, sheet.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&sheet.pixels)?;
    println!("{out}: {} ({} images)", set.info().title, set.len());
    Ok(())
}
