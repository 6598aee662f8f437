//! What was found in a weights file and done with it.

use serde::Serialize;

/// Maximum number of names of a kind in a line of text.
pub(crate) const MAX_EXAMPLES: usize = 3;

/// Comparison of the tensors of a file with the parameters of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Path of the file.
    pub file: String,
    /// Format of the file.
    pub format: String,
    /// Dotted path of the state dict in the file; empty if it is the whole file.
    pub key: String,
    /// Prefix that was removed from the names; may be empty.
    pub prefix: String,
    /// Naming scheme of the file.
    pub naming: String,
    /// Number of parameters that can be loaded.
    pub matched: usize,
    /// Number of parameters of the model.
    pub total: usize,
    /// Layers of the head.
    pub heads: Vec<Head>,
    /// Prefix in the model of the parameters that are loaded; empty for the whole model.
    pub inside: String,
    /// Number of parameters outside of `inside`; they keep their initial values.
    pub outside: usize,
    /// Tensors that are not part of the model and are not loaded.
    pub left_out: Vec<String>,
    /// Parameters that are not in the file.
    pub missing: Vec<String>,
    /// Tensors in the model's layers that the model does not have.
    pub unexpected: Vec<String>,
    /// Tensors of a different shape or an unsupported type, with expected and found.
    pub mismatched: Vec<String>,
    /// Tensors of types that are not read (quantized, sparse).
    pub unsupported: Vec<String>,
    /// Number of classes of the file's head, if it differs and the head is not replaced.
    pub classes: Option<usize>,
}

/// A layer of the head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Name of the layer.
    pub name: String,
    /// Name of the layer in the file, if it is not the model's.
    pub source: Option<String>,
    /// Why it keeps its initial values; `None` if it is loaded.
    pub fresh: Option<String>,
}

impl LoadReport {
    /// Returns whether the file can be loaded.
    pub fn matches(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }

    /// Returns what was chosen, left out, or keeps its initial values, for the log; empty if the file has
    /// exactly the model's parameters.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut chosen = Vec::new();
        if !self.key.is_empty() {
            chosen.push(format!("state dict `{}`", self.key));
        }
        if !self.prefix.is_empty() {
            chosen.push(format!("prefix `{}` removed", self.prefix));
        }
        if !chosen.is_empty() {
            let counts = format!("{} of {} parameters loaded", self.matched, self.total);
            notes.push(format!("{}: {}, {counts}", self.file, chosen.join(", ")));
        }
        notes.extend(
            self.heads.iter().filter(|h| h.fresh.is_some() || h.source.is_some()).map(Head::describe),
        );
        if !self.inside.is_empty() {
            notes.push(format!(
                "{} parameters outside of `{}*` keep their initial values",
                self.outside, self.inside
            ));
        }
        if !self.left_out.is_empty() {
            notes.push(format!("left out: {}", count_and_examples(&self.left_out)));
        }
        notes
    }

    /// Returns the whole report, one finding a line.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("format", self.format.clone())];
        if !self.key.is_empty() {
            lines.push(("key", self.key.clone()));
        }
        if !self.prefix.is_empty() {
            lines.push(("prefix", format!("`{}` removed", self.prefix)));
        }
        lines.push(("names", self.naming.clone()));
        lines.push(("fits", format!("{} of {} parameters", self.matched, self.total)));
        lines.extend(self.heads.iter().map(|head| ("", head.describe())));
        if !self.inside.is_empty() {
            let text = format!("{} parameters outside of `{}*`", self.outside, self.inside);
            lines.push(("initial", text));
        }
        for (what, names) in [
            ("left out", &self.left_out),
            ("missing", &self.missing),
            ("unexpected", &self.unexpected),
            ("different", &self.mismatched),
            ("not read", &self.unsupported),
        ] {
            if !names.is_empty() {
                lines.push((what, count_and_examples(names)));
            }
        }
        lines
    }
}

impl Head {
    fn describe(&self) -> String {
        match (&self.fresh, &self.source) {
            (Some(why), _) => format!("head `{}` keeps its initial values: {why}", self.name),
            (None, Some(source)) => format!("head `{}` loaded from `{source}`", self.name),
            (None, None) => format!("head `{}` loaded", self.name),
        }
    }
}

/// Formats a number of names and the first of them.
pub(crate) fn count_and_examples(names: &[String]) -> String {
    let shown = names.iter().take(MAX_EXAMPLES).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if names.len() > MAX_EXAMPLES { ", ..." } else { "" };
    format!("{} ({shown}{more})", names.len())
}
