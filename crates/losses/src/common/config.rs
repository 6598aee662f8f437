//! Parsing and validation of a method's settings, and its documented defaults.

use serde::Serialize;
use serde::de::DeserializeOwned;
use stillhouse_core::{Error, Result, config};

/// Origin of a method's settings in error messages.
fn origin(method: &str) -> String {
    format!("method `{method}`")
}

/// Parses the settings of a method.
///
/// # Errors
/// For unknown keys, with the nearest known one, and for values of the wrong type.
pub(crate) fn parse<C: DeserializeOwned>(table: &toml::Table, method: &str) -> Result<C> {
    config::from_table(table, &origin(method))
}

/// The defaults as TOML, one `key = value  # source` per line. Keys without a default value become
/// comments.
pub(crate) fn document<C: Serialize + Default>(sources: &[(&str, &str)]) -> String {
    let text = toml::to_string(&C::default()).unwrap_or_default();
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_string();
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| match sources.iter().find(|(k, _)| *k == key(line)) {
            Some((_, source)) => format!("{line}  # {source}"),
            None => line.to_string(),
        })
        .collect();
    for (k, source) in sources {
        if !lines.iter().any(|line| key(line) == *k) {
            lines.push(format!("# {k} is unset: {source}"));
        }
    }
    lines.join("\n")
}

/// The defaults with a warm-up of the method's weights. `warmup_epochs` is a key of the loss in the
/// experiment, read by the trainer.
pub(crate) fn with_warmup(defaults: &str, epochs: f64, source: &str) -> String {
    format!("{defaults}\nwarmup_epochs = {epochs:?}  # {source}")
}

/// An error about the value of a key.
pub(crate) fn invalid(method: &str, key: &str, found: impl ToString, expected: &str) -> Error {
    Error::config(
        origin(method),
        format!("invalid `{key}`: expected {expected}, found {}", found.to_string()),
    )
}

/// Requires a finite number of at least 0.
pub(crate) fn require_non_negative(method: &str, key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(invalid(method, key, value, "a number of at least 0"))
}

/// Requires a finite number above 0.
pub(crate) fn require_positive(method: &str, key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(invalid(method, key, value, "a number above 0"))
}

/// Requires a number in [0, 1].
pub(crate) fn require_fraction(method: &str, key: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(invalid(method, key, value, "a number in [0, 1]"))
}

/// Requires at least one stage, and each only once.
pub(crate) fn require_stages(method: &str, key: &str, stages: &[String]) -> Result<()> {
    let repeated = stages.iter().enumerate().any(|(i, s)| stages[..i].contains(s));
    if stages.is_empty() || repeated {
        let expected = "feature names, each once, for example [\"F3\", \"F4\"]";
        return Err(invalid(method, key, format!("{stages:?}"), expected));
    }
    Ok(())
}

/// Names of the outputs of the four stages.
pub(crate) fn four_stages() -> Vec<String> {
    (1..=4).map(|i| format!("F{i}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_numbers_out_of_range() {
        let (at_least_0, above_0) = (require_non_negative, require_positive);
        assert!(at_least_0("m", "k", 0.0).is_ok() && above_0("m", "k", 0.0).is_err());
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(at_least_0("m", "k", bad).is_err() && above_0("m", "k", bad).is_err());
            assert!(require_fraction("m", "k", bad).is_err());
        }
        let e = above_0("kd", "temperature", -1.0).unwrap_err().to_string();
        assert!(
            e.contains("kd") && e.contains("invalid `temperature`: expected a number above 0, found -1"),
            "{e}"
        );
    }

    #[test]
    fn rejects_empty_and_repeated_stages() {
        assert!(require_stages("m", "k", &four_stages()).is_ok());
        assert!(require_stages("m", "k", &[]).is_err());
        assert!(require_stages("m", "k", &["F1".into(), "F1".into()]).is_err());
    }
}
