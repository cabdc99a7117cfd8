//! Names and values in two columns, and sentences.

use std::fmt;

/// Text of an inspection.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<Line>);

#[derive(Debug)]
enum Line {
    Heading(String),
    Row(String, String),
    Sentence(String),
}

impl Table {
    pub(super) fn heading(&mut self, text: impl Into<String>) {
        self.0.push(Line::Heading(text.into()));
    }

    pub(super) fn row(&mut self, name: impl Into<String>, value: impl fmt::Display) {
        self.0.push(Line::Row(name.into(), value.to_string()));
    }

    /// A row, if there is a value.
    pub(super) fn maybe(&mut self, name: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.row(name, value);
        }
    }

    pub(super) fn sentences(&mut self, sentences: &[String]) {
        let lines = sentences.iter().cloned().map(Line::Sentence);
        self.0.extend(lines);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().filter_map(|line| match line {
            Line::Row(name, _) => Some(name.len()),
            _ => None,
        });
        let width = names.max().unwrap_or(0);
        for (index, line) in self.0.iter().enumerate() {
            match line {
                Line::Heading(text) if index == 0 => writeln!(f, "{text}")?,
                Line::Heading(text) => writeln!(f, "\n{text}")?,
                Line::Row(name, value) => {
                    writeln!(f, "{}", format!("  {name:<width$}  {value}").trim_end())?;
                }
                Line::Sentence(text) => writeln!(f, "  {text}")?,
            }
        }
        Ok(())
    }
}

/// A line without control characters: the file may be anyone's.
pub(super) fn printable(line: &str) -> String {
    line.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let mut table = Table::default();
        table.heading("one");
        table.row("a", 1);
        table.row("long", "");
        table.maybe("none", None::<u8>);
        table.heading("two");
        table.sentences(&["Said.".to_owned()]);
        assert_eq!(
            table.to_string(),
            "one\n  a     1\n  long\n\ntwo\n  Said.\n"
        );
    }
}
