//! Loading of weights files into a model.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Result, Rng};

use super::matching::{Classes, Matching, Target};
use super::read::{StateDict, StoredTensor, WeightsFile};
use super::report::LoadReport;
use crate::{Error, FAMILIES};

/// Compares a file with a model without loading it; see [`load_weights`].
///
/// # Errors
/// [`Error::UnknownKey`], [`Error::Ambiguous`].
pub fn compare_weights(
    file: &WeightsFile,
    params: &ParamStore,
    head: &[String],
    options: &LoadOptions<'_>,
) -> Result<LoadReport> {
    let entries = params.all();
    let target = Target::new(&entries, head, options.replace_head);
    Ok(Matching::best(file, &target, options.key)?.report)
}

/// Loads a safetensors or PyTorch file, in the names of timm, torchvision or Hugging Face (see
/// `docs/weights.md`), into parameters; f16, bf16, f32 and f64 are converted.
///
/// The state dict, and a prefix of its names, are those whose tensors fit the parameters. The file must have
/// exactly the parameters, with the same shapes (except for counters and computed tables) and finite values.
/// Otherwise nothing is loaded. With `replace_head`, the parameters in `head` may be missing or have a
/// different number of classes, other heads are left out, and the file of a backbone may be loaded into a
/// model with another head (`backbone.*`). Returns [`LoadReport::notes`].
///
/// The file is read tensor by tensor and needs memory for one tensor at a time.
///
/// # Errors
/// [`Error::Malformed`], [`Error::UnknownKey`], [`Error::Ambiguous`], [`Error::Mismatch`],
/// [`Error::Classes`], [`Error::NonFinite`], or an I/O error.
pub fn load_weights(
    path: &Path,
    params: &ParamStore,
    head: &[String],
    options: &LoadOptions<'_>,
) -> Result<Vec<String>> {
    let file = WeightsFile::open(path)?;
    let entries = params.all();
    let target = Target::new(&entries, head, options.replace_head);
    let Matching { report, sources, scheme, classes, .. } = Matching::best(&file, &target, options.key)?;
    if !report.matches() {
        return Err(Error::Mismatch {
            path: path.to_path_buf(),
            matched: report.matched,
            total: report.total,
            similar: similar_models(&file)?,
            missing: report.missing,
            unexpected: report.unexpected,
            mismatched: report.mismatched,
        }
        .into());
    }
    if let Some(Classes { name, expected, found }) = classes {
        return Err(Error::Classes { path: path.to_path_buf(), name, expected, found }.into());
    }
    let tensors = non_finite(&file, sources.iter().flat_map(|(_, parts)| parts.iter().copied()))?;
    if !tensors.is_empty() {
        return Err(Error::NonFinite { path: path.to_path_buf(), tensors }.into());
    }
    for (index, parts) in sources {
        let param = &entries[index];
        let mut values = Vec::new();
        for part in parts {
            values.push(file.read(part)?);
        }
        let mut values = match values.as_slice() {
            [whole] => whole.clone(),
            parts => Tensor::cat(parts, 0)?,
        };
        if values.dims() != param.shape {
            values = values.reshape(param.shape.as_slice())?;
        }
        if scheme.variance != 0.0 && param.name.ends_with(".running_var") {
            values = (values.to_dtype(DType::F64)? + scheme.variance)?;
        }
        if let Some(id) = params.id(&param.name) {
            params.import(id, &values)?;
        }
    }
    Ok(report.notes())
}

/// Finds values that are not finite as f32. Returns a line for each tensor that has some: name, counts and
/// kinds.
///
/// # Errors
/// An I/O error.
pub fn non_finite<'a>(
    file: &WeightsFile,
    tensors: impl IntoIterator<Item = &'a StoredTensor>,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for tensor in tensors.into_iter().filter(|t| t.float_dtype().is_some()) {
        let values = file.read(tensor)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let count = |is: fn(&f32) -> bool| values.iter().filter(|v| is(v)).count();
        let kinds = [
            (count(|v| v.is_nan()), "NaN"),
            (count(|v| *v == f32::INFINITY), "+inf"),
            (count(|v| *v == f32::NEG_INFINITY), "-inf"),
        ];
        let found: Vec<String> =
            kinds.iter().filter(|(n, _)| *n > 0).map(|(n, kind)| format!("{n} {kind}")).collect();
        if !found.is_empty() {
            lines.push(format!("`{}`: {} of {} values", tensor.name, found.join(", "), values.len()));
        }
    }
    Ok(lines)
}

/// Returns the models that a file fits, by any of its state dicts; the head may differ.
///
/// # Errors
/// A model that cannot be built.
pub fn similar_models(file: &WeightsFile) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in FAMILIES.iter().flat_map(|family| family.entries) {
        let params = ParamStore::meta();
        let spec = ModelSpec { name: entry.name.into(), classes: 1000, ..ModelSpec::default() };
        let model = (entry.build)(&spec, &params.builder(Rng::new(0)))?;
        let (entries, head) = (params.all(), model.head());
        let shapes: Vec<(usize, usize)> =
            entries.iter().filter(|p| !head.contains(&p.name)).map(|p| flat_shape(&p.shape)).collect();
        if !file.state_dicts().iter().any(|dict| has_shapes(dict, &shapes)) {
            continue;
        }
        let target = Target::new(&entries, &head, true);
        // A file with several state dicts that fit is ambiguous, but of this model.
        let fits = Matching::best(file, &target, None)
            .map_or(true, |m| m.report.matches() && m.report.inside.is_empty());
        if fits {
            found.push(entry.name.to_string());
        }
    }
    Ok(found)
}

/// Returns outputs and inputs of a layer, the same for a linear layer and a convolution over the whole map.
fn flat_shape(shape: &[usize]) -> (usize, usize) {
    (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product())
}

/// Returns whether a state dict has a tensor for each shape.
fn has_shapes(dict: &StateDict, shapes: &[(usize, usize)]) -> bool {
    let mut counts: HashMap<(usize, usize), usize> = HashMap::new();
    for tensor in &dict.tensors {
        *counts.entry(flat_shape(&tensor.shape)).or_default() += 1;
    }
    shapes.iter().all(|shape| match counts.get_mut(shape) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    })
}
