//! Command lines that people and scripts make out of the expected one.

use std::collections::HashSet;
use std::ops::Range;

use assay_tee::Sha256Digest;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::Gap;
use super::budget::{Budget, pages_of};

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
/// What people type in command lines, besides capital letters.
const TYPED: &str = "0123456789abcdefghijklmnopqrstuvwxyz ._=/,:-";
/// Most further words that are tried.
const MAX_TOKENS: usize = 64;
/// Most words of a command line that are changed, and that further words are
/// tried before.
const MAX_WORDS: usize = 64;
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
    /// A word is missing, but not the blank beside it: a variable of a script
    /// was empty.
    WordEmptied {
        /// The word.
        word: String,
    },
    /// A word is there twice.
    WordDoubled {
        /// The word.
        word: String,
    },
    /// Two words are in each other's place.
    WordsSwapped {
        /// The word that is expected first.
        first: String,
        /// The other one.
        second: String,
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
    /// A slip of the hand: a character is missing, doubled, inserted, another
    /// one, or swapped with the next.
    Mistyped {
        /// The expected word, or two where the blank between them is concerned.
        words: String,
        /// What is in their place.
        by: String,
    },
}

/// A change of a text: a range of its bytes is replaced.
#[derive(Debug, Clone)]
pub(super) struct Edit {
    range: Range<usize>,
    by: String,
    /// What ends the bytes that are hashed.
    end: &'static [u8],
}

impl Edit {
    fn new(range: Range<usize>, by: impl Into<String>) -> Self {
        Self {
            range,
            by: by.into(),
            end: &[0],
        }
    }

    /// Nothing but another end.
    const fn ended(end: &'static [u8]) -> Self {
        Self {
            range: 0..0,
            by: String::new(),
            end,
        }
    }

    /// The hash of the text after the change.
    pub(super) fn digest(&self, text: &str) -> Sha256Digest {
        let (before, after) = self.around(text);
        let digest = Sha256::new_with_prefix(before)
            .chain_update(&self.by)
            .chain_update(after)
            .chain_update(self.end);
        Sha256Digest::new(digest.finalize().into())
    }

    /// What [`Self::digest`] costs, as pages.
    pub(super) fn cost(&self, text: &str) -> u64 {
        // SHA-256 is slower than SHA-384 where the processor has no instruction
        // for it.
        2 * pages_of(text.len() + self.by.len())
    }

    /// The text after the change. `None` where it is not one NUL that ends what
    /// is hashed.
    pub(super) fn apply(&self, text: &str) -> Option<String> {
        let (before, after) = self.around(text);
        (self.end == [0]).then(|| [before, &self.by, after].concat())
    }

    /// What is left of the text on both sides of the range.
    fn around<'a>(&self, text: &'a str) -> (&'a str, &'a str) {
        let before = text.get(..self.range.start).unwrap_or_default();
        (before, text.get(self.range.end..).unwrap_or_default())
    }

    /// The change as one of the words that the range touches.
    fn mistyped(&self, text: &str) -> CmdlineChange {
        let (before, after) = self.around(text);
        let head = before.rsplit(' ').next().unwrap_or_default();
        let tail = after.split(' ').next().unwrap_or_default();
        let replaced = text.get(self.range.clone()).unwrap_or_default();
        CmdlineChange::Mistyped {
            words: [head, replaced, tail].concat(),
            by: [head, &self.by, tail].concat(),
        }
    }
}

/// A command line to be tried.
pub(super) type Neighbour = (CmdlineChange, Edit);

/// The expected command line.
pub(super) struct Line<'a> {
    text: &'a str,
    /// Where its words are.
    words: Vec<Range<usize>>,
    /// Words that it may have in addition.
    tokens: Vec<&'a str>,
}

impl<'a> Line<'a> {
    /// Takes a text apart. What is too much to be tried is noted in `budget`.
    pub(super) fn new(
        text: &'a str,
        tokens: impl Iterator<Item = &'a str>,
        budget: &mut Budget,
    ) -> Self {
        if !is_typed(text) {
            budget.gap(Gap::CmdlineTooLong);
        }
        let mut all_words = words(text);
        let words: Vec<_> = all_words.by_ref().take(MAX_WORDS).collect();
        let left_out = all_words.count();
        if left_out > 0 {
            budget.gap(Gap::WordLimit { left_out });
        }
        let mut seen = HashSet::new();
        let mut all_tokens = tokens.filter(|token| !token.is_empty() && seen.insert(*token));
        let tokens = all_tokens.by_ref().take(MAX_TOKENS);
        let tokens = tokens.chain(COMMON_WORDS).collect();
        let left_out = all_tokens.count();
        if left_out > 0 {
            budget.gap(Gap::TokenLimit { left_out });
        }
        Self {
            text,
            words,
            tokens,
        }
    }

