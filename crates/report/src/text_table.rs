//! Text tables for terminals and Markdown.

/// Alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Left.
    Left,
    /// Right.
    Right,
}

/// A table of strings.
#[derive(Debug, Clone, Default)]
pub struct TextTable {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// Creates an empty table with these columns.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        Self { columns: columns.iter().map(|(n, a)| ((*n).to_string(), *a)).collect(), rows: Vec::new() }
    }

    /// Adds a row. Missing cells are empty, superfluous ones are dropped.
    pub fn push(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().take(self.columns.len()).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// Names and alignment of the columns.
    pub fn columns(&self) -> &[(String, Align)] {
        &self.columns
    }

    /// The rows, each with a cell for every column.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Formats the table for a terminal, without colors.
    pub fn terminal(&self) -> String {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|c| {
                let head = self.columns[c].0.chars().count();
                self.rows.iter().map(|r| r[c].chars().count()).fold(head, usize::max)
            })
            .collect();
        let line = |cells: Vec<&str>| {
            let mut text = String::new();
            for (c, cell) in cells.iter().enumerate() {
                let pad = " ".repeat(widths[c] - cell.chars().count());
                if c > 0 {
                    text.push_str("  ");
                }
                match self.columns[c].1 {
                    Align::Left => text.push_str(&format!("{cell}{pad}")),
                    Align::Right => text.push_str(&format!("{pad}{cell}")),
                }
            }
            format!("{}\n", text.trim_end())
        };
        let mut text = line(self.columns.iter().map(|(n, _)| n.as_str()).collect());
        let rule = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        text.push_str(&format!("{}\n", "-".repeat(rule)));
        for row in &self.rows {
            text.push_str(&line(row.iter().map(String::as_str).collect()));
        }
        text
    }

    /// Formats the table as GitHub Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(self.columns.iter().map(|(n, _)| escape(n)).collect());
        let rule = |a: &Align| if *a == Align::Left { ":--" } else { "--:" }.to_string();
        text.push_str(&line(self.columns.iter().map(|(_, a)| rule(a)).collect()));
        for row in &self.rows {
            text.push_str(&line(row.iter().map(|c| escape(c)).collect()));
        }
        text
    }
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('_', "\\_")
}

/// Formats an optional number with so many decimals, `-` if it is missing.
pub(crate) fn optional(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_string(), |v| format!("{v:.digits$}"))
}

/// Breaks a paragraph into lines of at most `width` characters.
pub fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            out.push('\n');
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_columns() {
        let mut table = TextTable::new(&[("name", Align::Left), ("%", Align::Right)]);
        table.push(["kd".into(), "95.48 ± 0.1".into()]);
        table.push(["a|b_c".into()]);
        assert_eq!(table.terminal(), "name             %\n------------------\nkd     95.48 ± 0.1\na|b_c\n");
        assert_eq!(table.markdown(), "| name | % |\n| :-- | --: |\n| kd | 95.48 ± 0.1 |\n| a\\|b\\_c |  |\n");
    }

    #[test]
    fn wraps_paragraphs() {
        assert_eq!(wrap("one two three  four", 9), "one two\nthree\nfour");
        assert_eq!(wrap("", 9), "");
    }
}
