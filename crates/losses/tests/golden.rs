//! Compares every golden case of `losses/` in f64 and f32: terms, total and gradients.
//!
//! Cases are selected by their metadata, never by their names. The README of the golden folder
//! documents the format and the tolerances.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;
use stillhouse_core::data::{Labels, Target};
use stillhouse_core::distiller::{Distiller, FeatureShapes, LossContext};
use stillhouse_core::model::Features;
use stillhouse_core::{ParamStore, Rng};
use stillhouse_losses::registry;
use stillhouse_ops::ParamKind;
use stillhouse_testkit::golden::{Case, require};

/// Names in the golden metadata that differ from the names of methods, terms and settings.
const RENAMED: &[(&str, &str)] = &[
    ("class_centre", "class_centric"),
    ("tap", "feature"),
    ("C1_feature", "feature"),
    ("C2_kernel", "kernel"),
    ("C3_distance", "distance"),
    ("C4_class_weight", "class_weight"),
    ("C5_stages", "stages"),
    ("C5_stage_weights", "stage_weights"),
    ("C6_connector", "connector"),
    ("C7_contribution", "contribution"),
    ("C8_mask", "mask"),
    ("C8_keep", "keep"),
    ("C8_rho", "rho"),
    ("C9_centre", "centers"),
    ("C10_edge", "edge"),
    ("C11_total", "total"),
    ("C11_scale", "scale"),
];

/// Today's name of a method, term or setting.
fn renamed(name: &str) -> &str {
    RENAMED.iter().find(|(golden, _)| *golden == name).map_or(name, |(_, name)| name)
}

/// Settings that are omitted if `null`.
const NULLABLE: &[&str] = &["ignore_index", "z_student", "z_teacher"];

