//! Figures of a page that run the networks: embeddings of features, samples with Grad-CAM.

use std::path::Path;

use stillhouse_datasets::{ImageBuffer, stats};
use stillhouse_report::charts::Group;
use stillhouse_report::page::{Embedding, Sample, Samples};
use stillhouse_report::{FinishedRuns, Planned, Record, tsne};
use stillhouse_trainer::{Context, GradCam, extract_features, grad_cam};

use crate::error::CliError;
use crate::output;

/// Most points of an embedding; more would overlap.
const MAX_POINTS: usize = 600;
const PERPLEXITY: f64 = 30.0;
/// Sample images of a page.
const MAX_SAMPLES: usize = 8;
/// File of the embeddings, so that the page can be rewritten without the data.
const FILE: &str = "features.json";

/// Selects the runs of a page's figures: the first seed of each method, for the first student and column that has
/// one of the methods.
fn select<'a>(runs: &'a [(Planned, Record)], methods: &[String]) -> Vec<&'a (Planned, Record)> {
    let Some((first, _)) = runs.iter().find(|(p, _)| methods.contains(&p.method)) else { return Vec::new() };
    let here = |p: &Planned| {
        (&p.student, &p.dataset, p.ratio, p.seed) == (&first.student, &first.dataset, first.ratio, first.seed)
    };
    methods.iter().filter_map(|m| runs.iter().find(|(p, _)| p.method == *m && here(p))).collect()
}

/// Embeds the pooled features of the teacher and of these methods in the plane, and writes them into the table's
/// folder.
pub(crate) fn write_embeddings(
    folder: &Path,
    finished: &FinishedRuns,
    methods: &[String],
    context: &Context,
) -> Result<Vec<Embedding>, CliError> {
    let selected = select(&finished.runs, methods);
    let teacher = selected.iter().find_map(|(_, record)| {
        let cell = &record.result.summary.teacher.as_ref()?.cell;
        finished
            .teachers
            .iter()
            .find(|t| t.dir.path().file_name().is_some_and(|n| n.to_string_lossy() == *cell))
    });
    let mut networks: Vec<(String, &Record)> = Vec::new();
    networks.extend(teacher.map(|t| (format!("teacher, {}", t.info.student()), t)));
    networks.extend(selected.iter().map(|(p, record)| (format!("{}, {}", p.method, p.student), record)));
    let mut embeddings = Vec::new();
    for (title, record) in networks {
        output::status(&format!("features of {title}"));
        let Some(set) = extract_features(record.dir.path(), "pooled", MAX_POINTS, context)? else { continue };
        let Some(points) = tsne::tsne(&set.features, PERPLEXITY, 0) else { continue };
        let classes = record.info.classes.iter().enumerate();
        let groups = classes.map(|(c, name)| {
            let own = points.iter().zip(&set.labels).filter(|(_, l)| **l as usize == c);
            Group { name: name.clone(), points: own.map(|(p, _)| *p).collect() }
        });
        embeddings.push(Embedding { title, groups: groups.collect() });
    }
    let text = serde_json::to_vec(&embeddings)?;
    stillhouse_core::fs::write_atomic(&folder.join(FILE), &text)?;
    Ok(embeddings)
}

/// Reads the embeddings that were written before; empty if there are none.
pub(crate) fn read_embeddings(folder: &Path) -> Result<Vec<Embedding>, CliError> {
    let path = folder.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).map_err(|e| {
            CliError::failed(format!(
                "{}: {e}; remove the file or write it again with --features",
                path.display()
            ))
        })?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(stillhouse_core::Error::io(&path)(e).into()),
    }
}

/// Sample images of the last of these methods, with Grad-CAM.
pub(crate) fn grad_cam_samples(
    runs: &[(Planned, Record)],
    methods: &[String],
    context: &Context,
) -> Result<Samples, CliError> {
    let Some((planned, record)) = select(runs, methods).last().copied() else {
        return Ok(Samples::default());
    };
    output::status(&format!("samples of {}, {}", planned.method, planned.student));
    let (info, cams) = grad_cam(record.dir.path(), MAX_SAMPLES, context)?;
    let class = |c: u32| info.classes.get(c as usize).map_or("?", String::as_str);
    let sample = |s: &GradCam| -> Result<Sample, CliError> {
        let verdict = if s.label == s.predicted { "correct" } else { "wrong" };
        let predicted = format!("{} {:.0} % ({verdict})", class(s.predicted), 100.0 * s.probability);
        let mut pictures = vec![("image".to_string(), png(s, |s, i, c| s.image[3 * i + c])?)];
        for (feature, map) in &s.maps {
            pictures.push((format!("Grad-CAM at {feature}"), png(s, |s, i, c| overlay(s, map, i, c))?));
        }
        // Several maps look alike without their names.
        let names: Vec<&str> = s.maps.iter().map(|(name, _)| name.as_str()).collect();
        let at = if names.len() > 1 { format!("; maps at {}", names.join(", ")) } else { String::new() };
        Ok(Sample { title: format!("{}: {predicted}{at}", class(s.label)), pictures })
    };
    let text = "Grad-CAM: brighter regions contribute more to the predicted class.";
    Ok(Samples {
        text: text.to_string(),
        legend: Vec::new(),
        all: cams.iter().map(sample).collect::<Result<_, _>>()?,
    })
}

fn png(cam: &GradCam, value: impl Fn(&GradCam, usize, usize) -> f32) -> Result<Vec<u8>, CliError> {
    let mut image = ImageBuffer::filled(cam.size, cam.size, 3, 0);
    for (at, pixel) in image.pixels.iter_mut().enumerate() {
        *pixel = (255.0 * value(cam, at / 3, at % 3)).round() as u8;
    }
    Ok(stats::png(&image)?)
}

/// The image in gray, the map in orange on top.
fn overlay(cam: &GradCam, map: &[f32], at: usize, channel: usize) -> f32 {
    let rgb = &cam.image[3 * at..3 * at + 3];
    let gray = 0.6 * (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]);
    gray + (([1.0, 0.55, 0.1][channel]) - gray) * 0.8 * map[at]
}
