//! What modules ask for without being refused for the lack of it: soft and weak
//! dependencies (Linux `include/linux/module.h`, `MODULE_SOFTDEP`, `MODULE_WEAKDEP`),
//! and the names that stand for modules.
//!
//! A guest loads its modules and then no more, so what a module would ask for later
//! has to be there before: a weak dependency is one that goes before.

use std::collections::{BTreeMap, BTreeSet};

use super::info::ModuleInfo;

/// The lists of a kernel's directory that are about this, by depmod(8) and the
/// kernel's build. Each may be absent.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoftLists<'a> {
    /// `modules.softdep`.
    pub softdep: &'a str,
    /// `modules.weakdep`.
    pub weakdep: &'a str,
    /// `modules.alias`.
    pub alias: &'a str,
    /// `modules.builtin.modinfo`.
    pub builtin_info: &'a [u8],
}

/// What goes before and after a module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Soft {
    /// Names to load before it.
    pub before: Vec<String>,
    /// Names to load after it.
    pub after: Vec<String>,
}

impl Soft {
    /// Adds the words of one `softdep`: `pre:` and `post:` say where what follows
    /// them goes.
    pub(super) fn add(&mut self, words: &str) {
        let mut to = None;
        for word in words.split_whitespace() {
            match (word, &mut to) {
                ("pre:", to) => *to = Some(false),
                ("post:", to) => *to = Some(true),
                (name, Some(true)) => self.after.push(plain(name)),
                (name, Some(false)) => self.before.push(plain(name)),
                // What stands before both is for nobody.
                (_, None) => {}
            }
        }
    }

    pub(super) fn add_weak(&mut self, words: &str) {
        self.before.extend(words.split_whitespace().map(plain));
    }

    fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }
}

/// The kernel takes `-` and `_` in names for the same.
pub(super) fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Whether an alias is one name, and not a pattern of devices.
pub(super) fn is_one_name(alias: &str) -> bool {
    !alias.contains(['*', '?', '[', ':'])
}

/// Soft dependencies by module, and what aliases stand for.
#[derive(Debug, Clone, Default)]
pub(super) struct SoftIndex {
    by_module: BTreeMap<String, Soft>,
    aliases: BTreeMap<String, BTreeSet<String>>,
    built_in: BTreeSet<String>,
}

impl SoftIndex {
    pub(super) fn parse(lists: SoftLists<'_>) -> Self {
        let mut index = Self::default();
        for line in lists.softdep.lines() {
            if let Some((name, words)) = named(line, "softdep ") {
                index.by_module.entry(name).or_default().add(words);
            }
        }
        for line in lists.weakdep.lines() {
            if let Some((name, words)) = named(line, "weakdep ") {
                index.by_module.entry(name).or_default().add_weak(words);
            }
        }
        for line in lists.alias.lines() {
            let words = line.strip_prefix("alias ");
            if let Some((alias, name)) = words.and_then(|words| words.split_once(' ')) {
                index.add_alias(alias, name.trim());
            }
        }
        index.add_built_in(lists.builtin_info);
        index
    }

    /// Adds what a module says of itself.
    pub(super) fn add_module(&mut self, info: &ModuleInfo) {
        if !info.soft.is_empty() {
            self.by_module.insert(info.name.clone(), info.soft.clone());
        }
        for alias in &info.aliases {
            self.add_alias(alias, &info.name);
        }
    }

    /// Adds the names by which built-in modules are known: records of
    /// `module.alias=name`, each with a NUL after it.
    pub(super) fn add_built_in(&mut self, builtin_info: &[u8]) {
        for record in builtin_info.split(|byte| *byte == 0) {
            let alias = std::str::from_utf8(record)
                .ok()
                .and_then(|record| record.split_once('='))
                .filter(|(key, alias)| {
                    key.split('.').nth(1) == Some("alias") && is_one_name(alias)
                });
            if let Some((_, alias)) = alias {
                self.built_in.insert(plain(alias));
            }
        }
    }

    fn add_alias(&mut self, alias: &str, name: &str) {
        if is_one_name(alias) {
            let names = self.aliases.entry(plain(alias)).or_default();
            names.insert(plain(name));
        }
    }

    pub(super) fn of(&self, module: &str) -> Option<&Soft> {
        self.by_module.get(module)
    }

    /// The modules that an alias stands for.
    pub(super) fn stands_for(&self, alias: &str) -> impl Iterator<Item = &str> {
        let names = self.aliases.get(alias);
        names.into_iter().flatten().map(String::as_str)
    }

    pub(super) fn is_built_in(&self, alias: &str) -> bool {
        self.built_in.contains(alias)
    }
}

fn named<'a>(line: &'a str, keyword: &str) -> Option<(String, &'a str)> {
    let (name, words) = line.strip_prefix(keyword)?.trim().split_once(' ')?;
    Some((plain(name), words))
}
