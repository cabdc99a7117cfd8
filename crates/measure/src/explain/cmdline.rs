//! Command lines that people and scripts make out of the expected one.

use std::collections::HashSet;

use assay_tee::Sha256Digest;
use serde::Serialize;

/// Words that distributions, debugging and scripts put on command lines.
const COMMON_WORDS: [&str; 16] = [
    "quiet",
    "debug",
    "ro",
    "rw",
    "splash",
    "single",
    "nokaslr",
    "panic=-1",
    "panic=1",
    "console=ttyS0",
    "console=ttyS0,115200",
    "console=hvc0",
    "loglevel=7",
    "earlyprintk=serial",
    "rd.break",
    "init=/bin/sh",
];
/// Most further words that are tried.
const MAX_TOKENS: usize = 64;
/// Most words of a command line for further words to be tried between them.
const MAX_WORDS: usize = 32;
/// Most characters of a command line for each to be mistyped.
const MAX_TYPED: usize = 512;

/// How a command line differs from the expected one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(
    tag = "cmdline",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum CmdlineChange {
    /// It ends with a newline.
    Newline,
    /// It ends with a carriage return and a newline.
    CarriageReturn,
    /// It ends with a blank.
    TrailingBlank,
    /// It starts with a blank.
    LeadingBlank,
    /// Blanks and newlines at its start and end are missing.
    Trimmed,
    /// Its hash does not cover the terminating NUL.
    WithoutNul,
    /// Its hash covers two NULs.
    SecondNul,
    /// It is empty.
    Empty,
    /// A word is missing.
    WordRemoved {
        /// The word.
        word: String,
    },
    /// There is a further word.
    WordAdded {
        /// The word.
        word: String,
        /// The word that it stands before; `None` at the end.
        before: Option<String>,
    },
    /// There is another word in place of an expected one.
    WordReplaced {
        /// The expected word.
        word: String,
        /// The word in its place.
        by: String,
    },
    /// A character is missing, doubled, in the other case, another digit, or
    /// swapped with the next.
    Mistyped {
        /// The command line.
        text: String,
    },
}

/// A command line to be tried.
pub(super) struct Variant {
    pub(super) change: CmdlineChange,
    pub(super) digest: Sha256Digest,
    /// The text, where the digest is of it and one NUL.
    pub(super) text: Option<String>,
    /// Whether it is tried in other shapes, too.
    pub(super) likely: bool,
}

/// Whether every mistyped character is tried.
pub(super) fn is_typed(text: &str) -> bool {
    text.chars().count() <= MAX_TYPED
}

/// The variants of `text`, likely ones first, each text once.
pub(super) fn variants<'a>(text: &str, tokens: impl Iterator<Item = &'a str>) -> Vec<Variant> {
    let mut found = Found {
        seen: HashSet::from([Sha256Digest::of(&terminated(text))]),
        variants: Vec::new(),
    };
    found.add(CmdlineChange::Newline, format!("{text}\n"), true);
    found.add(CmdlineChange::CarriageReturn, format!("{text}\r\n"), true);
    found.add(CmdlineChange::TrailingBlank, format!("{text} "), true);
    found.add(CmdlineChange::LeadingBlank, format!(" {text}"), true);
    found.add(CmdlineChange::Trimmed, text.trim().to_owned(), true);
    found.add_hashed(CmdlineChange::WithoutNul, text.as_bytes(), None, true);
    let twice = [text.as_bytes(), &[0, 0]].concat();
    found.add_hashed(CmdlineChange::SecondNul, &twice, None, true);
    found.add(CmdlineChange::Empty, String::new(), true);

    let words: Vec<&str> = text.split(' ').collect();
    for (index, word) in words
        .iter()
        .enumerate()
        .filter(|(_, word)| !word.is_empty())
    {
        let word = (*word).to_owned();
        let without = splice(&words, index, 1, &[]);
        found.add(CmdlineChange::WordRemoved { word }, without, true);
    }
    let mut tried = HashSet::new();
    let tokens = tokens.filter(|token| !token.is_empty() && tried.insert(*token));
    let tokens: Vec<&str> = tokens.take(MAX_TOKENS).chain(COMMON_WORDS).collect();
    for token in &tokens {
        add_word(&mut found, &words, token);
    }
    if is_typed(text) {
        mistype(&mut found, text);
    }
    found.variants
}

