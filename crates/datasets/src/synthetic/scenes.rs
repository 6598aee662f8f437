//! Synthetic aerial scenes: 21 classes named after those of UC Merced Land Use.
//!
//! They imitate the structure of their namesakes: furrows, planes on aprons, diamonds, tanks, piers,
//! parking lots. All classes share the same climates, grounds, roofs and light, so color hardly
//! separates them and a network has to recognize shapes.

use std::sync::Arc;

use stillhouse_core::Rng;
use stillhouse_core::data::Dataset;
use stillhouse_core::registry::DatasetRequest;

use super::{ImageSettings, Scene, SyntheticDataset, SyntheticKind, land, town, traffic};

pub(super) const NAME: &str = "scenes";

/// Draws the classes, in the order of the manifest.
const PAINTERS: [fn(&mut Scene); 21] = [
    land::agricultural,
    traffic::airplane,
    land::baseball_diamond,
    land::beach,
    town::buildings,
    land::chaparral,
    town::dense_residential,
    land::forest,
    traffic::freeway,
    land::golf_course,
    traffic::harbor,
    traffic::intersection,
    town::medium_residential,
    town::mobile_home_park,
    traffic::overpass,
    traffic::parking_lot,
    land::river,
    traffic::runway,
    town::sparse_residential,
    town::storage_tanks,
    town::tennis_court,
];

fn draw(settings: ImageSettings, class: usize, number: usize) -> Vec<u8> {
    let rng = Rng::new(settings.seed).stream("scenes");
    let mut scene = Scene::new(settings.size, rng.at(class as u64, number as u64));
    PAINTERS[class](&mut scene);
    let Scene { canvas, mut draw, palette, .. } = scene;
    palette.develop(&canvas, &mut draw)
}

pub(super) fn open(request: &DatasetRequest) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    let kind = SyntheticKind { name: NAME, version: 1, classes: PAINTERS.len(), has_split: false, draw };
    Ok(Arc::new(SyntheticDataset::open(request, kind)?))
}
