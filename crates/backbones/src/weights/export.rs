//! Export of a model as a folder in the Hub's layout: weights, timm's configuration, a model card.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use stillhouse_core::fs::write_atomic;
use stillhouse_core::{Error as CoreError, ParamStore, Result};

use super::save::{Precision, save_as};

/// Description of a trained model for its users.
#[derive(Debug, Clone, Default)]
pub struct ModelCard {
    /// Registry name.
    pub arch: String,
    /// Architecture variant.
    pub variant: toml::Table,
    /// Number of classes of the head.
    pub class_count: usize,
    /// Class names in the order of the logits; empty if unknown.
    pub classes: Vec<String>,
    /// Height and width of the input, in pixels.
    pub size: (usize, usize),
    /// How test images were brought to this size, if known.
    pub preprocessing: Option<Preprocessing>,
    /// Mean of the input per channel, for RGB in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of the input per channel.
    pub std: [f32; 3],
    /// License identifier of the Hub.
    pub license: Option<String>,
    /// Further rows of the table: origin, training, accuracy.
    pub facts: Vec<(String, String)>,
}

impl ModelCard {
    /// Returns the arguments of timm's constructor for the same model, or why timm has none.
    fn timm(&self) -> std::result::Result<Map<String, Value>, String> {
        let in_timm = ["resnet", "mobilenetv2_", "vgg", "swin_"].iter().any(|f| self.arch.starts_with(f));
        if !in_timm {
            return Err(format!("timm has no `{}`", self.arch));
        }
        let mut arguments = Map::new();
        for (key, value) in &self.variant {
            match (key.as_str(), value) {
                ("output_stride", toml::Value::Integer(32))
                | ("stride_in_1x1", toml::Value::Boolean(false))
                | ("dropout" | "drop_path", _) => {}
                ("output_stride", toml::Value::Integer(stride)) => {
                    arguments.insert("output_stride".into(), json!(stride));
                }
                ("padding", toml::Value::String(padding)) if padding == "same" => {
                    arguments.insert("pad_type".into(), json!("same"));
                }
                ("padding", _) => {}
                ("img_size", size) => {
                    arguments.insert("img_size".into(), json!(size));
                }
                (key, value) => return Err(format!("timm has no `{key} = {value}`")),
            }
        }
        Ok(arguments)
    }

    /// Builds `config.json` as timm reads it from the Hub or from a folder.
    fn config(&self, arguments: Map<String, Value>) -> Value {
        let mut config = json!({
            "architecture": self.arch,
            "num_classes": self.class_count,
            "pretrained_cfg": {
                "tag": "stillhouse",
                "input_size": [3, self.size.0, self.size.1],
                "num_classes": self.class_count,
                "mean": self.mean.map(decimal),
                "std": self.std.map(decimal),
            },
        });
        if let Some(preprocessing) = &self.preprocessing {
            let own = &mut config["pretrained_cfg"];
            own["interpolation"] = json!(preprocessing.interpolation);
            own["crop_pct"] = json!(preprocessing.crop_fraction(self.size.0));
            own["crop_mode"] = json!(preprocessing.crop_mode());
        }
        if !arguments.is_empty() {
            config["model_args"] = Value::Object(arguments);
        }
        if !self.classes.is_empty() {
            config["label_names"] = json!(self.classes);
        }
        config
    }

    /// Returns how images are turned into inputs: `input_size` (channels, height, width), `mean`, `std`, and
    /// of known preprocessing `resize`, `crop` and `interpolation`. Part of the metadata of safetensors and
    /// ONNX files.
    pub fn input_metadata(&self) -> Vec<(String, String)> {
        let join = |values: &[f32; 3]| values.map(|v| v.to_string()).join(" ");
        let mut all = vec![
            ("input_size", format!("3 {} {}", self.size.0, self.size.1)),
            ("mean", join(&self.mean)),
            ("std", join(&self.std)),
        ];
        if let Some(preprocessing) = &self.preprocessing {
            all.push(("resize", preprocessing.resize.map_or("none".into(), |r| r.to_string())));
            all.push(("crop", preprocessing.crop.map_or("none".into(), |side| format!("center {side} px"))));
            all.push(("interpolation", preprocessing.interpolation.clone()));
        }
        all.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
    }

