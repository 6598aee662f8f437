//! Reading, checking and telling the hyper-parameters of a method.

use serde::Serialize;
use serde::de::DeserializeOwned;
use stillhouse_core::{Error, Result, config};

/// Where a method's settings come from, for messages.
fn origin(method: &str) -> String {
    format!("method `{method}`")
}

/// The settings of a method; an unknown key is answered with the nearest.
pub(crate) fn read<C: DeserializeOwned>(table: &toml::Table, method: &str) -> Result<C> {
    config::from_table(table, &origin(method))
}

/// The defaults as TOML, one `key = value  # source` a line; a key without a default value is told
/// in a comment.
pub(crate) fn describe<C: Serialize + Default>(sources: &[(&str, &str)]) -> String {
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

/// The defaults with the epochs over which the trainer lets the method's terms grow: a key of the
/// entry in the experiment, not of the method.
pub(crate) fn with_warmup(defaults: &str, epochs: f64, source: &str) -> String {
    format!("{defaults}\nwarmup_epochs = {epochs:?}  # {source}")
}

/// An error about the value of one key.
pub(crate) fn wrong(method: &str, key: &str, found: impl ToString, expected: &str) -> Error {
    Error::config(origin(method), format!("`{key}` is {}, expected {expected}", found.to_string()))
}

/// Refuses NaN, infinities and values below zero.
pub(crate) fn not_negative(method: &str, key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(wrong(method, key, value, "a number that is not negative"))
}

/// Refuses NaN, infinities, zero and values below.
pub(crate) fn above_zero(method: &str, key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(wrong(method, key, value, "a number above 0"))
}

/// Refuses an empty list of stages and a stage named twice.
pub(crate) fn stages(method: &str, key: &str, stages: &[String]) -> Result<()> {
    let twice = stages.iter().enumerate().any(|(i, s)| stages[..i].contains(s));
    if stages.is_empty() || twice {
        return Err(wrong(
            method,
            key,
            format!("{stages:?}"),
            "tap names, each once, for example [\"F3\", \"F4\"]",
        ));
    }
    Ok(())
}

/// The outputs of the four stages.
pub(crate) fn four_stages() -> Vec<String> {
    (1..=4).map(|i| format!("F{i}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_held() {
        assert!(not_negative("m", "k", 0.0).is_ok() && above_zero("m", "k", 0.0).is_err());
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(not_negative("m", "k", bad).is_err() && above_zero("m", "k", bad).is_err());
        }
        let e = above_zero("kd", "temperature", -1.0).unwrap_err().to_string();
        assert!(e.contains("kd") && e.contains("`temperature` is -1") && e.contains("above 0"), "{e}");
        assert!(stages("m", "k", &four_stages()).is_ok());
        assert!(stages("m", "k", &[]).is_err() && stages("m", "k", &["F1".into(), "F1".into()]).is_err());
    }
}
