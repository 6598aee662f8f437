//! Weights in configurations, and their loading.

use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Initial weights of a model, in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum WeightsSource {
    /// `scratch`, the name of pretrained weights (`imagenet`) or a path. `imagenet|scratch` stands for
    /// the first of the two that is found.
    Name(String),
    /// `{ file = "run.ckpt", key = "state_dict_ema" }`
    File(FileSource),
}

/// A weights file, and which of its state dicts is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// Path of the file.
    pub file: PathBuf,
    /// Dotted path of the state dict in the file (`state_dict_ema`, `model.student`); needed if more
    /// than one fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl WeightsSource {
    /// Returns the source of random initial values.
    pub fn scratch() -> Self {
        Self::Name("scratch".into())
    }

    /// Returns whether the initial values are random.
    pub fn is_scratch(&self) -> bool {
        matches!(self, Self::Name(name) if name == "scratch")
    }
}

impl From<&str> for WeightsSource {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}

/// Formats the name, or the path with the key in parentheses.
impl fmt::Display for WeightsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::File(FileSource { file, key: None }) => write!(f, "{}", file.display()),
            Self::File(FileSource { file, key: Some(key) }) => write!(f, "{} ({key})", file.display()),
        }
    }
}

impl<'de> Deserialize<'de> for WeightsSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = WeightsSource;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a name, a path, or a table such as { file = \"run.ckpt\", key = \"state_dict\" }",
                )
            }
            fn visit_str<E>(self, name: &str) -> Result<WeightsSource, E> {
                Ok(name.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WeightsSource, A::Error> {
                FileSource::deserialize(MapAccessDeserializer::new(map)).map(WeightsSource::File)
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}

/// How a weights file is loaded into a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOptions<'a> {
    /// Dotted path of the state dict in the file; the only one that fits by default.
    pub key: Option<&'a str>,
    /// Whether the head may be missing or have another number of classes; then it keeps its initial
    /// values.
    pub replace_head: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Section {
        init: WeightsSource,
    }

    fn parse(text: &str) -> Result<Section, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_names_and_files() {
        for (text, shown) in [
            ("init = \"imagenet|scratch\"", "imagenet|scratch"),
            ("init = { file = \"a/x.ckpt\" }", "a/x.ckpt"),
            ("init = { file = \"x.ckpt\", key = \"model.ema\" }", "x.ckpt (model.ema)"),
        ] {
            let section = parse(text).unwrap();
            assert_eq!(section.init.to_string(), shown);
            let back = toml::to_string(&section).unwrap();
            assert_eq!(parse(&back).unwrap(), section, "{back}");
        }
        assert!(WeightsSource::scratch().is_scratch() && !WeightsSource::from("imagenet").is_scratch());
        assert!(parse("init = { file = \"x\", keys = \"y\" }").unwrap_err().contains("keys"));
        assert!(parse("init = { key = \"y\" }").unwrap_err().contains("file"));
        assert!(parse("init = 3").unwrap_err().contains("a name, a path, or a table"));
    }
}
