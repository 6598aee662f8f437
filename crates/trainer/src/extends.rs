//! An experiment file that says only in what it differs from another.

use stillhouse_core::{Error as CoreError, config};
use toml::{Table, Value};

use crate::config::merge;
use crate::{Error, Result};

/// The key that names the other file, without `.toml`; it stands beside this one.
const KEY: &str = "extends";

/// A table laid over the one that it extends, if it does; `text_of` gives the text of that one. The
/// other's name is not taken over, and it extends nothing itself.
pub(crate) fn extended(
    mut table: Table,
    origin: &str,
    text_of: &dyn Fn(&str) -> std::result::Result<String, CoreError>,
) -> Result<Table> {
    let Some(name) = table.remove(KEY) else { return Ok(table) };
    let name = match &name {
        Value::String(name) if is_name(name) => name,
        other => {
            let what = format!(
                "`{KEY}` is {other}, expected the name of an experiment beside this one, without `.toml`"
            );
            return Err(Error::config(origin, what));
        }
    };
    let text = text_of(name).map_err(|e| Error::config(origin, format!("`{KEY}` is {name:?}: {e}")))?;
    let mut base: Table = config::parse(&text, &format!("{name}.toml, which {origin} extends"))?;
    if base.contains_key(KEY) {
        let what = format!("`{KEY}` is {name:?}, which extends another itself; name that one");
        return Err(Error::config(origin, what));
    }
    base.remove("name");
    merge(&mut base, &table);
    Ok(base)
}

/// No path: nothing outside of the file's folder is read.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str =
        "name = 'b'\ntitle = 'base'\n[train]\nepochs = 4\nlr_scale = [1, 2]\n[profile.p.data]\nsize = 8\n";

    fn over(text: &str) -> Result<Table> {
        let text_of = |name: &str| match name {
            "base" => Ok(BASE.to_string()),
            "twice" => Ok("extends = 'base'".to_string()),
            other => Err(CoreError::incompatible(other, "no such file")),
        };
        extended(toml::from_str(text).unwrap(), "x.toml", &text_of)
    }

    #[test]
    fn what_is_said_stands_over_what_is_extended() {
        let found =
            over("extends = 'base'\ntitle = 'mine'\ntrain.lr_scale = [3]\n[profile.p.data]\nname = 'z'\n");
        let wanted =
            "title = 'mine'\n[train]\nepochs = 4\nlr_scale = [3]\n[profile.p.data]\nsize = 8\nname = 'z'\n";
        assert_eq!(found.unwrap(), toml::from_str::<Table>(wanted).unwrap());
        assert_eq!(over("title = 'alone'").unwrap(), toml::from_str::<Table>("title = 'alone'").unwrap());
    }

    #[test]
    fn mistakes_are_named() {
        for (name, part) in [
            ("'../base'", "without `.toml`"),
            ("3", "without `.toml`"),
            ("'twice'", "extends another itself"),
            ("'bose'", "no such file"),
        ] {
            let text = over(&format!("extends = {name}")).unwrap_err().to_string();
            assert!(text.contains(part) && text.contains("x.toml"), "{text}");
        }
    }
}
