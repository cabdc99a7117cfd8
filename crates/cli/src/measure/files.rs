//! Reading what is measured. Firmware is parsed and so held in memory; kernels
//! and initrds are only hashed, and never are.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use assay_tee::Sha256Digest;
use assay_tee::hashes_table::KernelHashes;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::request::{Blob, Cmdline, DirectBoot};

/// Bytes that are hashed at a time: large enough that system calls cost
/// nothing, small enough to stay in the processor's cache.
const CHUNK: usize = 256 * 1024;

/// A whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
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
