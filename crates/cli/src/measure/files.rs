//! Reading what is measured. What is parsed is mapped; what is only hashed is
//! read piece by piece, which is faster and takes no memory.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Deref;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use assay_image::igvm::measure_self_contained;
use assay_image::manifest::Manifest;
use assay_measure::inputs::FirmwareInputsError;
use assay_measure::{FirmwareInputs, FirmwareMeasurement, MeasurementInputs};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::parse_ovmf;
use assay_tee::{LaunchDigest, Sha256Digest};
use bytes::Bytes;
use memmap2::Mmap;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::request::{Blob, Cmdline, DirectBoot};

/// Bytes that are hashed at a time, a whole number of pages: large enough that
/// system calls cost little, small enough that little memory is touched.
const PIECE: usize = 64 * 1024;

/// The content of a file.
pub(super) enum Content {
    /// The file, to be read as well.
    Mapped(Mmap, File),
    /// Of what cannot be mapped: pipes, and empty files.
    Read(Vec<u8>),
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map, _) => map,
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
        Ok(Content::Mapped(map(&file)?, file))
    };
    open().with_context(|| format!("read {}", path.display()))
}

#[expect(unsafe_code, reason = "a mapping takes neither a copy nor its time")]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: nothing here writes to the file. Whoever else writes to it while it
    // is measured gets a digest of what was there at one moment or another, as
    // with a copy; whoever truncates it ends this program with SIGBUS, before
    // anything is printed.
    unsafe { Mmap::map(file) }
}

/// Measures an OVMF image. Its metadata is a few bytes anywhere in the file; its
/// pages are read piece by piece.
pub(super) fn measure_firmware(path: &Path) -> Result<FirmwareInputs> {
    let content = read(path)?;
    let metadata = parse_ovmf(&content).map_err(FirmwareInputsError::Parse)?;
    let mut measurement = FirmwareMeasurement::new(metadata);
    let mut update = |pages: &[u8]| measurement.update(pages.as_chunks().0);
    match content {
        Content::Read(bytes) => update(&bytes),
        Content::Mapped(_, file) => read_pieces(path, file, update)?,
    }
    Ok(measurement.finish()?)
}

/// Runs the first on another thread and the second on this one.
fn in_parallel<A: Send, B>(first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        let first = first.join();
        (first.unwrap_or_else(|panic| resume_unwind(panic)), second)
    })
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

/// What is measured of the self-contained IGVM file of a firmware and a UKI.
pub(super) fn igvm_digest(firmware: &Path, kernel: Option<&DirectBoot>) -> Result<LaunchDigest> {
    let Some(DirectBoot {
        kernel: Blob::File(uki),
        initrd: None,
        cmdline: Cmdline::Text(cmdline),
    }) = kernel
    else {
        bail!(
            "the file holds a UKI; give one with --kernel, and no --initrd, --kernel-hash or \
             --cmdline-hash"
        );
    };
    ensure!(
        cmdline.is_empty(),
        "the file holds a UKI and its own command line; leave out --append"
    );
    let bytes = |path| Ok::<_, anyhow::Error>(Bytes::copy_from_slice(&read(path)?));
    let uki = bytes(uki)?;
    ensure!(
        uki.starts_with(b"MZ"),
        "--kernel is not an EFI executable, which the file needs; give a unified kernel image"
    );
    Ok(measure_self_contained(&bytes(firmware)?, &uki)?)
}

/// A JSON document.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?)
        .with_context(|| format!("read the recorded inputs in {}", path.display()))
}

/// The hashes of what QEMU is given to boot.
pub(super) fn hash_kernel(boot: &DirectBoot) -> Result<KernelHashes> {
    let kernel = || hash_blob(&boot.kernel);
    let initrd = || boot.initrd.as_ref().map(hash_blob).transpose();
    let (kernel, initrd) = match &boot.initrd {
        Some(Blob::File(_)) => in_parallel(kernel, initrd),
        // There is nothing to do beside the kernel.
        Some(Blob::Digest(_)) | None => (kernel(), initrd()),
    };
    let (kernel, initrd) = (kernel?, initrd?);
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
        Blob::File(path) => {
            let mut digest = Sha256::new();
            let file = File::open(path).with_context(|| format!("read {}", path.display()))?;
            read_pieces(path, file, |piece| digest.update(piece))?;
            Ok(Sha256Digest::new(digest.finalize().into()))
        }
    }
}

/// Hands over the file at `path` in pieces of [`PIECE`] bytes, the last one shorter.
fn read_pieces(path: &Path, mut file: File, mut take: impl FnMut(&[u8])) -> Result<()> {
    let reading = || format!("read {}", path.display());
    let mut buffer = vec![0; PIECE];
    loop {
        let length = fill(&mut file, &mut buffer).with_context(reading)?;
        if length == 0 {
            return Ok(());
        }
        take(buffer.get(..length).unwrap_or_default());
    }
}

/// Reads until the buffer is full or the file ends; gives the bytes read.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
