//! How two artifacts differ, in words that lead to the cause: the section of the
//! UKI, the file in its initrd, the file on the root disk, the range of bytes.

use std::collections::BTreeMap;
use std::fmt;

use assay_tee::guest_config::{GUEST_CONFIG_PATH, RootFs};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::erofs::BLOCK_LEN;
use crate::erofs::walk::{Walked, walk};
use crate::manifest::{FIRMWARE_PATH, MANIFEST_PATH, Manifest, ROOT_DISK_PATH, UKI_PATH};
use crate::newc::{NewcEntry, parse_newc};
use crate::pe::PeImage;
use crate::read::ArtifactContent;
use crate::uki::{INITRD, parse_uki};

/// Most differences that are told of one file.
const MAX_OF_FILE: usize = 100;
/// Longest text of a value that is shown.
const MAX_VALUE_LEN: usize = 80;

/// One thing that is not the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Where: file of the artifact, and what in it, from the outside in.
    pub place: Vec<String>,
    /// What is not the same there.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place.join(" > "), self.what)
    }
}

/// Everything that differs; nothing where all bytes are the same. `expected` is
/// what ought to be, `actual` what there is.
pub fn compare(expected: &ArtifactContent, actual: &ArtifactContent) -> Vec<Difference> {
    let mut report = Report::default();
    let manifest = &expected.manifest;
    report.file(MANIFEST_PATH, &expected.manifest, &actual.manifest, json);
    report.file(FIRMWARE_PATH, &expected.firmware, &actual.firmware, bytes);
    report.file(UKI_PATH, &expected.uki, &actual.uki, uki);
    match (&expected.root_disk, &actual.root_disk) {
        (Some(expected), Some(actual)) => {
            let hashes = hash_tree_start(manifest);
            report.file(
                ROOT_DISK_PATH,
                expected,
                actual,
                |name, expected, actual| root_disk(name, expected, actual, hashes),
            );
        }
        (Some(_), None) => report.say(&[ROOT_DISK_PATH], "is missing".to_owned()),
        (None, Some(_)) => report.say(&[ROOT_DISK_PATH], "ought not to be there".to_owned()),
        (None, None) => {}
    }
    report.all
}

#[derive(Default)]
struct Report {
    all: Vec<Difference>,
}

impl Report {
    fn say(&mut self, place: &[&str], what: String) {
        self.all.push(Difference {
            place: place.iter().map(|part| (*part).to_owned()).collect(),
            what,
        });
    }

    /// Explains a file. What no explanation covers is told as bytes.
    fn file(
        &mut self,
        name: &str,
        expected: &Bytes,
        actual: &Bytes,
        explain: impl Fn(&str, &Bytes, &Bytes) -> Vec<Difference>,
    ) {
        if expected == actual {
            return;
        }
        let mut found = explain(name, expected, actual);
        if found.is_empty() {
            found = bytes(name, expected, actual);
        }
        let more = found.len().saturating_sub(MAX_OF_FILE);
        found.truncate(MAX_OF_FILE);
        self.all.extend(found);
        if more > 0 {
            self.say(&[name], format!("and {more} differences more"));
        }
    }
}

/// The first and last byte that differ, and the lengths where these do.
fn byte_range(expected: &[u8], actual: &[u8]) -> String {
    let pairs = || expected.iter().zip(actual);
    let common = expected.len().min(actual.len());
    let first = pairs().position(|(a, b)| a != b).unwrap_or(common);
    let lengths = if expected.len() == actual.len() {
        String::new()
    } else {
        format!(", {} bytes in place of {}", actual.len(), expected.len())
    };
    let differing = pairs().filter(|(a, b)| a != b).count();
    if differing == 0 {
        return format!("ends differently at byte {first:#x}{lengths}");
    }
    let last = pairs().rposition(|(a, b)| a != b).unwrap_or(first);
    format!("{differing} bytes differ in {first:#x}..={last:#x}{lengths}")
}

fn difference(place: &[&str], what: String) -> Difference {
    Difference {
        place: place.iter().map(|part| (*part).to_owned()).collect(),
        what,
    }
}

/// What of `range` differs, where `place` is in both; the range says where in the
/// file that is.
fn region(
    place: &[&str],
    range: std::ops::Range<usize>,
    expected: &Bytes,
    actual: &Bytes,
) -> Option<Difference> {
    let (before, after) = (expected.get(range.clone())?, actual.get(range.clone())?);
    (before != after).then(|| {
        let said = byte_range(before, after);
        difference(
            place,
            format!("{said} (it starts at byte {:#x})", range.start),
        )
    })
}

fn bytes(name: &str, expected: &Bytes, actual: &Bytes) -> Vec<Difference> {
    vec![difference(&[name], byte_range(expected, actual))]
}

/// Members of a JSON document.
fn json(name: &str, expected: &Bytes, actual: &Bytes) -> Vec<Difference> {
    json_in(&[name], expected, actual)
}