#[test]
fn matches_every_golden_case() {
    let cases = require("losses");
    let (mut left_out, mut wrong) = (0, Vec::new());
    for case in &cases {
        for dtype in [DType::F64, DType::F32] {
            match check(case, dtype) {
                Ok(extras) => left_out += extras,
                Err(e) => wrong.push(format!("{case} in {dtype:?}: {e}")),
            }
        }
    }
    println!(
        "golden losses: {} cases checked in f64 and f32; {left_out} intermediate values not compared",
        cases.len()
    );
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

/// Changed values, settings, tensors and formats are errors.
#[test]
fn rejects_changed_cases() {
    let cases = require("losses");
    let case = cases.first().expect("a golden case");
    let fails = |why: &str, change: &dyn Fn(&mut Case)| {
        let mut changed = case.clone();
        change(&mut changed);
        let e = check(&changed, DType::F64).expect_err(why);
        assert!(e.contains(why), "{why}: {e}");
    };
    check(case, DType::F64).unwrap();
    fails("unknown field", &|c| c.meta["hyper"]["no_such_key"] = 1.into());
    fails("unknown method", &|c| c.meta["method"] = "no_such_method".into());
    fails("format", &|c| c.meta["format"] = "stillhouse-golden-loss-2".into());
    fails("terms", &|c| c.meta["terms"][0]["weight"] = 0.123.into());
    fails("unknown input", &|c| {
        c.meta["inputs"]["other.new"] = serde_json::json!({"dtype": "f64", "shape": [1], "grad": false});
        c.tensors.insert("other.new".into(), Tensor::zeros(1, DType::F64, &Device::Cpu).unwrap());
    });
    fails("no_parameter", &|c| {
        c.meta["inputs"]["param.no_parameter"] =
            serde_json::json!({"dtype": "f64", "shape": [1], "grad": true});
        c.tensors.insert("param.no_parameter".into(), Tensor::zeros(1, DType::F64, &Device::Cpu).unwrap());
    });
    for (name, tensor) in &case.tensors {
        if name == "expected.total" || name.starts_with("expected.term") || name.starts_with("grad.") {
            let moved = (tensor + 1e-3).unwrap();
            fails(name, &|c| drop(c.tensors.insert(name.clone(), moved.clone())));
        }
    }
}

type Outcome<T> = Result<T, String>;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn message(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// The networks' name of a feature in the golden metadata.
fn feature_name(golden: &str) -> String {
    match golden {
        "deep.logits" => "logits".into(),
        "deep.feat" => "embedding".into(),
        exit if exit.starts_with("exit") && !exit.contains('.') => format!("{exit}.logits"),
        same => same.into(),
    }
}

/// Methods of a case, whose terms are added up, and whether connectors are in training mode.
struct Setup {
    methods: Vec<Box<dyn Distiller>>,
    train: bool,
}

/// Passes all keys of `hyper` but `ce_weight` and `bn_mode` to the method, which rejects unknown ones.
fn setup(case: &Case) -> Outcome<Setup> {
    let method = renamed(text(&case.meta, "method"));
    let mut own = toml::Table::new();
    let mut ce = toml::Table::new();
    let mut train = true;
    let hyper = case.meta["hyper"].as_object().ok_or("no `hyper`")?;
    for (key, value) in hyper {
        match (key.as_str(), value) {
            (_, Value::Null) if NULLABLE.contains(&key.as_str()) => {}
            ("ce_weight", weight) => {
                let weight = weight.as_f64().ok_or("`ce_weight` is not a number")?;
                if weight > 0.0 {
                    ce.insert("weight".into(), weight.into());
                }
            }
            ("bn_mode", mode) if hyper.contains_key("bn_eps") => {
                train = match mode.as_str() {
                    Some("train") => true,
                    Some("eval") => false,
                    _ => return Err(format!("unknown bn_mode {mode}")),
                }
            }
            (key, value) => drop(own.insert(renamed(key).into(), toml(value)?)),
        }
    }
    // Settings that the case implies by its weights.
    if let ("crd", Some(weight)) = (method, case.tensors.get("param.embed_student.weight")) {
        own.insert("feature_dim".into(), (weight.dims()[0] as i64).into());
    }
    if method == "fitnet" {
        let bias = |name: &String| name.starts_with("param.") && name.ends_with("regressor.bias");
        own.insert("bias".into(), case.tensors.keys().any(bias).into());
    }
    let width = |name: &str| case.meta["inputs"][format!("param.d.{name}.weight")]["shape"][0].as_u64();
    if let (Some(first), Some(second)) = (width("conv1"), width("conv2")) {
        let widths = [first, second].map(|w| toml::Value::Integer(w as i64));
        own.insert("widths".into(), widths.to_vec().into());
    }
    let build = |name: &str, table: &toml::Table| {
        let entry = *registry().get(name).map_err(message)?;
        (entry.build)(table).map_err(message)
    };
    let mut methods = Vec::new();
    if !ce.is_empty() {
        methods.push(build("ce", &ce)?);
    }
    methods.push(build(method, &own)?);
    Ok(Setup { methods, train })
}

fn toml(value: &Value) -> Outcome<toml::Value> {
    toml::Value::try_from(value).map_err(|e| format!("{value}: {e}"))
}

/// Runs a case in one dtype. Returns the number of intermediate values that are not compared.
fn check(case: &Case, dtype: DType) -> Outcome<usize> {
    if text(&case.meta, "format") != "stillhouse-golden-loss-1" {
        return Err(format!("unknown format {}", case.meta["format"]));
    }
    let Setup { mut methods, train } = setup(case)?;

    // Inputs. The student's features and all parameters have gradients.
    let (mut student, mut teacher, mut aux) = (Features::default(), Features::default(), Features::default());
    let (mut leaves, mut stored, mut target, mut images) = (Vec::new(), Vec::new(), None, None);
    let inputs = case.meta["inputs"].as_object().ok_or("no `inputs`")?;
    for (name, input) in inputs {
        let grad = input["grad"].as_bool().ok_or_else(|| format!("{name}: no `grad`"))?;
        let tensor = case.tensors.get(name).ok_or_else(|| format!("no tensor `{name}`"))?;
        let cast = || tensor.to_dtype(dtype).map_err(message);
        match name.split_once('.').unwrap_or((name, "")) {
            ("student", name_in_case) if grad => {
                let var = Var::from_tensor(&cast()?).map_err(message)?;
                student.insert(feature_name(name_in_case), var.as_tensor().clone());
                leaves.push((name.clone(), var));
            }
            ("student", name) => student.insert(feature_name(name), cast()?),
            ("teacher", name) if !grad => teacher.insert(feature_name(name), cast()?),
            ("target", "classes") => {
                target = Some(Labels::Classes(tensor.to_dtype(DType::U32).map_err(message)?))
            }
            ("target", "mask") => target = Some(Labels::Mask(tensor.to_dtype(DType::U32).map_err(message)?)),
            ("aux", "image") if !grad => images = Some(cast()?),
            ("aux", name) if !grad && tensor.dtype() == DType::I64 => aux.insert(name, tensor.clone()),
            ("aux", name) if !grad => aux.insert(name, cast()?),
            ("param", own) if grad => stored.push((ParamKind::Weight, own, cast()?)),
            ("buffer", own) if !grad => stored.push((ParamKind::Buffer, own, cast()?)),
            _ => return Err(format!("unknown input `{name}` (grad: {grad})")),
        }
    }
    let batch = student.iter().next().map_or(0, |(_, t)| t.dims()[0]);
    // Cases without labels do not depend on them.
    let labels =
        target.unwrap_or(Labels::Classes(Tensor::zeros(batch, DType::U32, &Device::Cpu).map_err(message)?));
    let classes = match (student.iter().find(|(name, _)| name.ends_with("logits")), &labels) {
        (Some((_, logits)), _) => logits.dims()[1],
        (_, Labels::Classes(t) | Labels::Mask(t)) => {
            let largest = t.flatten_all().and_then(|t| t.max(0)).and_then(|t| t.to_scalar::<u32>());
            largest.map_err(message)? as usize + 1
        }
    };

    // Connectors. The case has exactly the methods' parameters.
    let params = ParamStore::new(dtype, &Device::Cpu).map_err(message)?;
    let shapes = FeatureShapes {
        student: student.shapes(),
        teacher: teacher.shapes(),
        task: labels.task(),
        classes,
        batch,
        samples: batch,
    };
    for method in &mut methods {
        method.connect(&shapes, &params.builder(Rng::new(0))).map_err(message)?;
    }
    for (kind, name, value) in &stored {
        let id = params.id(name).ok_or_else(|| format!("the method has no parameter `{name}`"))?;
        if params.get(id).kind != *kind {
            return Err(format!("`{name}` is a {:?}, expected a {kind:?}", params.get(id).kind));
        }
        params.import(id, value).map_err(message)?;
    }
    let in_case: BTreeSet<&str> = stored.iter().map(|(_, name, _)| *name).collect();
    for param in params.all() {
        // Running statistics are read in evaluation only.
        let read = param.kind == ParamKind::Weight || !train;
        if read && !in_case.contains(param.name.as_str()) {
            return Err(format!("the case has no value for `{}`", param.name));
        }
        if param.kind == ParamKind::Weight {
            leaves.push((format!("param.{}", param.name), param.var().clone()));
        }
    }

    let (target, ids) = (Target::on_cpu(labels), (0..batch as u64).collect::<Vec<_>>());
    let context = LossContext {
        images: images.as_ref(),
        ids: &ids,
        overrides: &aux,
        train,
        ..LossContext::new(&student, &teacher, &target)
    };
    let mut terms = Vec::new();
    for method in &methods {
        terms.extend(method.terms(&context).map_err(message)?);
    }
    let weights = methods.iter().flat_map(|m| m.term_weights()).collect::<Vec<_>>();
    let got: Vec<(String, f64)> = terms.iter().map(|t| (t.name.clone(), t.weight)).collect();
    let listed = case.meta["terms"].as_array().ok_or("no `terms`")?;
    let want: Vec<(String, f64)> = listed
        .iter()
        .map(|t| (renamed(text(t, "name")).to_string(), t["weight"].as_f64().unwrap_or(f64::NAN)))
        .collect();
    if got != want || weights != want {
        return Err(format!("terms: expected {want:?}, found {got:?} and the weights {weights:?}"));
    }
    let mut total = Tensor::zeros((), dtype, &Device::Cpu).map_err(message)?;
    for term in &terms {
        total = (&term.value * term.weight).and_then(|v| total + v).map_err(message)?;
    }
    let grads = total.backward().map_err(message)?;

    for method in &mut methods {
        method.after_step(&context, &params).map_err(message)?;
    }

    // Comparison.
    let key = if dtype == DType::F64 { "f64" } else { "f32" };
    let tolerances =
        case.meta["tolerance"][key].as_object().ok_or_else(|| format!("no `tolerance.{key}`"))?;
    for (name, _) in inputs.iter().filter(|(_, input)| input["grad"] == true) {
        if !tolerances.contains_key(&format!("grad.{name}")) {
            return Err(format!("no tolerance for the gradient of `{name}`"));
        }
    }
    let mut left_out = 0;
    let mut wrong = Vec::new();
    for (name, tolerance) in tolerances {
        let got = match name.split_once('.').unwrap_or((name, "")) {
            ("expected", "total") => total.clone(),
            ("expected", part) if part.starts_with("term.") => {
                let term = terms.iter().find(|t| renamed(&part["term.".len()..]) == t.name);
                term.ok_or_else(|| format!("no term for `{name}`"))?.value.clone()
            }
            ("expected", part) if part.starts_with("extra.") => {
                // State after the step, or the value of a buffer.
                let part = &part["extra.".len()..];
                let after = part.strip_prefix("after.");
                match (params.id(after.unwrap_or(part)), after) {
                    (Some(id), _) => params.export(id).map_err(message)?,
                    (None, Some(buffer)) => return Err(format!("the method has no buffer `{buffer}`")),
                    (None, None) => {
                        left_out += 1;
                        continue;
                    }
                }
            }
            ("grad", input) => {
                let leaf = leaves.iter().find(|(leaf, _)| leaf == input);
                let leaf = &leaf.ok_or_else(|| format!("no input for `{name}`"))?.1;
                match grads.get(leaf) {
                    Some(gradient) => gradient.clone(),
                    None => leaf.zeros_like().map_err(message)?,
                }
            }
            _ => return Err(format!("unknown value `{name}`")),
        };
        if got.dtype() != dtype {
            return Err(format!("`{name}` is {:?}", got.dtype()));
        }
        let want = case.tensors.get(name).ok_or_else(|| format!("no tensor `{name}`"))?;
        if let Err(e) = compare(&got, &want.to_dtype(dtype).map_err(message)?, tolerance) {
            wrong.push(format!("`{name}`: {e}"));
        }
    }
    if wrong.is_empty() { Ok(left_out) } else { Err(wrong.join("; ")) }
}

/// Requires finite values with `|got - want| <= atol + rtol * |want|`; only finite ones if the tolerance
/// is null.
fn compare(got: &Tensor, want: &Tensor, tolerance: &Value) -> Outcome<()> {
    if got.dims() != want.dims() {
        return Err(format!("expected the shape {:?}, found {:?}", want.dims(), got.dims()));
    }
    let values = |t: &Tensor| {
        t.to_dtype(DType::F64).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1::<f64>()).map_err(message)
    };
    let (got, want) = (values(got)?, values(want)?);
    if got.iter().any(|v| !v.is_finite()) {
        return Err("not finite".into());
    }
    if tolerance.is_null() {
        return Ok(());
    }
    let part = |key: &str| tolerance[key].as_f64().ok_or_else(|| format!("no `{key}` in {tolerance}"));
    let (rtol, atol) = (part("rtol")?, part("atol")?);
    let over = got.iter().zip(&want).map(|(g, w)| (g, w, (g - w).abs() / (atol + rtol * w.abs())));
    match over.filter(|(_, _, over)| *over > 1.0).max_by(|a, b| a.2.total_cmp(&b.2)) {
        Some((g, w, over)) => Err(format!("expected {w:e}, found {g:e}: {over:.1} times the tolerance")),
        None => Ok(()),
    }
}