    /// Builds the metadata of the weights file.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::from([
            // Required by the loader of transformers.
            ("format".to_string(), "pt".to_string()),
            ("arch".to_string(), self.arch.clone()),
            ("classes".to_string(), self.class_count.to_string()),
        ]);
        all.extend(self.input_metadata());
        if !self.variant.is_empty() {
            all.insert("variant".into(), self.variant.to_string().trim().replace('\n', "; "));
        }
        all
    }

    /// Builds `README.md` with the Hub's front matter.
    fn text(&self, timm: &std::result::Result<Map<String, Value>, String>, precision: Precision) -> String {
        let mut text = String::from("---\n");
        if let Some(license) = &self.license {
            text.push_str(&format!("license: {}\n", json!(license)));
        }
        if timm.is_ok() {
            text.push_str("library_name: timm\n");
        }
        let task = if self.arch.starts_with("deeplabv3plus") {
            "image-segmentation"
        } else {
            "image-classification"
        };
        text.push_str(&format!(
            "pipeline_tag: {task}\ntags: [knowledge-distillation]\n---\n\n# {}\n\n",
            self.arch
        ));
        let [m0, m1, m2] = self.mean;
        let [s0, s1, s2] = self.std;
        let variant = match self.variant.is_empty() {
            true => "none".to_string(),
            false => format!("`{}`", self.variant.to_string().trim().replace('\n', ", ")),
        };
        let kind = match precision {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
        };
        let mut rows = vec![
            ("classes".to_string(), self.class_count.to_string()),
            (
                "input".to_string(),
                format!("RGB in [0, 1], {} x {} px (height x width)", self.size.0, self.size.1),
            ),
            (
                "preprocessing".to_string(),
                self.preprocessing.as_ref().map_or("unknown".into(), ToString::to_string),
            ),
            ("mean, standard deviation".to_string(), format!("{m0} {m1} {m2}, {s0} {s1} {s2}")),
            ("architecture variant".to_string(), variant),
            ("weights".to_string(), format!("`model.safetensors`, {kind}, timm's parameter names")),
        ];
        rows.extend(self.facts.iter().cloned());
        text.push_str("| | |\n|---|---|\n");
        for (what, value) in rows {
            text.push_str(&format!("| {what} | {} |\n", value.replace('|', "\\|").replace('\n', " ")));
        }
        match timm {
            Ok(_) => text.push_str(
                "\n```python\nimport timm\nmodel = timm.create_model(\"local-dir:FOLDER\", pretrained=True).eval()\n```\n",
            ),
            Err(reason) => text.push_str(&format!("\ntimm cannot load this model: {reason}.\n")),
        }
        if !self.classes.is_empty() {
            text.push_str(&format!("\nClasses in the order of the logits: {}.\n", self.classes.join(", ")));
        }
        text
    }
}

/// How test images are brought to the size of the input, before they are normalized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preprocessing {
    /// Resize; images keep their size if `None`.
    pub resize: Option<Resize>,
    /// Side of the square center crop in pixels.
    pub crop: Option<usize>,
    /// Filter of the resize, by timm's name: `bilinear`, `bicubic`, `lanczos`, `nearest`.
    pub interpolation: String,
}

/// A resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side to a number of pixels; the aspect ratio is kept.
    ShorterSide(usize),
    /// To a height and width.
    Exact(usize, usize),
}

impl Preprocessing {
    /// Reads the test transforms of a run. Returns `None` if they are more than a resize and a center crop.
    pub fn from_transforms(transforms: &[toml::Table]) -> Option<Self> {
        let mut all = Self { resize: None, crop: None, interpolation: "bilinear".into() };
        for transform in transforms {
            let pixels =
                |key: &str| usize::try_from(transform.get(key)?.as_integer()?).ok().filter(|n| *n > 0);
            let resize = match transform.get("op")?.as_str()? {
                "resize_short" => Resize::ShorterSide(pixels("size")?),
                "resize" => Resize::Exact(pixels("height")?, pixels("width")?),
                "center_crop" => {
                    all.crop = Some(pixels("size")?);
                    continue;
                }
                _ => return None,
            };
            if all.resize.is_some() || all.crop.is_some() {
                return None;
            }
            all.resize = Some(resize);
            if let Some(filter) = transform.get("filter").and_then(toml::Value::as_str) {
                all.interpolation = filter.into();
            }
        }
        Some(all)
    }

    /// Returns timm's `crop_pct` for an input of a height: `floor(height / crop_pct)` is the size of the
    /// resize. Rounded down to four digits, so that the quotient does not fall below that size.
    fn crop_fraction(&self, height: usize) -> f64 {
        match self.resize {
            Some(Resize::ShorterSide(side) | Resize::Exact(side, _)) if side > height => {
                (height as f64 / side as f64 * 1e4).floor() / 1e4
            }
            _ => 1.0,
        }
    }

