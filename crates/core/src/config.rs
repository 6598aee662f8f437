//! Reading configurations so that mistakes are named.

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The closest of `known` to `name`, if it is close enough to be a typing mistake.
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let limit = (name.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&name.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k.to_string())
}

/// Reads TOML text into a type; an error names the origin, the line, the field, what was found
/// and what is allowed, with the nearest name.
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T> {
    let deserializer = toml::Deserializer::parse(text)
        .map_err(|e| Error::config(locate(origin, text, e.span()), e.message()))?;
    serde_path_to_error::deserialize(deserializer).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        Error::config(locate(origin, text, inner.span()), explain(&path, inner.message()))
    })
}

/// Reads a table that is already parsed, as [`parse`] does for text.
pub fn from_table<T: DeserializeOwned>(table: &toml::Table, origin: &str) -> Result<T> {
    let value = toml::Value::Table(table.clone());
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        Error::config(origin, explain(&path, e.inner().message()))
    })
}

/// Lays `over` on `base`: tables are merged key by key, anything else is replaced.
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

/// Sets `a.b.c` to a value written as TOML (`3`, `0.5`, `true`, `[1, 2]`; anything else is a
/// string), as `--set a.b.c=value` does.
pub fn set(table: &mut toml::Table, assignment: &str) -> Result<()> {
    let Some((key, text)) = assignment.split_once('=') else {
        return Err(Error::config(
            format!("--set {assignment}"),
            "expected KEY=VALUE, for example train.epochs=3",
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
            return Err(Error::config(format!("--set {assignment}"), format!("empty name in `{key}`")));
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
                    format!("`{}` is a {}, not a table", parts[..=i].join("."), other.type_str()),
                ));
            }
        }
    }
    Ok(())
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

/// Adds the field's path, and the nearest name where a field or variant is unknown.
fn explain(path: &str, message: &str) -> String {
    let message = message.trim();
    let mut text =
        if path == "." || path.is_empty() { message.to_string() } else { format!("in `{path}`: {message}") };
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
    fn mistakes_are_named() {
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
    fn set_makes_tables() {
        let mut t = toml::Table::new();
        set(&mut t, "train.epochs=3").unwrap();
        set(&mut t, "train.name = plain text").unwrap();
        set(&mut t, "a.b.c=[1, 2]").unwrap();
        assert_eq!(t["train"]["epochs"].as_integer(), Some(3));
        assert_eq!(t["train"]["name"].as_str(), Some("plain text"));
        assert_eq!(t["a"]["b"]["c"].as_array().unwrap().len(), 2);
        assert!(set(&mut t, "train.epochs.x=1").unwrap_err().to_string().contains("not a table"));
        assert!(set(&mut t, "nothing").is_err());
    }

    #[test]
    fn nearest_is_near() {
        assert_eq!(suggest("clas_centric", ["kd", "class_centric"]).as_deref(), Some("class_centric"));
        assert_eq!(suggest("zebra", ["kd", "class_centric"]), None);
    }
}
