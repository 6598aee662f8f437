//! Text files with one entry per line.

use std::borrow::Cow;
use std::path::{Component, Path};

use crate::diagnostics::{Diagnostics, Kind};
use crate::{Error, Result};

/// Limit for the bytes of a list; the largest official one has a few million.
const MAX_LIST: u64 = 1 << 26;

/// A line without its terminator.
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: usize,
    pub(crate) text: String,
}

/// Returns the non-empty lines of a list. A byte order mark and carriage returns are skipped with a
/// warning.
///
/// # Errors
///
/// An unreadable or too large file; a line that is not UTF-8.
pub(crate) fn lines(path: &Path, diagnostics: &mut Diagnostics) -> Result<Vec<Line>> {
    let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if length > MAX_LIST {
        return Err(Error::setting(
            path.display(),
            format!(
                "expected a list of at most {MAX_LIST} bytes, found {length}; download the dataset again"
            ),
        ));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let mut rest = bytes.as_slice();
    if let Some(text) = rest.strip_prefix(b"\xef\xbb\xbf") {
        diagnostics.warning(
            Kind::TextForm,
            format!("{}: expected plain UTF-8, found a byte order mark", path.display()),
        );
        rest = text;
    }
    let mut all = Vec::new();
    let mut returns = 0;
    for (i, line) in rest.split(|b| *b == b'\n').enumerate() {
        let plain = line.strip_suffix(b"\r").unwrap_or(line);
        returns += usize::from(plain.len() < line.len());
        match std::str::from_utf8(plain) {
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) if !text.contains('\0') => {
                all.push(Line { number: i + 1, text: text.trim().to_string() });
            }
            _ => {
                let found = String::from_utf8_lossy(plain);
                diagnostics.error(Kind::ListLine, wrong_line(path, i + 1, &found, "text in UTF-8"))?;
            }
        }
    }
    if returns > 0 {
        diagnostics.warning(
            Kind::TextForm,
            format!("{}: expected LF line endings, found CRLF in {returns} lines", path.display()),
        );
    }
    Ok(all)
}

/// Parses lines of two fields, the second of which may contain spaces. A line that `read` rejects
/// with `None` is an error.
pub(crate) fn pairs<T>(
    path: &Path,
    expected: &str,
    diagnostics: &mut Diagnostics,
    read: impl Fn(&str, &str) -> Option<T>,
) -> Result<Vec<(usize, T)>> {
    let mut all = Vec::new();
    for line in lines(path, diagnostics)? {
        let words = line.text.split_once([' ', '\t']);
        match words.and_then(|(a, b)| read(a, b.trim_start())) {
            Some(value) => all.push((line.number, value)),
            None => {
                diagnostics.error(Kind::ListLine, wrong_line(path, line.number, &line.text, expected))?;
            }
        }
    }
    Ok(all)
}

/// Splits a line into fields: at its tabs if it has any outside of quotes, else at its spaces. A field in
/// double quotes may contain both; a double quote in it is written twice. `None` if a quote is not closed,
/// or text touches it.
pub(crate) fn fields(line: &str) -> Option<Vec<String>> {
    let mut quoted = false;
    let has_tab = line.chars().any(|c| {
        quoted ^= c == '"';
        c == '\t' && !quoted
    });
    let is_separator = |c: char| if has_tab { c == '\t' } else { c == ' ' };
    let mut all = Vec::new();
    let mut rest = line.trim_matches([' ', '\t']);
    while !rest.is_empty() {
        let (field, after) = match rest.strip_prefix('"') {
            Some(text) => quoted_field(text)?,
            None => {
                let (field, after) = rest.split_at(rest.find(is_separator).unwrap_or(rest.len()));
                (field.trim_end_matches(' ').to_string(), after)
            }
        };
        if !after.is_empty() && !after.starts_with([' ', '\t']) {
            return None;
        }
        all.push(field);
        rest = after.trim_start_matches([' ', '\t']);
    }
    Some(all)
}

/// Returns a name as a field of a list whose fields are separated by tabs.
pub fn list_field(name: &str) -> Cow<'_, str> {
    if name.contains(['"', '\t']) || name.trim() != name {
        return format!("\"{}\"", name.replace('"', "\"\"")).into();
    }
    name.into()
}

/// Reads up to the closing quote; returns the field and what follows.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"')?;
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Some((field, after)),
        }
    }
}

pub(crate) fn wrong_line(path: &Path, line: usize, found: &str, expected: &str) -> Error {
    let found = found.chars().take(80).collect::<String>().escape_debug().to_string();
    Error::ListLine { path: path.to_path_buf(), line, found, expected: expected.to_string() }
}

/// Whether a path is relative and stays below its folder.
pub(crate) fn is_below(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', '\0'])
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_byte_order_marks_and_carriage_returns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        std::fs::write(&path, b"\xef\xbb\xbf1 a b\r\n\r\n2 c\n\xff\xfe\n3\n").unwrap();
        let mut diagnostics = Diagnostics::collecting();
        let read = |a: &str, b: &str| Some((a.parse::<u32>().ok()?, b.to_string()));
        let all = pairs(&path, "a number and a name", &mut diagnostics, read).unwrap();
        assert_eq!(all, [(1, (1, "a b".to_string())), (3, (2, "c".to_string()))]);
        let kinds: Vec<Kind> = diagnostics.found.iter().map(|f| f.kind).collect();
        assert_eq!(kinds, [Kind::TextForm, Kind::ListLine, Kind::TextForm, Kind::ListLine]);
        assert!(
            diagnostics.found[3].message.contains("list.txt:5: expected a number and a name, found `3`"),
            "{}",
            diagnostics.found[3].message
        );
        let e = pairs(&path, "a number and a name", &mut Diagnostics::strict(), read).unwrap_err();
        assert!(e.to_string().contains("list.txt:4"), "{e}");
    }

    #[test]
    fn splits_fields() {
        let of = |line: &str| fields(line).map(|all| all.join("|"));
        for (line, expected) in [
            ("a.jpg b.png", "a.jpg|b.png"),
            ("a.jpg   b.png", "a.jpg|b.png"),
            ("a b.jpg\tm b.png", "a b.jpg|m b.png"),
            ("a b.jpg \t m b.png", "a b.jpg|m b.png"),
            (r#""a b.jpg" "m b.png""#, "a b.jpg|m b.png"),
            (r#""a b.jpg" m.png"#, "a b.jpg|m.png"),
            ("\"a\tb.jpg\" \"m\tb.png\"", "a\tb.jpg|m\tb.png"),
            ("\"a\tb.jpg\"\tm b.png", "a\tb.jpg|m b.png"),
            (r#""a ""x"".jpg" b"#, r#"a "x".jpg|b"#),
            ("a b c", "a|b|c"),
        ] {
            assert_eq!(of(line).as_deref(), Some(expected), "{line}");
        }
        for names in [["a b.jpg", "m.png"], ["a\tb", " c"], ["\"x\"", "y\"z"]] {
            let line = names.map(list_field).join("\t");
            assert_eq!(fields(&line).unwrap(), names, "{line}");
        }
        for line in [r#""a b"#, r#""a"b c"#] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn rejects_paths_outside_of_the_folder() {
        assert!(is_below("001.A/b c.jpg"));
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "./a/../b"] {
            assert!(!is_below(bad), "{bad}");
        }
    }
}