fn json_in(place: &[&str], expected: &[u8], actual: &[u8]) -> Vec<Difference> {
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let (Some(expected), Some(actual)) = (parse(expected), parse(actual)) else {
        return vec![difference(place, byte_range(expected, actual))];
    };
    let mut found = Vec::new();
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    leaves(String::new(), &expected, &mut before);
    leaves(String::new(), &actual, &mut after);
    for (member, value) in &before {
        let said = match after.get(member) {
            Some(other) if other == value => continue,
            Some(other) => format!("is {}, expected {}", short(other), short(value)),
            None => format!("is missing, expected {}", short(value)),
        };
        found.push(difference(&[place, &[member.as_str()]].concat(), said));
    }
    for (member, value) in &after {
        if !before.contains_key(member) {
            let said = format!("is {}, and ought not to be there", short(value));
            found.push(difference(&[place, &[member.as_str()]].concat(), said));
        }
    }
    found
}

/// Path and text of everything in a document that holds nothing itself.
fn leaves(path: String, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                let dot = if path.is_empty() { "" } else { "." };
                leaves(format!("{path}{dot}{name}"), member, into);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                leaves(format!("{path}[{index}]"), item, into);
            }
        }
        plain => drop(into.insert(path, plain.to_string())),
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= MAX_VALUE_LEN {
        return text.to_owned();
    }
    let cut: String = text.chars().take(MAX_VALUE_LEN).collect();
    format!("{cut}…")
}

/// Sections of a UKI, and files of its initrd.
fn uki(name: &str, expected: &Bytes, actual: &Bytes) -> Vec<Difference> {
    let mut found = Vec::new();
    if let (Ok(before), Ok(after)) = (parse_uki(expected), parse_uki(actual)) {
        for (section, content) in &before.sections {
            match after.section(section) {
                None => found.push(difference(&[name, section], "is missing".to_owned())),
                Some(other) if content != other => {
                    found.extend(section_differences(&[name, section], content, other));
                }
                Some(_) => {}
            }
        }
        for (section, _) in &after.sections {
            if before.section(section).is_none() {
                let said = "ought not to be there".to_owned();
                found.push(difference(&[name, section], said));
            }
        }
    }
    // Where nothing has moved, the rest can be told apart.
    if expected.len() == actual.len()
        && let Ok(image) = PeImage::parse(expected)
    {
        found.extend(uki_regions(name, &image, expected, actual));
    }
    if found.is_empty() {
        let said = format!("outside of our sections: {}", byte_range(expected, actual));
        found.push(difference(&[name, "headers, stub or signatures"], said));
    }
    found
}

fn section_differences(place: &[&str], content: &Bytes, other: &Bytes) -> Vec<Difference> {
    if place.last() == Some(&INITRD) {
        let explained = initrd(place, content, other);
        if !explained.is_empty() {
            return explained;
        }
    }
    let text = |bytes: &Bytes| {
        let text = std::str::from_utf8(bytes).ok()?;
        (text.len() < 4096 && !text.contains('\0')).then(|| format!("{text:?}"))
    };
    let said = match (text(content), text(other)) {
        (Some(before), Some(after)) => format!("is {after}, expected {before}"),
        _ => byte_range(content, other),
    };
    vec![difference(place, said)]
}

/// What is in a UKI besides the content of our sections.
fn uki_regions(name: &str, image: &PeImage, expected: &Bytes, actual: &Bytes) -> Vec<Difference> {
    let size = |size: u32| usize::try_from(size).unwrap_or(usize::MAX);
    let ours = parse_uki(expected)
        .map(|uki| uki.sections)
        .unwrap_or_default();
    // What cannot be parsed has no sections that would have been compared.
    let theirs = parse_uki(actual);
    let mut found = Vec::new();
    let headers = 0..size(image.size_of_headers).min(expected.len());
    found.extend(region(&[name, "headers"], headers, expected, actual));
    for section in &image.sections {
        let start = size(section.raw_offset);
        let end = start
            .saturating_add(size(section.raw_size))
            .min(expected.len());
        let content = ours.iter().find(|(name, _)| *name == section.name);
        match (content, &theirs) {
            (Some((_, content)), Ok(theirs)) => {
                let place = format!("padding of {}", section.name);
                let other = theirs.section(&section.name).map_or(0, Bytes::len);
                let padding = start.saturating_add(content.len().max(other))..end;
                found.extend(region(&[name, &place], padding, expected, actual));
            }
            _ => {
                found.extend(region(&[name, &section.name], start..end, expected, actual));
            }
        }
    }
    if let Some(certificates) = image.certificates.clone() {
        found.extend(region(
            &[name, "signatures"],
            certificates,
            expected,
            actual,
        ));
    }
    found
}

