//! Errors as one line for a person.

use std::error::Error;

/// Longest line: a message must not flood the console or the event port.
const MAX_CHARS: usize = 600;

/// The error and its causes, `outer: inner: …`, fit to be printed: control
/// characters, which may come from a peer, are replaced.
pub fn describe(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    printable(&line)
}

/// `text` on one line and of bounded length.
pub fn printable(text: &str) -> String {
    text.chars()
        .take(MAX_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot\x1b[2J boot")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_whole_chain_is_told_once_and_without_control_characters() {
        let error = Outer(std::io::Error::other("disk\nmissing"));
        assert_eq!(describe(&error), "cannot [2J boot: disk missing");
    }

    #[test]
    fn lines_are_bounded() {
        assert_eq!(printable(&"x".repeat(10_000)).len(), MAX_CHARS);
    }
}
