//! Reading what is measured. Firmware is parsed and so mapped; kernels and initrds
//! are only hashed, piece by piece.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Deref;
use std::path::Path;

use anyhow::{Context as _, Result};
use assay_image::manifest::Manifest;
use assay_measure::MeasurementInputs;
use assay_tee::Sha256Digest;
use assay_tee::hashes_table::KernelHashes;
use memmap2::{Mmap, MmapOptions};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::request::{Blob, Cmdline, DirectBoot};

/// Bytes that are hashed at a time: large enough that system calls cost
/// nothing, small enough to stay in the processor's cache.
const CHUNK: usize = 256 * 1024;

/// The content of a file.
pub(super) enum Content {
    Mapped(Mmap),
    /// Of what cannot be mapped: pipes, and empty files.
    Read(Vec<u8>),
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
        }
    }
}

/// A whole file.
pub(super) fn read(path: &Path) -> Result<Content> {
    let open = || -> io::Result<Content> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() == 0 {
            let mut bytes = Vec::new();
            (&file).read_to_end(&mut bytes)?;
            return Ok(Content::Read(bytes));
        }
        map(&file).map(Content::Mapped)
    };
    open().with_context(|| format!("read {}", path.display()))
}

#[expect(unsafe_code, reason = "a mapping takes neither a copy nor its time")]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: nothing here writes to the file. Whoever else writes to it while it
    // is measured gets a digest of what was there at one moment or another, as
    // with a copy; whoever truncates it ends this program with SIGBUS, before
    // anything is printed.
    unsafe { MmapOptions::new().populate().map(file) }
}

/// What stands for the files of an SEV-SNP launch: recorded inputs, or the
/// manifest of an artifact, which holds them.
pub(super) fn read_inputs(path: &Path) -> Result<MeasurementInputs> {
    let bytes = read(path)?;
    match serde_json::from_slice::<Manifest>(&bytes) {
        Ok(manifest) => Ok(manifest.measurement),
        Err(_) => read_json(path),
    }
}

/// A JSON document.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?)
        .with_context(|| format!("read the recorded inputs in {}", path.display()))
}

/// The hashes of what QEMU is given to boot.
pub(super) fn hash_kernel(boot: &DirectBoot) -> Result<KernelHashes> {
    let initrd = boot.initrd.as_ref().map(hash_blob).transpose()?;
    let kernel = hash_blob(&boot.kernel)?;
    Ok(match &boot.cmdline {
        Cmdline::Text(text) => KernelHashes::from_digests(kernel, initrd, text),
        Cmdline::Digest(cmdline) => KernelHashes {
            cmdline: *cmdline,
            ..KernelHashes::from_digests(kernel, initrd, "")
        },
    })
}

fn hash_blob(blob: &Blob) -> Result<Sha256Digest> {
    match blob {
        Blob::Digest(digest) => Ok(*digest),
        Blob::File(path) => hash_file(path).with_context(|| format!("read {}", path.display())),
    }
}

fn hash_file(path: &Path) -> std::io::Result<Sha256Digest> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match file.read(&mut chunk) {
            Ok(0) => return Ok(Sha256Digest::new(digest.finalize().into())),
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        digest.update(chunk.get(..length).unwrap_or_default());
    }
}
