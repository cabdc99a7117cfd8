//! Lines from a peer that may send anything: bounded, and safe to stop waiting
//! for.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// Most bytes of a line. QMP's longest, the answer to `query-qmp-schema`, is
/// never asked for; a guest's message has no reason to be longer.
const MAX_LINE_LEN: usize = 64 * 1024;

/// Reads lines. Longer ones than [`MAX_LINE_LEN`] are skipped.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    partial: Vec<u8>,
    skipping: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader: BufReader::new(reader),
            partial: Vec::new(),
            skipping: false,
        }
    }

    /// The next line without its end, or `None` at the end of the stream. A last
    /// line without an end counts.
    ///
    /// Dropping the future loses nothing: what was read stays in `self`.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                let rest = std::mem::take(&mut self.partial);
                return Ok((!rest.is_empty()).then_some(rest));
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let text = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
            if self.partial.len() + text.len() > MAX_LINE_LEN {
                self.skipping = true;
                self.partial.clear();
            }
            if !self.skipping {
                self.partial.extend_from_slice(text);
            }
            let consumed = end.map_or(chunk.len(), |end| end + 1);
            self.reader.consume(consumed);
            if end.is_some() && !std::mem::take(&mut self.skipping) {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(input: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(input);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn lines_are_split_and_the_last_needs_no_end() {
        assert_eq!(lines_of(b"a\n\nbc\nd").await, [&b"a"[..], b"", b"bc", b"d"]);
        assert!(lines_of(b"").await.is_empty());
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_skipped_alone() {
        let mut input = b"before\n".to_vec();
        input.extend(vec![b'x'; MAX_LINE_LEN + 1]);
        input.extend(b"\nafter\n");
        assert_eq!(lines_of(&input).await, [&b"before"[..], b"after"]);
    }
}