    pub(super) const fn text(&self) -> &'a str {
        self.text
    }

    /// What is tried in other shapes, too.
    pub(super) fn likely(&self) -> impl Iterator<Item = Neighbour> {
        let words = (0..self.words.len()).flat_map(move |index| self.changed_word(index));
        let tokens = self.tokens.iter().flat_map(move |token| self.token(token));
        self.whole().into_iter().chain(words).chain(tokens)
    }

    /// What is tried in the expected shape only.
    pub(super) fn unlikely(&self) -> impl Iterator<Item = Neighbour> {
        let inserted = self.tokens.iter().flat_map(move |token| {
            self.words.iter().map(move |word| {
                let change = CmdlineChange::WordAdded {
                    word: (*token).to_owned(),
                    before: Some(self.slice(word)),
                };
                let edit = Edit::new(word.start..word.start, format!("{token} "));
                (change, edit)
            })
        });
        let swapped = (0..self.words.len()).flat_map(move |first| {
            let others = first + 2..self.words.len();
            others.filter_map(move |second| self.swapped(first, second))
        });
        let typed = Some(self.text).filter(|text| is_typed(text));
        let slips = typed.into_iter().flat_map(slips);
        let slips = slips.map(move |edit| (edit.mistyped(self.text), edit));
        swapped.chain(inserted).chain(slips)
    }

    /// Changes that have nothing to do with words.
    fn whole(&self) -> [Neighbour; 8] {
        let all = 0..self.text.len();
        let end = all.end..all.end;
        [
            (CmdlineChange::Newline, Edit::new(end.clone(), "\n")),
            (
                CmdlineChange::CarriageReturn,
                Edit::new(end.clone(), "\r\n"),
            ),
            (CmdlineChange::TrailingBlank, Edit::new(end, " ")),
            (CmdlineChange::LeadingBlank, Edit::new(0..0, " ")),
            (
                CmdlineChange::Trimmed,
                Edit::new(all.clone(), self.text.trim()),
            ),
            (CmdlineChange::WithoutNul, Edit::ended(&[])),
            (CmdlineChange::SecondNul, Edit::ended(&[0, 0])),
            (CmdlineChange::Empty, Edit::new(all, "")),
        ]
    }

    /// Changes of a word without another one.
    fn changed_word(&self, index: usize) -> impl Iterator<Item = Neighbour> {
        let range = self.words.get(index).cloned().unwrap_or_default();
        let word = self.slice(&range);
        // With the blank after it, or before it at the end.
        let removed = if range.end < self.text.len() {
            range.start..range.end + 1
        } else {
            range.start.saturating_sub(1)..range.end
        };
        let doubled = Edit::new(range.end..range.end, format!(" {word}"));
        let alone = [
            (
                CmdlineChange::WordRemoved { word: word.clone() },
                Edit::new(removed, ""),
            ),
            (
                CmdlineChange::WordEmptied { word: word.clone() },
                Edit::new(range, ""),
            ),
            (CmdlineChange::WordDoubled { word }, doubled),
        ];
        alone.into_iter().chain(self.swapped(index, index + 1))
    }

    fn swapped(&self, first: usize, second: usize) -> Option<Neighbour> {
        let (first, second) = (self.words.get(first)?, self.words.get(second)?);
        let between = self.slice(&(first.end..second.start));
        let edit = first.start..second.end;
        let (first, second) = (self.slice(first), self.slice(second));
        let by = [second.as_str(), &between, &first].concat();
        Some((
            CmdlineChange::WordsSwapped { first, second },
            Edit::new(edit, by),
        ))
    }

    /// A further word at the end, and in place of each word for the same setting.
    fn token<'t>(&'t self, token: &'t str) -> impl Iterator<Item = Neighbour> {
        let end = self.text.len();
        let blank = if end == 0 { "" } else { " " };
        let added = CmdlineChange::WordAdded {
            word: token.to_owned(),
            before: None,
        };
        let added = (added, Edit::new(end..end, format!("{blank}{token}")));
        let replaced = self.words.iter().filter_map(move |range| {
            let word = self.slice(range);
            if setting(token).is_none() || setting(&word) != setting(token) {
                return None;
            }
            let by = token.to_owned();
            let change = CmdlineChange::WordReplaced { word, by };
            Some((change, Edit::new(range.clone(), token)))
        });
        std::iter::once(added).chain(replaced)
    }

    fn slice(&self, range: &Range<usize>) -> String {
        self.text.get(range.clone()).unwrap_or_default().to_owned()
    }
}

/// Whether every mistyped character is tried.
fn is_typed(text: &str) -> bool {
    text.chars().count() <= MAX_TYPED
}

/// The words between blanks.
fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    text.split(' ').filter_map(move |word| {
        let range = start..start + word.len();
        start = range.end + 1;
        (!word.is_empty()).then_some(range)
    })
}

/// The name of the setting that a word is for, if it has another value than to be
/// there.
fn setting(word: &str) -> Option<&str> {
    match word {
        "ro" | "rw" => Some("ro or rw"),
        _ => word.split_once('=').map(|(name, _)| name),
    }
}

/// Every text that differs by one slip of the hand.
fn slips(text: &str) -> impl Iterator<Item = Edit> {
    let chars = || {
        text.char_indices()
            .map(|(start, char)| (start..start + char.len_utf8(), char))
    };
    let omitted = chars().map(|(range, _)| Edit::new(range, ""));
    let doubled = chars().map(|(range, char)| Edit::new(range.end..range.end, char));
    let pairs = chars().zip(chars().skip(1));
    let swapped = pairs.map(|((first, one), (second, other))| {
        Edit::new(first.start..second.end, String::from_iter([other, one]))
    });
    let replaced = chars()
        .flat_map(|(range, char)| typed_for(char).map(move |by| Edit::new(range.clone(), by)));
    let end = (text.len()..text.len(), ' ');
    let places = chars().chain([end]);
    let inserted = places.flat_map(|(range, char)| {
        typed_for(char).map(move |by| Edit::new(range.start..range.start, by))
    });
    let few = omitted.chain(doubled).chain(swapped);
    few.chain(replaced).chain(inserted)
}

/// What may be typed in place of a character, or before it: capital letters only
/// where there is one.
fn typed_for(char: char) -> impl Iterator<Item = char> {
    let other_case = if char.is_ascii_lowercase() {
        char.to_ascii_uppercase()
    } else {
        char.to_ascii_lowercase()
    };
    let capitals = ('A'..='Z').filter(move |_| char.is_ascii_uppercase());
    std::iter::once(other_case)
        .chain(TYPED.chars())
        .chain(capitals)
}