/// Adds a word at each place, and in place of each word for the same setting.
fn add_word(found: &mut Found, words: &[&str], token: &str) {
    let owned = |word: &&str| (*word).to_owned();
    let word = token.to_owned();
    let text = words.join(" ");
    let end = if text.is_empty() {
        token.to_owned()
    } else {
        format!("{text} {token}")
    };
    let at_end = CmdlineChange::WordAdded { word, before: None };
    found.add(at_end, end, true);
    for (index, word) in words.iter().enumerate() {
        if setting(token).is_some_and(|name| setting(word) == Some(name)) {
            let change = CmdlineChange::WordReplaced {
                word: owned(word),
                by: token.to_owned(),
            };
            found.add(change, splice(words, index, 1, &[token]), true);
        }
        if !word.is_empty() && (index == 0 || words.len() <= MAX_WORDS) {
            let change = CmdlineChange::WordAdded {
                word: token.to_owned(),
                before: Some(owned(word)),
            };
            found.add(change, splice(words, index, 0, &[token]), false);
        }
    }
}

/// The name of the setting that a word is for, if it has another value than to be
/// there.
fn setting(word: &str) -> Option<&str> {
    match word {
        "ro" | "rw" => Some("ro or rw"),
        _ => word.split_once('=').map(|(name, _)| name),
    }
}

/// The line with `removed` words at `index` replaced by `by`.
fn splice(words: &[&str], index: usize, removed: usize, by: &[&str]) -> String {
    let before = words.iter().take(index);
    let after = words.iter().skip(index + removed);
    let words: Vec<&str> = before.chain(by).chain(after).copied().collect();
    words.join(" ")
}

/// Every text that differs by one slip of the hand.
fn mistype(found: &mut Found, text: &str) {
    let chars: Vec<char> = text.chars().collect();
    let mut add = |index: usize, removed: usize, by: &[char]| {
        let before = chars.iter().take(index);
        let after = chars.iter().skip(index + removed);
        let text: String = before.chain(by).chain(after).collect();
        let change = CmdlineChange::Mistyped { text: text.clone() };
        found.add(change, text, false);
    };
    for (index, &char) in chars.iter().enumerate() {
        add(index, 1, &[]);
        add(index, 1, &[char, char]);
        if let Some(&next) = chars.get(index + 1) {
            add(index, 2, &[next, char]);
        }
        if char.is_ascii_alphabetic() {
            let other = if char.is_ascii_lowercase() {
                char.to_ascii_uppercase()
            } else {
                char.to_ascii_lowercase()
            };
            add(index, 1, &[other]);
        }
        if char.is_ascii_digit() {
            for digit in '0'..='9' {
                add(index, 1, &[digit]);
            }
        }
    }
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Variants, each digest once: the first description of a text is the simplest.
struct Found {
    seen: HashSet<Sha256Digest>,
    variants: Vec<Variant>,
}

impl Found {
    fn add(&mut self, change: CmdlineChange, text: String, likely: bool) {
        let bytes = terminated(&text);
        self.add_hashed(change, &bytes, Some(text), likely);
    }

    fn add_hashed(
        &mut self,
        change: CmdlineChange,
        bytes: &[u8],
        text: Option<String>,
        likely: bool,
    ) {
        let digest = Sha256Digest::of(bytes);
        if self.seen.insert(digest) {
            self.variants.push(Variant {
                change,
                digest,
                text,
                likely,
            });
        }
    }
}
