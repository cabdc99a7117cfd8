//! dm-verity hash trees (Linux `Documentation/admin-guide/device-mapper/verity.rst`,
//! cryptsetup's superblock version 1), appended to the data they protect.
//!
//! The guest never parses the superblock: all parameters come from the measured
//! `guest.json`. It is written so that `veritysetup` can check an image.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread;

use assay_tee::Sha256Digest;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::rope::Rope;

/// Size of data and hash blocks.
pub const BLOCK: u32 = 4096;
const BLOCK_LEN: usize = BLOCK as usize;
const DIGEST_LEN: usize = 32;
const MAGIC: &[u8; 8] = b"verity\0\0";
const SALT_FIELD_LEN: usize = 256;
/// Blocks from which a thread of its own is worth its start.
const MIN_PART: u64 = 1024;

/// A hash tree's parameters besides the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerityParameters {
    /// Goes before the content of every block.
    pub salt: [u8; 32],
    /// Identifier in the superblock.
    pub uuid: [u8; 16],
}

/// What a guest must know to check every block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerityTree {
    /// Number of data blocks.
    pub data_blocks: u64,
    /// First block of the tree, counted from the start of the data: the
    /// superblock stands between.
    pub hash_start_block: u64,
    /// Digest of the tree's top block.
    pub root_hash: Sha256Digest,
}

/// Data that cannot be protected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerityError {
    /// Not a positive number of whole blocks.
    #[error("data of {len} bytes is not a positive number of {BLOCK}-byte blocks")]
    Length {
        /// Length of the data.
        len: u64,
    },
}

/// Appends superblock and hash tree to `data`.
pub fn append_verity(
    data: &mut Rope,
    parameters: &VerityParameters,
) -> Result<VerityTree, VerityError> {
    let len = data.len();
    if len == 0 || !len.is_multiple_of(u64::from(BLOCK)) {
        return Err(VerityError::Length { len });
    }
    let data_blocks = len / u64::from(BLOCK);
    // The salt is the same for every block: hash it once.
    let salted = Sha256::new_with_prefix(parameters.salt);
    let (root_hash, levels) = hash_tree(&salted, data);

    data.push(superblock(parameters, data_blocks));
    // The top level comes first.
    for level in levels.into_iter().rev() {
        data.push(level);
    }
    Ok(VerityTree {
        data_blocks,
        hash_start_block: data_blocks + 1,
        root_hash,
    })
}

/// The root hash and the tree's levels, leaves first, each a whole number of
/// blocks. Data of one block has no levels: its digest is the root hash.
fn hash_tree(salted: &Sha256, data: &Rope) -> (Sha256Digest, Vec<Bytes>) {
    let mut digests = hash_blocks(salted, data);
    let mut levels = Vec::new();
    while digests.len() > DIGEST_LEN {
        digests.resize(digests.len().next_multiple_of(BLOCK_LEN), 0);
        let level = Bytes::from(digests);
        digests = hash_blocks(salted, &Rope::from(level.clone()));
        levels.push(level);
    }
    let mut root = [0; DIGEST_LEN];
    root.iter_mut()
        .zip(&digests)
        .for_each(|(to, from)| *to = *from);
    (Sha256Digest::new(root), levels)
}

