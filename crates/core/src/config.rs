//! TOML configurations with precise errors.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Returns the nearest of `known` to `name`, if it is close enough to be a typo.
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let limit = (name.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k.to_string())
}

/// Parses TOML text.
///
/// # Errors
/// [`Error::Config`] with origin, line, field, expected and found values, and the nearest name.
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T> {
    let deserializer = toml::Deserializer::parse(text)
        .map_err(|e| Error::config(locate(origin, text, e.span()), e.message()))?;
    serde_path_to_error::deserialize(deserializer).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        Error::config(locate(origin, text, inner.span()), explain(&path, inner.message()))
    })
}

/// Deserializes a parsed table, with the errors of [`parse`] (without the line).
pub fn from_table<T: DeserializeOwned>(table: &toml::Table, origin: &str) -> Result<T> {
    let value = toml::Value::Table(table.clone());
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        Error::config(origin, explain(&path, e.inner().message()))
    })
}

/// Merges `over` into `base`: tables key by key, all other values are replaced.
pub fn merge(base: &mut toml::Table, over: &toml::Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(toml::Value::Table(b)), toml::Value::Table(o)) => merge(b, o),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Applies an assignment `a.b.c=value`, as in `--set`. The value is TOML (`3`, `0.5`, `true`,
/// `[1, 2]`); anything else is a string.
///
/// # Errors
/// [`Error::Config`] if the assignment is malformed, or a parent of the key is not a table.
pub fn set(table: &mut toml::Table, assignment: &str) -> Result<()> {
    let Some((key, text)) = assignment.split_once('=') else {
        return Err(Error::config(
            format!("--set {assignment}"),
            "expected KEY=VALUE, such as train.epochs=3",
        ));
    };
    let (key, text) = (key.trim(), text.trim());
    let value = toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_string()));
    let parts: Vec<&str> = key.split('.').collect();
    let mut at = table;
    for (i, part) in parts.iter().enumerate() {
        if part.is_empty() {
            return Err(Error::config(
                format!("--set {assignment}"),
                format!("empty segment in the key `{key}`"),
            ));
        }
        if i + 1 == parts.len() {
            at.insert((*part).to_string(), value);
            return Ok(());
        }
        let next = at.entry(*part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        match next {
            toml::Value::Table(t) => at = t,
            other => {
                return Err(Error::config(
                    format!("--set {assignment}"),
                    format!("`{}`: expected a table, found {}", parts[..=i].join("."), other.type_str()),
                ));
            }
        }
    }
    Ok(())
}

/// Returns all values of a table by dotted path: `train.epochs` -> `30`. Lists of tables are counted
/// (`loss.0.method`); other lists are one value.
pub fn flatten(table: &toml::Table) -> BTreeMap<String, String> {
    fn add(path: &str, value: &toml::Value, all: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => table.iter().for_each(|(k, v)| add(&format!("{path}.{k}"), v, all)),
            toml::Value::Array(list) if list.iter().any(toml::Value::is_table) => {
                list.iter().enumerate().for_each(|(i, v)| add(&format!("{path}.{i}"), v, all));
            }
            toml::Value::String(text) => drop(all.insert(path.to_string(), text.clone())),
            other => drop(all.insert(path.to_string(), other.to_string())),
        }
    }
    let mut all = BTreeMap::new();
    table.iter().for_each(|(key, value)| add(key, value, &mut all));
    all
}

fn locate(origin: &str, text: &str, span: Option<std::ops::Range<usize>>) -> String {
    match span {
        Some(span) => {
            let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
            format!("{origin}:{line}")
        }
        None => origin.to_string(),
    }
}

/// Adds the field's path, and the nearest name for an unknown field or variant.
fn explain(path: &str, message: &str) -> String {
    let message = message.trim();
    let mut text =
        if path == "." || path.is_empty() { message.to_string() } else { format!("`{path}`: {message}") };
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown")
        && let Some((found, known)) = names.split_first()
        && let Some(n) = suggest(found, known.iter().copied())
    {
        text.push_str(&format!("; did you mean `{n}`?"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        epochs: u32,
    }
    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        train: Inner,
    }

    #[test]
    fn names_line_field_and_nearest_name() {
        let e = parse::<Outer>("[train]\nepochs = 3\nepoch = 2\n", "x.toml").unwrap_err().to_string();
        assert!(
            e.contains("x.toml:3") && e.contains("`epoch`") && e.contains("did you mean `epochs`"),
            "{e}"
        );
        let e = parse::<Outer>("[train]\nepochs = \"three\"\n", "x.toml").unwrap_err().to_string();
        assert!(e.contains("train.epochs") && e.contains("x.toml:2"), "{e}");
        let e = parse::<Outer>("[train\n", "x.toml").unwrap_err().to_string();
        assert!(e.contains("x.toml:1"), "{e}");
    }

    #[test]
    fn set_creates_tables() {
        let mut t = toml::Table::new();
        set(&mut t, "train.epochs=3").unwrap();
        set(&mut t, "train.name = plain text").unwrap();
        set(&mut t, "a.b.c=[1, 2]").unwrap();
        assert_eq!(t["train"]["epochs"].as_integer(), Some(3));
        assert_eq!(t["train"]["name"].as_str(), Some("plain text"));
        assert_eq!(t["a"]["b"]["c"].as_array().unwrap().len(), 2);
        assert!(
            set(&mut t, "train.epochs.x=1")
                .unwrap_err()
                .to_string()
                .contains("expected a table, found integer")
        );
        assert!(set(&mut t, "nothing").is_err());
    }

    #[test]
    fn suggests_only_near_names() {
        assert_eq!(suggest("clas_centric", ["kd", "class_centric"]).as_deref(), Some("class_centric"));
        assert_eq!(suggest("zebra", ["kd", "class_centric"]), None);
    }
}
