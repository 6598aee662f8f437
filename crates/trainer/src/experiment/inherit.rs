//! `extends`: an experiment file that overrides another.

use stillhouse_core::{Error as CoreError, config as core_config};
use toml::{Table, Value};

use super::merge;
use crate::{Error, Result};

/// Key with the name of the other file, without `.toml`, in the same folder.
const KEY: &str = "extends";

/// Merges a table into the one that it extends; `read_base` returns the text of that one. The base's name is
/// not inherited, and a base may not extend another.
pub(super) fn inherit(
    mut table: Table,
    origin: &str,
    read_base: &dyn Fn(&str) -> std::result::Result<String, CoreError>,
) -> Result<Table> {
    let Some(name) = table.remove(KEY) else { return Ok(table) };
    let name = match &name {
        Value::String(name) if is_file_stem(name) => name,
        other => {
            let message = format!(
                "invalid `{KEY}`: expected an experiment of the same folder, without `.toml`, found {other}"
            );
            return Err(Error::config(origin, message));
        }
    };
    let text = read_base(name).map_err(|e| Error::config(origin, format!("`{KEY} = {name:?}`: {e}")))?;
    let mut base: Table = core_config::parse(&text, &format!("{name}.toml, extended by {origin}"))?;
    if base.contains_key(KEY) {
        let message =
            format!("invalid `{KEY}`: {name:?} extends another experiment; extend that one directly");
        return Err(Error::config(origin, message));
    }
    base.remove("name");
    merge(&mut base, &table);
    Ok(base)
}

/// Returns whether a name has no path: only files of the same folder are read.
fn is_file_stem(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str =
        "name = 'b'\ntitle = 'base'\n[train]\nepochs = 4\nlr_scale = [1, 2]\n[profile.p.data]\nsize = 8\n";

    fn inherited(text: &str) -> Result<Table> {
        let read_base = |name: &str| match name {
            "base" => Ok(BASE.to_string()),
            "twice" => Ok("extends = 'base'".to_string()),
            other => Err(CoreError::incompatible(other, "no such file")),
        };
        inherit(toml::from_str(text).unwrap(), "x.toml", &read_base)
    }

    #[test]
    fn what_is_said_stands_over_what_is_inherit() {
        let found = inherited(
            "extends = 'base'\ntitle = 'mine'\ntrain.lr_scale = [3]\n[profile.p.data]\nname = 'z'\n",
        );
        let expected =
            "title = 'mine'\n[train]\nepochs = 4\nlr_scale = [3]\n[profile.p.data]\nsize = 8\nname = 'z'\n";
        assert_eq!(found.unwrap(), toml::from_str::<Table>(expected).unwrap());
        assert_eq!(
            inherited("title = 'alone'").unwrap(),
            toml::from_str::<Table>("title = 'alone'").unwrap()
        );
    }

    #[test]
    fn rejects_invalid_bases() {
        for (name, expected) in [
            ("'../base'", "without `.toml`"),
            ("3", "without `.toml`"),
            ("'twice'", "extends another experiment"),
            ("'bose'", "no such file"),
        ] {
            let text = inherited(&format!("extends = {name}")).unwrap_err().to_string();
            assert!(text.contains(expected) && text.contains("x.toml"), "{text}");
        }
    }
}