/// The digests of all blocks, by as many threads as there are processors. They are
/// the same for any number.
fn hash_blocks(salted: &Sha256, data: &Rope) -> Vec<u8> {
    let blocks = data.len().div_ceil(BLOCK_LEN as u64);
    let threads = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let part = blocks.div_ceil(threads).max(MIN_PART) * BLOCK_LEN as u64;
    let mut parts = Vec::new();
    let mut rest = data.clone();
    while let Some((first, others)) = rest.split_at(part) {
        parts.push(first);
        rest = others;
    }
    parts.push(rest);
    thread::scope(|scope| {
        let hashing: Vec<_> = parts
            .iter()
            .map(|part| scope.spawn(|| hash_part(salted, part)))
            .collect();
        hashing
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

fn hash_part(salted: &Sha256, data: &Rope) -> Vec<u8> {
    let mut digests = Vec::new();
    for block in data.blocks(BLOCK_LEN) {
        let mut hasher = salted.clone();
        hasher.update(&block);
        digests.extend_from_slice(&hasher.finalize());
    }
    digests
}

/// `struct verity_sb`, hash type 1, padded to a block.
fn superblock(parameters: &VerityParameters, data_blocks: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_LEN);
    out.extend_from_slice(MAGIC);
    out.extend(1_u32.to_le_bytes()); // version
    out.extend(1_u32.to_le_bytes()); // hash type: salt first
    out.extend(parameters.uuid);
    out.extend_from_slice(b"sha256");
    out.resize(out.len() + 26, 0);
    out.extend(BLOCK.to_le_bytes());
    out.extend(BLOCK.to_le_bytes());
    out.extend(data_blocks.to_le_bytes());
    out.extend(32_u16.to_le_bytes()); // length of the salt
    out.extend([0; 6]);
    out.extend(parameters.salt);
    out.resize(out.len() + SALT_FIELD_LEN - parameters.salt.len(), 0);
    out.resize(BLOCK_LEN, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracles::Oracles;

    const PARAMETERS: VerityParameters = VerityParameters {
        salt: [0x5a; 32],
        uuid: *b"0123456789abcdef",
    };

    fn data(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK_LEN)
            .map(|i| (i * 31 + i / 4096).to_le_bytes()[0])
            .collect()
    }

    #[test]
    fn the_length_must_be_whole_blocks() {
        for len in [0, 1, 4095, 4097] {
            let mut rope = Rope::from(vec![0; len]);
            let error = append_verity(&mut rope, &PARAMETERS).unwrap_err();
            assert_eq!(error, VerityError::Length { len: len as u64 });
        }
    }

    #[test]
    fn every_byte_counts() {
        let root = |bytes: Vec<u8>| {
            append_verity(&mut Rope::from(bytes), &PARAMETERS)
                .unwrap()
                .root_hash
        };
        let good = data(130);
        let expected = root(good.clone());
        for at in [0, 4095, 4096, 128 * 4096, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_ne!(root(bad), expected, "byte {at}");
        }
    }

    #[test]
    fn veritysetup_writes_and_accepts_the_same_bytes() {
        let Some(oracles) = Oracles::find("veritysetup") else {
            return;
        };
        let salt = format!("--salt={}", hex::encode(PARAMETERS.salt));
        let uuid = "--uuid=30313233-3435-3637-3839-616263646566";
        // One block, one full level, two levels, three levels.
        for blocks in [1, 128, 129, 128 * 128 + 1] {
            let plain = data(blocks);
            let mut ours = Rope::from(plain.clone());
            let root = append_verity(&mut ours, &PARAMETERS)
                .unwrap()
                .root_hash
                .to_hex();
            let offset = format!("--hash-offset={}", plain.len());
            let count = format!("--data-blocks={blocks}");
            let theirs = oracles.write("theirs", &plain);
            let format = ["format", &theirs, &theirs, &offset, uuid, &salt, &count];
            let text = oracles.run("veritysetup", &format);
            assert!(text.contains(&root), "{blocks} blocks: {text}");
            let ours = ours.to_bytes();
            assert!(
                std::fs::read(oracles.outside("theirs")).unwrap() == ours,
                "{blocks} blocks: the files differ"
            );

            let verify = |bytes: &[u8]| {
                let file = oracles.write("ours", bytes);
                let verify = ["verify", &file, &file, &root, &offset];
                oracles.try_run("veritysetup", &verify).0
            };
            assert!(verify(&ours));
            let mut flipped = ours.to_vec();
            flipped[17] ^= 1;
            assert!(!verify(&flipped));
        }
    }
}