fn initrd(place: &[&str], expected: &Bytes, actual: &Bytes) -> Vec<Difference> {
    let (Ok(before), Ok(after)) = (parse_newc(expected), parse_newc(actual)) else {
        return Vec::new();
    };
    let index = |entries: Vec<NewcEntry>| -> BTreeMap<Bytes, NewcEntry> {
        entries
            .into_iter()
            .map(|entry| (entry.path.clone(), entry))
            .collect()
    };
    let (before, after) = (index(before), index(after));
    let mut found = Vec::new();
    for (path, entry) in &before {
        let name = String::from_utf8_lossy(path);
        let inside = [place, &[name.as_ref()]].concat();
        let Some(other) = after.get(path) else {
            found.push(difference(&inside, "is missing".to_owned()));
            continue;
        };
        let metadata = |entry: &NewcEntry| (entry.mode, entry.owner, entry.links);
        if metadata(entry) != metadata(other) {
            let (mode, owner, links) = metadata(other);
            let (old_mode, old_owner, old_links) = metadata(entry);
            let said = format!(
                "mode {mode:o}, owner {}:{}, {links} names, expected {old_mode:o}, {}:{}, \
                 {old_links}",
                owner.uid, owner.gid, old_owner.uid, old_owner.gid
            );
            found.push(difference(&inside, said));
        }
        if entry.content != other.content {
            if *path == GUEST_CONFIG_PATH.trim_start_matches('/').as_bytes() {
                found.extend(json_in(&inside, &entry.content, &other.content));
            } else {
                found.push(difference(
                    &inside,
                    byte_range(&entry.content, &other.content),
                ));
            }
        }
    }
    for path in after.keys().filter(|path| !before.contains_key(*path)) {
        let name = String::from_utf8_lossy(path);
        let said = "ought not to be there".to_owned();
        found.push(difference(&[place, &[name.as_ref()]].concat(), said));
    }
    found
}

/// Where a disk's hash tree begins, as its manifest says.
fn hash_tree_start(manifest: &Bytes) -> Option<usize> {
    let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
    match manifest.root_disk?.root {
        RootFs::DmVerity {
            block_size,
            hash_start_block,
            ..
        } => usize::try_from(hash_start_block.checked_mul(u64::from(block_size))?).ok(),
        RootFs::Initramfs => None,
    }
}

/// Files of a root disk, its superblock and its hash tree.
fn root_disk(
    name: &str,
    expected: &Bytes,
    actual: &Bytes,
    hashes: Option<usize>,
) -> Vec<Difference> {
    let mut found = files(name, expected, actual);
    if expected.len() == actual.len() {
        let superblock = 0..BLOCK_LEN.min(expected.len());
        found.extend(region(&[name, "superblock"], superblock, expected, actual));
        if let Some(start) = hashes {
            let tree = start.min(expected.len())..expected.len();
            found.extend(region(&[name, "hash tree"], tree, expected, actual));
        }
    }
    if found.is_empty() {
        let place = [name, "inodes, directories or padding"];
        found.push(difference(&place, byte_range(expected, actual)));
    }
    found
}

/// Files of a root disk; none where it cannot be read.
fn files(name: &str, expected: &Bytes, actual: &Bytes) -> Vec<Difference> {
    let (Some(before), Some(after)) = (walk(expected), walk(actual)) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (path, file) in &before {
        let shown = format!("/{}", String::from_utf8_lossy(path));
        let Some(other) = after.get(path) else {
            found.push(difference(&[name, &shown], "is missing".to_owned()));
            continue;
        };
        if let Some(said) = file_difference(expected, file, actual, other) {
            found.push(difference(&[name, &shown], said));
        }
    }
    for path in after.keys().filter(|path| !before.contains_key(*path)) {
        let shown = format!("/{}", String::from_utf8_lossy(path));
        let said = "ought not to be there".to_owned();
        found.push(difference(&[name, &shown], said));
    }
    found
}

fn file_difference(
    expected: &Bytes,
    file: &Walked,
    actual: &Bytes,
    other: &Walked,
) -> Option<String> {
    let metadata = |file: &Walked| (file.mode, file.uid, file.gid, file.links);
    if metadata(file) != metadata(other) {
        return Some(format!(
            "mode {:o}, owner {}:{}, {} names, expected {:o}, {}:{}, {}",
            other.mode,
            other.uid,
            other.gid,
            other.links,
            file.mode,
            file.uid,
            file.gid,
            file.links
        ));
    }
    let slice = |image: &Bytes, range: &std::ops::Range<usize>| {
        image.get(range.clone()).map(<[u8]>::to_vec)
    };
    if slice(expected, &file.attributes) != slice(actual, &other.attributes) {
        return Some("has other file capabilities".to_owned());
    }
    // Directories hold the numbers of what is in them, which move with the rest.
    if file.is_directory() {
        return None;
    }
    let (before, after) = (
        slice(expected, &file.content)?,
        slice(actual, &other.content)?,
    );
    if before == after && file.size == other.size && file.compressed == other.compressed {
        return None;
    }
    let how = if file.compressed || other.compressed {
        "as it is stored compressed: "
    } else {
        ""
    };
    let at = other.content.start;
    let said = byte_range(&before, &after);
    Some(format!(
        "{how}{said} (the file starts at byte {at:#x} of the disk)"
    ))
}

#[cfg(test)]
mod tests;