    /// Returns timm's `crop_mode`: whether the aspect ratio is kept.
    fn crop_mode(&self) -> &'static str {
        match self.resize {
            Some(Resize::Exact(..)) => "squash",
            _ => "center",
        }
    }
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShorterSide(side) => write!(f, "shorter side {side} px"),
            Self::Exact(height, width) => write!(f, "{height} x {width} px (height x width)"),
        }
    }
}

impl fmt::Display for Preprocessing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.resize {
            Some(resize) => write!(f, "resize to {resize}, {}", self.interpolation)?,
            None => f.write_str("no resize")?,
        }
        self.crop.map_or(Ok(()), |side| write!(f, "; center crop of {side} px"))
    }
}

/// Returns the f64 with the shortest decimal representation of a value.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Writes `model.safetensors`, `README.md` and, if timm has the model, `config.json` into a folder.
/// `timm.create_model("local-dir:FOLDER", pretrained=True)` then computes the same logits. Returns the
/// files, and the reason if timm cannot load them.
///
/// # Errors
/// An I/O error, or a value that overflows f16.
pub fn export(
    params: &ParamStore,
    card: &ModelCard,
    folder: &Path,
    precision: Precision,
) -> Result<(Vec<PathBuf>, Option<String>)> {
    let timm = card.timm();
    let weights = folder.join("model.safetensors");
    save_as(params, &weights, &card.metadata(), precision)?;
    let mut files = vec![weights];
    let mut write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        write_atomic(&path, bytes)?;
        files.push(path);
        Ok::<_, CoreError>(())
    };
    if let Ok(arguments) = &timm {
        let config = card.config(arguments.clone());
        write("config.json", &serde_json::to_vec_pretty(&config).map_err(CoreError::other)?)?;
    }
    write("README.md", card.text(&timm, precision).as_bytes())?;
    Ok((files, timm.err()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(arch: &str, variant: &str) -> ModelCard {
        ModelCard {
            arch: arch.into(),
            variant: toml::from_str(variant).unwrap_or_default(),
            ..ModelCard::default()
        }
    }

    #[test]
    fn maps_variants_to_arguments_of_timm() {
        let same = card("mobilenetv2_100", "padding = 'same'").timm();
        assert_eq!(same.map(Value::Object), Ok(json!({"pad_type": "same"})));
        let dilated = card("resnet50", "output_stride = 16\nstride_in_1x1 = false").timm();
        assert_eq!(dilated.map(Value::Object), Ok(json!({"output_stride": 16})));
        assert!(card("resnet50", "stride_in_1x1 = true").timm().is_err_and(|e| e.contains("stride_in_1x1")));
        assert!(card("deeplabv3plus", "").timm().is_err_and(|e| e.contains("deeplabv3plus")));
        assert!(card("cifar_resnet20", "").timm().is_err());
    }

    #[test]
    fn describes_test_transforms() {
        let read = |text: &str| {
            let all: toml::Table = toml::from_str(&format!("all = [{text}]")).unwrap();
            let tables = all["all"].as_array().unwrap().iter().map(|t| t.as_table().unwrap().clone());
            Preprocessing::from_transforms(&tables.collect::<Vec<_>>())
        };
        let usual = read("{ op = 'resize_short', size = 73 }, { op = 'center_crop', size = 64 }").unwrap();
        assert_eq!((usual.crop, usual.crop_mode()), (Some(64), "center"));
        assert_eq!(usual.to_string(), "resize to shorter side 73 px, bilinear; center crop of 64 px");
        let squashed = "{ op = 'resize', width = 510, height = 510, filter = 'bicubic' }, { op = 'center_crop', size = 384 }";
        let squashed = read(squashed).unwrap();
        assert_eq!((squashed.crop_mode(), squashed.interpolation.as_str()), ("squash", "bicubic"));
        // timm resizes to floor(size / crop_pct).
        for size in [32, 64, 224, 384] {
            for resized in [size, size + 1, size * 8 / 7, size * 5 / 4, 2 * size] {
                let at = Preprocessing { resize: Some(Resize::ShorterSide(resized)), ..usual.clone() };
                assert_eq!((size as f64 / at.crop_fraction(size)).floor() as usize, resized, "{size}");
            }
        }
        assert_eq!(read("").map(|p| (p.crop_fraction(64), p.to_string())), Some((1.0, "no resize".into())));
        assert_eq!(read("{ op = 'hflip' }"), None);
    }

    #[test]
    fn escapes_table_cells() {
        let facts = vec![("data".to_string(), "a|b\nc".to_string())];
        let text = ModelCard { facts, ..card("resnet18", "") }.text(&Ok(Map::new()), Precision::F16);
        assert!(text.contains("| data | a\\|b c |") && text.contains("f16"), "{text}");
    }
}
