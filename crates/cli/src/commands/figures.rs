//! What a page shows that needs the networks again: features in the plane, samples with Grad-CAM.

use std::path::Path;

use stillhouse_datasets::{Raster, stats};
use stillhouse_report::page::{Plane, Sample, Samples};
use stillhouse_report::svg::Group;
use stillhouse_report::{Planned, Record, tsne};
use stillhouse_trainer::{Context, Seen, features, grad_cam};

use crate::error::CliError;
use crate::output;

/// Points of a picture: more hide each other.
const POINTS: usize = 600;
const PERPLEXITY: f64 = 30.0;
/// Sample images of a page.
const SAMPLES: usize = 8;
/// File of the picture's points beside the table, so that a page can be made again without data.
const FILE: &str = "features.json";

/// The runs of a page's figures: of the first student and column that has one of these methods, the
/// first seed of each.
fn chosen<'a>(runs: &'a [(Planned, Record)], methods: &[String]) -> Vec<&'a (Planned, Record)> {
    let Some((first, _)) = runs.iter().find(|(p, _)| methods.contains(&p.method)) else { return Vec::new() };
    let here = |p: &Planned| {
        (&p.student, &p.dataset, p.ratio, p.seed) == (&first.student, &first.dataset, first.ratio, first.seed)
    };
    methods.iter().filter_map(|m| runs.iter().find(|(p, _)| p.method == *m && here(p))).collect()
}

/// Brings the pooled features of the teacher and of these methods into the plane, and keeps them in
/// the table's folder.
pub(crate) fn make_planes(
    folder: &Path,
    runs: &[(Planned, Record)],
    teachers: &[Record],
    methods: &[String],
    context: &Context,
) -> Result<Vec<Plane>, CliError> {
    let chosen = chosen(runs, methods);
    let teacher = chosen.iter().find_map(|(_, record)| {
        let cell = &record.result.facts.as_ref()?.teacher.as_ref()?.cell;
        teachers.iter().find(|t| t.folder.file_name().is_some_and(|n| n.to_string_lossy() == *cell))
    });
    let mut networks: Vec<(String, &Record)> = Vec::new();
    networks.extend(teacher.map(|t| (format!("teacher, {}", t.about.student()), t)));
    networks.extend(chosen.iter().map(|(p, record)| (format!("{}, {}", p.method, p.student), record)));
    let mut planes = Vec::new();
    for (title, record) in networks {
        output::status(&format!("features of {title}"));
        let looked = features(&record.folder, "pooled", POINTS, context)?;
        let Some(points) = tsne::tsne(&looked.features, PERPLEXITY, 0) else { continue };
        let classes = record.about.classes.iter().enumerate();
        let groups = classes.map(|(c, name)| {
            let own = points.iter().zip(&looked.labels).filter(|(_, l)| **l as usize == c);
            Group { name: name.clone(), points: own.map(|(p, _)| *p).collect() }
        });
        planes.push(Plane { title, groups: groups.collect() });
    }
    let text = serde_json::to_vec(&planes)?;
    stillhouse_core::fs::write_atomic(&folder.join(FILE), &text)?;
    Ok(planes)
}

/// The picture that was made before; none if there is none.
pub(crate) fn kept_planes(folder: &Path) -> Result<Vec<Plane>, CliError> {
    let path = folder.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).map_err(|e| {
            CliError::failed(format!("{}: {e}; remove it, or make it again", path.display()))
        })?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(stillhouse_core::Error::io(&path)(e).into()),
    }
}

/// Sample images of the last of these methods, with what moved its network.
pub(crate) fn make_samples(
    runs: &[(Planned, Record)],
    methods: &[String],
    context: &Context,
) -> Result<Samples, CliError> {
    let Some((planned, record)) = chosen(runs, methods).last().copied() else {
        return Ok(Samples::default());
    };
    output::status(&format!("samples of {}, {}", planned.method, planned.student));
    let (info, seen) = grad_cam(&record.folder, SAMPLES, context)?;
    let class = |c: u32| info.classes.get(c as usize).map_or("?", String::as_str);
    let sample = |s: &Seen| -> Result<Sample, CliError> {
        let verdict = if s.label == s.predicted { "right" } else { "wrong" };
        let predicted = format!("{} {:.0} % ({verdict})", class(s.predicted), 100.0 * s.probability);
        let mut pictures = vec![("image".to_string(), png(s, |s, i, c| s.image[3 * i + c])?)];
        for (tap, map) in &s.maps {
            pictures.push((format!("Grad-CAM at {tap}"), png(s, |s, i, c| overlay(s, map, i, c))?));
        }
        // Of several maps the picture alone does not tell which is which.
        let taps: Vec<&str> = s.maps.iter().map(|(tap, _)| tap.as_str()).collect();
        let at = if taps.len() > 1 { format!("; maps at {}", taps.join(", ")) } else { String::new() };
        Ok(Sample { title: format!("{}: {predicted}{at}", class(s.label)), pictures })
    };
    let words =
        "Grad-CAM: the brighter, the more that place moved the network towards the class it predicts.";
    Ok(Samples {
        words: words.to_string(),
        legend: Vec::new(),
        all: seen.iter().map(sample).collect::<Result<_, _>>()?,
    })
}

fn png(seen: &Seen, value: impl Fn(&Seen, usize, usize) -> f32) -> Result<Vec<u8>, CliError> {
    let mut raster = Raster::filled(seen.size, seen.size, 3, 0);
    for (at, pixel) in raster.pixels.iter_mut().enumerate() {
        *pixel = (255.0 * value(seen, at / 3, at % 3)).round() as u8;
    }
    Ok(stats::png(&raster)?)
}

/// The image in gray, the map in orange on top.
fn overlay(seen: &Seen, map: &[f32], at: usize, channel: usize) -> f32 {
    let rgb = &seen.image[3 * at..3 * at + 3];
    let gray = 0.6 * (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]);
    gray + (([1.0, 0.55, 0.1][channel]) - gray) * 0.8 * map[at]
}
