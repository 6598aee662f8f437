//! Patterns of image names in class folders.

use serde::Deserialize;

/// Digits of a file's number.
const MAX_DIGITS: usize = 9;

/// Pattern of an image's name without its extension.
///
/// Text matches itself; `{class}` is the class name, `{class:lower}` the same in lowercase,
/// `{class:initial}` its first letter; `{digits:3}` are three digits, `{digits:1-3}` one to three.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct FilePattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Class,
    LowercaseClass,
    ClassInitial,
    Digits { min: usize, max: usize },
}

impl TryFrom<String> for FilePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let Some((field, after)) = after.split_once('}') else {
                return Err(format!("expected `}}` after `{{` in {text:?}"));
            };
            if !before.is_empty() {
                parts.push(Part::Literal(before.to_string()));
            }
            parts.push(parse_field(field)?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_string()));
        }
        if text.is_empty() || text.contains('/') {
            return Err(format!("expected a file name, found {text:?}"));
        }
        Ok(Self { text, parts })
    }
}

fn parse_field(field: &str) -> Result<Part, String> {
    let digits = || {
        let range = field.strip_prefix("digits:")?;
        let (min, max) = range.split_once('-').unwrap_or((range, range));
        let (min, max) = (min.parse().ok()?, max.parse().ok()?);
        (1 <= min && min <= max && max <= MAX_DIGITS).then_some(Part::Digits { min, max })
    };
    match field {
        "class" => Ok(Part::Class),
        "class:lower" => Ok(Part::LowercaseClass),
        "class:initial" => Ok(Part::ClassInitial),
        _ => digits().ok_or_else(|| {
            format!(
                "expected `{{class}}`, `{{class:lower}}`, `{{class:initial}}`, `{{digits:N}}` or \
                 `{{digits:N-M}}` with 1 <= N <= M <= {MAX_DIGITS}, found `{{{field}}}`"
            )
        }),
    }
}

impl FilePattern {
    /// Whether a name without extension matches for images of a class.
    pub fn matches(&self, class: &str, stem: &str) -> bool {
        matches(&self.parts, class, stem)
    }

    /// Returns the name of a class's image with a number; `None` if the number has too many digits.
    pub fn name(&self, class: &str, number: usize) -> Option<String> {
        let mut name = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => name.push_str(text),
                Part::Digits { min, max } => {
                    let digits = format!("{number:0min$}");
                    if digits.len() > *max {
                        return None;
                    }
                    name.push_str(&digits);
                }
                part => name.push_str(&part.of_class(class)),
            }
        }
        Some(name)
    }

    /// Describes the pattern for a message about a class.
    pub(crate) fn expected(&self, class: &str) -> String {
        let example = self.name(class, 1).unwrap_or_default();
        format!("a name such as {example} (pattern `{}`)", self.text)
    }
}

impl Part {
    /// The text of a part that depends on the class alone; empty for digits.
    fn of_class(&self, class: &str) -> String {
        match self {
            Self::Literal(text) => text.clone(),
            Self::Class => class.to_string(),
            Self::LowercaseClass => class.to_lowercase(),
            Self::ClassInitial => class.chars().take(1).collect(),
            Self::Digits { .. } => String::new(),
        }
    }
}

fn matches(parts: &[Part], class: &str, rest: &str) -> bool {
    let Some((part, later)) = parts.split_first() else { return rest.is_empty() };
    let Part::Digits { min, max } = part else {
        return rest.strip_prefix(&part.of_class(class)).is_some_and(|rest| matches(later, class, rest));
    };
    let digits = rest.bytes().take(*max).take_while(u8::is_ascii_digit).count();
    (*min..=digits).any(|n| matches(later, class, &rest[n..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> FilePattern {
        FilePattern::try_from(text.to_string()).unwrap()
    }

    #[test]
    fn matches_names_of_the_class() {
        let ucm = pattern("{class}{digits:2}");
        assert!(ucm.matches("river", "river07"));
        for name in ["river7", "river007", "lake07", "river0x", "river"] {
            assert!(!ucm.matches("river", name), "{name}");
        }
        let aid = pattern("{class:lower}_{digits:1-3}");
        assert!(aid.matches("Pond", "pond_7") && aid.matches("Pond", "pond_420"));
        assert!(!aid.matches("Pond", "Pond_7") && !aid.matches("Pond", "pond_1234"));
        assert!(pattern("{class:initial}{digits:3}").matches("eForest", "e017"));
        // Digits before digits need every length tried.
        assert!(pattern("{digits:1-3}0").matches("", "100"));
        assert!(pattern("image").matches("a", "image"));
    }

    #[test]
    fn generates_names_that_match() {
        for text in ["{class}{digits:2}", "{class:lower}_{digits:1-4}", "x-{class:initial}{digits:3}"] {
            let pattern = pattern(text);
            let name = pattern.name("SeaLake", 42).unwrap();
            assert!(pattern.matches("SeaLake", &name), "{name}");
        }
        assert_eq!(pattern("{digits:2}").name("a", 100), None);
        assert!(pattern("{class}{digits:2}").expected("river").contains("river01"));
    }

    #[test]
    fn rejects_invalid_patterns() {
        for text in ["", "a/b", "{class", "{klass}", "{digits}", "{digits:0}", "{digits:3-2}", "{digits:10}"]
        {
            assert!(FilePattern::try_from(text.to_string()).is_err(), "{text}");
        }
    }
}
