//! A disk image that firmware boots: a GUID partition table (UEFI 2.10, §5.3)
//! with an EFI system partition and, where there is a root disk, its data and
//! its hash tree as partitions of their own (UAPI group, *Discoverable Partitions
//! Specification*).
//!
//! Every identifier follows from the content, so the same artifact gives the same
//! bytes.

mod fat;
mod gpt;

use assay_tee::Sha256Digest;
use assay_tee::guest_config::RootFs;
use assay_tee::guid::Guid;
use assay_tee::root_partition::{ROOT, ROOT_VERITY, root_partition_ids};

use crate::artifact::Artifact;
use crate::manifest::{ROOT_DISK_PATH, UKI_PATH};
use crate::rope::Rope;

use gpt::{Partition, encode_table};

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Where partitions begin is a multiple of this, in sectors: 1 MiB.
const ALIGNMENT: u64 = 2048;

/// EFI system partition.
const ESP: Guid = Guid::new(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b);
/// SD_GPT_FLAG_READ_ONLY.
const READ_ONLY: u64 = 1 << 60;

/// An artifact that makes no disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeDiskError {
    /// A file that the manifest promises is not there.
    #[error("the artifact has no file {0}")]
    MissingFile(&'static str),
    /// The root disk is not data and a tree.
    #[error("the root disk is not data with a dm-verity tree after them")]
    RootDisk,
    /// The UKI does not fit a FAT file.
    #[error("the UKI of {0} bytes is too large for a file of an EFI system partition")]
    UkiTooLarge(u64),
}

/// The disk image of an artifact.
pub fn encode_disk(artifact: &Artifact) -> Result<Rope, EncodeDiskError> {
    let file = |name: &'static str| {
        let found = artifact.files.iter().find(|(path, _)| *path == name);
        found
            .map(|(_, content)| content)
            .ok_or(EncodeDiskError::MissingFile(name))
    };
    let uki = file(UKI_PATH)?;
    let identity = derive("assay disk guid v1", artifact.manifest.uki.sha256);
    let mut partitions = vec![Partition {
        kind: ESP,
        id: guid_of_content(derive("assay esp guid v1", artifact.manifest.uki.sha256)),
        flags: 0,
        name: "esp",
        content: fat::encode_esp(uki, identity)?,
    }];
    if let Some(disk) = &artifact.manifest.root_disk {
        let RootFs::DmVerity {
            block_size,
            data_blocks,
            root_hash,
            ..
        } = &disk.root
        else {
            return Err(EncodeDiskError::RootDisk);
        };
        let len = data_blocks.checked_mul(u64::from(*block_size));
        let (data, tree) = len
            .and_then(|len| file(ROOT_DISK_PATH).map(|disk| disk.split_at(len)).ok()?)
            .ok_or(EncodeDiskError::RootDisk)?;
        let [data_id, tree_id] = root_partition_ids(*root_hash);
        partitions.push(Partition {
            kind: ROOT,
            id: data_id,
            flags: READ_ONLY,
            name: "root-x86-64",
            content: data,
        });
        partitions.push(Partition {
            kind: ROOT_VERITY,
            id: tree_id,
            flags: READ_ONLY,
            name: "root-x86-64-verity",
            content: tree,
        });
    }
    Ok(encode_table(guid_of_content(identity), &partitions))
}

/// A GUID of version 8 (RFC 9562, §5.8): its bits follow from content.
fn guid_of_content(digest: Sha256Digest) -> Guid {
    const VERSION: u128 = 0xf << 76;
    const VARIANT: u128 = 0b11 << 62;
    let text = u128::from_be_bytes(digest.as_bytes().first_chunk().copied().unwrap_or_default());
    Guid::new(text & !(VERSION | VARIANT) | 8 << 76 | 0b10 << 62)
}

fn derive(label: &str, content: Sha256Digest) -> Sha256Digest {
    Sha256Digest::of(&[label.as_bytes(), b"\0", content.as_bytes()].concat())
}

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
