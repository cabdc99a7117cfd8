//! Where a secret must not be: API objects, logs, and the memory of the programs
//! that it went through, which is what a core dump holds.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use memchr::memmem;

use crate::kubectl::Kubectl;

/// Bytes of memory that are read at a time.
const PIECE: usize = 1 << 20;

/// A secret in every form in which it would be recognised.
#[derive(Debug)]
pub struct Needles(Vec<Vec<u8>>);

impl Needles {
    /// The bytes themselves, and their base64 wherever they begin in a longer text.
    pub fn of(secret: &[u8]) -> Self {
        let encoded = (0..3).map(|before| {
            let text = BASE64_STANDARD_NO_PAD.encode([&vec![0; before], secret].concat());
            // Characters that hold bits of the secret alone.
            let whole = (8 * before).div_ceil(6)..8 * (before + secret.len()) / 6;
            text.as_bytes().get(whole).unwrap_or_default().to_vec()
        });
        Self(std::iter::once(secret.to_vec()).chain(encoded).collect())
    }

    /// Where the secret begins.
    pub fn find(&self, bytes: &[u8]) -> Option<usize> {
        self.0.iter().find_map(|needle| memmem::find(bytes, needle))
    }

    fn longest(&self) -> usize {
        self.0.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// Searches every object of the API but the Secret `namespace/name`, where the
/// secret belongs.
///
/// # Errors
/// When it is found, or an object cannot be read.
pub fn search_objects(
    kubectl: &Kubectl,
    namespace: &str,
    name: &str,
    needles: &Needles,
) -> Result<()> {
    let kinds = kubectl.run(&["api-resources", "--verbs=list", "-o", "name"])?;
    for kind in kinds.lines() {
        let mut list = vec!["get", kind, "-A", "-o", "yaml"];
        let selector = format!("--field-selector=metadata.name!={name}");
        if kind == "secrets" {
            list.push(&selector);
            let others = kubectl.run(&["get", kind, "-A", "-o", "name", &selector])?;
            ensure!(
                !others.is_empty(),
                "there are no other Secrets than {namespace}/{name}"
            );
        }
        let objects = kubectl.run(&list)?;
        ensure!(
            needles.find(objects.as_bytes()).is_none(),
            "the secret is in {kind}:\n{objects}"
        );
    }
    Ok(())
}

/// Searches files below a directory.
///
/// # Errors
/// When the secret is found, or a file cannot be read.
pub fn search_files(directory: &Path, needles: &Needles) -> Result<()> {
    let reading = || format!("read {}", directory.display());
    for entry in fs::read_dir(directory).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(
            needles.find(&content).is_none(),
            "the secret is in {}",
            path.display()
        );
    }
    Ok(())
}

/// The processes of a program.
///
/// # Errors
/// When the kernel does not list processes.
pub fn processes(program: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list processes")? {
        let name = entry.context("list processes")?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end meanwhile.
        let comm = fs::read_to_string(process(id).join("comm")).unwrap_or_default();
        if comm.trim_end() == program {
            found.push(id);
        }
    }
    Ok(found)
}

/// Whether a process leaves no core dump: its limit is zero, and its files in
/// `/proc` belong to root, as those of a process do that is not dumpable.
///
/// # Errors
/// When the process does not exist.
pub fn leaves_no_core_dump(id: u32) -> Result<bool> {
    let limits = fs::read_to_string(process(id).join("limits")).context("read limits")?;
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .context("there is no limit of core files")?;
    let owner = fs::metadata(process(id).join("mem")).context("look at a process")?;
    Ok(limit.split_whitespace().take(2).all(|limit| limit == "0") && owner.uid() == 0)
}

/// The mapping of a process's writable memory that holds the secret.
///
/// # Errors
/// When its memory cannot be read: that takes root.
pub fn search_memory(id: u32, needles: &Needles) -> Result<Option<String>> {
    let maps = fs::read_to_string(process(id).join("maps")).context("read mappings")?;
    let memory = File::open(process(id).join("mem")).context("open memory")?;
    let mut buffer = vec![0; PIECE + needles.longest()];
    for mapping in maps.lines() {
        let Some(range) = writable(mapping) else {
            continue;
        };
        let mut at = range.start;
        while at < range.end {
            let length = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let length = length.min(buffer.len());
            // What is mapped and cannot be read is in no core dump either.
            let read = match memory.read_at(&mut buffer[..length], at) {
                Err(error) if error.raw_os_error() == Some(EIO) => break,
                read => read.with_context(|| format!("read {mapping}"))?,
            };
            if needles.find(&buffer[..read]).is_some() {
                return Ok(Some(mapping.to_owned()));
            }
            if read == 0 {
                break;
            }
            at += PIECE as u64;
        }
    }
    Ok(None)
}

/// What the kernel says of memory that it cannot read.
const EIO: i32 = 5;

/// The range of a mapping that a process can read and write (proc_pid_maps(5)).
fn writable(mapping: &str) -> Option<Range<u64>> {
    let (range, rest) = mapping.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    rest.starts_with("rw")
        .then_some(address(start)?..address(end)?)
}

fn process(id: u32) -> PathBuf {
    Path::new("/proc").join(id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_as_it_is_and_in_base64() {
        let secret = b"correct horse battery staple";
        let needles = Needles::of(secret);
        for before in ["", "a", "ab", "abc", "abcd"] {
            let text = format!("{before}correct horse battery stapleZ");
            assert_eq!(needles.find(text.as_bytes()), Some(before.len()));
            let encoded = BASE64_STANDARD_NO_PAD.encode(&text);
            assert!(needles.find(encoded.as_bytes()).is_some(), "{encoded}");
        }
        assert_eq!(needles.find(b"correct horse battery stable"), None);
        let other = BASE64_STANDARD_NO_PAD.encode("correct horse battery stable");
        assert_eq!(needles.find(other.as_bytes()), None);
    }

    #[test]
    fn memory_is_searched() {
        // Made here, so that it is nowhere but in memory.
        let secret: Vec<u8> = (0..40_u8)
            .map(|byte| byte.wrapping_mul(37) ^ 0x5a)
            .collect();
        let held = secret.clone();
        let needles = Needles::of(&secret);
        let found = search_memory(std::process::id(), &needles);
        assert!(found.is_ok_and(|found| found.is_some()));
        drop(held);
    }
}
