//! The guest's console, line by line and without what would steer a terminal.

use tokio::sync::mpsc;

use crate::stdout;

/// Prints what comes, or only takes it.
pub(super) async fn print(mut lines: mpsc::Receiver<Vec<u8>>, shown: bool) {
    while let Some(line) = lines.recv().await {
        let text = plain(&line);
        if shown && !text.is_empty() {
            // A reader that went away is no reason to end the guest.
            let _ = stdout::write_line(format_args!("console | {text}"));
        }
    }
}

/// The line without control characters and sequences (ECMA-48): a guest's text
/// must not move the cursor of the person who reads it.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut characters = text.chars().peekable();
    let mut plain = String::new();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                if characters.next_if_eq(&'[').is_some() {
                    // Parameters, then one final byte.
                    while characters
                        .next_if(|c| ('\u{20}'..='\u{3f}').contains(c))
                        .is_some()
                    {}
                }
                characters.next();
            }
            '\t' => plain.push('\t'),
            other if other.is_control() => {}
            other => plain.push(other),
        }
    }
    plain.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        for (line, text) in [
            (&b"plain text\r"[..], "plain text"),
            (
                b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: loading",
                "BdsDxe: loading",
            ),
            (b"a\x1b[31mred\x1b[0m b", "ared b"),
            (b"\x1bcreset\x07", "reset"),
            (b"a\tb", "a\tb"),
            (b"\x1b[", ""),
            (b"\x1b", ""),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(plain(line), text);
        }
    }
}
