//! A blob that is being transferred.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use assay_tee::Sha256Digest;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::Scratch;

/// A blob as far as it is here. Nobody else writes to it.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    place: Place,
    length: u64,
}

/// Where it is. What nobody else can change is hashed on its way.
#[derive(Debug)]
enum Place {
    Memory(Vec<u8>, Sha256),
    Nameless(File, Sha256, Scratch),
    /// A file of a cache, where others can write, and an earlier transfer may have.
    Named(File, PathBuf, Option<Scratch>),
}

impl PartialBlob {
    /// Nothing yet, to be kept in scratch space, or in memory without any.
    pub(crate) fn nameless(scratch: Option<&Scratch>) -> io::Result<Self> {
        let place = match scratch {
            Some(scratch) => Place::Nameless(scratch.file()?, Sha256::new(), scratch.clone()),
            None => Place::Memory(Vec::new(), Sha256::new()),
        };
        Ok(Self { place, length: 0 })
    }

    /// What a file holds, which is locked.
    pub(crate) fn named(file: File, path: PathBuf, scratch: Option<&Scratch>) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let place = Place::Named(file, path, scratch.cloned());
        Ok(Self { place, length })
    }

    /// The file's name, where it has one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Named(_, path, _) => Some(path),
            _ => None,
        }
    }

    /// Bytes that are here.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Throws away what is here.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        match &mut self.place {
            Place::Memory(content, hasher) => {
                content.clear();
                *hasher = Sha256::new();
            }
            Place::Nameless(file, hasher, _) => {
                file.set_len(0)?;
                *hasher = Sha256::new();
            }
            Place::Named(file, ..) => file.set_len(0)?,
        }
        self.length = 0;
        Ok(())
    }

    /// Appends what came next.
    pub(crate) fn append(&mut self, chunk: &[u8]) -> io::Result<()> {
        match &mut self.place {
            Place::Memory(content, hasher) => {
                content.extend_from_slice(chunk);
                hasher.update(chunk);
            }
            Place::Nameless(file, hasher, _) => {
                append_at(file, self.length, chunk)?;
                hasher.update(chunk);
            }
            Place::Named(file, ..) => append_at(file, self.length, chunk)?,
        }
        self.length = self.length.saturating_add(chunk.len() as u64);
        Ok(())
    }

    /// Everything that is here, and its digest.
    pub(crate) fn content(&mut self) -> io::Result<(Bytes, Sha256Digest)> {
        let finish = |hasher: &Sha256| Sha256Digest::new(hasher.clone().finalize().into());
        match &mut self.place {
            Place::Memory(content, hasher) => {
                let digest = finish(hasher);
                Ok((std::mem::take(content).into(), digest))
            }
            Place::Nameless(file, hasher, scratch) => Ok((scratch.map(file)?, finish(hasher))),
            Place::Named(file, _, scratch) => {
                file.rewind()?;
                let content = copy_of(file, scratch.as_ref())?;
                let digest = Sha256Digest::of(&content);
                Ok((content, digest))
            }
        }
    }
}

fn append_at(file: &mut File, length: u64, chunk: &[u8]) -> io::Result<()> {
    file.seek(io::SeekFrom::Start(length))?;
    file.write_all(chunk)
}

/// A copy of a file, which stays as it is whoever changes the file: on the scratch
/// disk, or in memory without one.
pub(crate) fn copy_of(file: &mut File, scratch: Option<&Scratch>) -> io::Result<Bytes> {
    if let Some(scratch) = scratch {
        return scratch.keep(file);
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content.into())
}
