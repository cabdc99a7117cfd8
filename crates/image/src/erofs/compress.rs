//! Compressed content: pieces of 64 KiB, each compressed by itself into whole
//! blocks (Linux `fs/erofs/erofs_fs.h`, `fs/erofs/zmap.c`; "big pclusters").
//!
//! A piece depends on its own bytes and on the codec alone, so neither the
//! number of threads nor the other files of an image change it. A piece that
//! saves no block is stored plain, and a file without a compressed piece is an
//! ordinary one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;

use super::{BLOCK, BLOCK_LEN, EncodeErofsError, narrow};
use crate::recipe::Compression;
use crate::rope::{Keep, Rope};

/// Bytes of a piece. A guest that reads one byte uncompresses one piece.
const PIECE_LEN: usize = 64 * 1024;
/// Blocks of a piece, and so most blocks of a physical cluster.
const PIECE_BLOCKS: u16 = 16;
/// Pieces that are compressed before the result is put away: 32 MiB of content, which
/// bounds the memory that it takes.
const BATCH: usize = 512;
/// Highest level of lz4hc: builds are rare, boots are many.
const LZ4HC_LEVEL: i32 = 12;
/// Highest level of zstd that needs no memory beyond the piece's window.
const ZSTD_LEVEL: i32 = 19;

/// EROFS_FEATURE_INCOMPAT_ZERO_PADDING, and EROFS_FEATURE_INCOMPAT_COMPR_CFGS,
/// which is EROFS_FEATURE_INCOMPAT_BIG_PCLUSTER too.
const FEATURE_INCOMPAT: u32 = 1 | 2;

/// `struct z_erofs_map_header`, and eight bytes that the full index skips.
const MAP_HEADER_LEN: usize = 16;
/// `struct z_erofs_lcluster_index`.
const INDEX_LEN: usize = 8;
/// Z_EROFS_ADVISE_BIG_PCLUSTER_1.
const ADVISE_BIG_PCLUSTER: u16 = 2;
/// Z_EROFS_LCLUSTER_TYPE_PLAIN, _HEAD1 and _NONHEAD.
const TYPE_PLAIN: u16 = 0;
const TYPE_HEAD: u16 = 1;
const TYPE_NONHEAD: u16 = 2;
/// Z_EROFS_LI_D0_CBLKCNT: the distance back to the head is one, and the field
/// holds the physical cluster's blocks instead.
const BLOCK_COUNT: u16 = 1 << 11;

/// Z_EROFS_COMPRESSION_LZ4 or _ZSTD.
fn algorithm(compression: Compression) -> Option<u8> {
    match compression {
        Compression::None => None,
        Compression::Lz4hc => Some(0),
        Compression::Zstd => Some(3),
    }
}

/// First block of a compressed file's content, from the index that follows its
/// inode and attributes, which end at `inode_end`.
pub(super) fn first_block(image: &[u8], inode_end: usize) -> Option<u32> {
    let index = inode_end.checked_next_multiple_of(INDEX_LEN)? + MAP_HEADER_LEN;
    let block = image.get(index.checked_add(4)?..)?.first_chunk()?;
    Some(u32::from_le_bytes(*block))
}

/// What the superblock says about compression: `feature_incompat`,
/// `available_compr_algs`, and what follows the superblock.
pub(super) struct Features {
    pub(super) incompat: u32,
    pub(super) algorithms: u16,
    pub(super) configuration: Vec<u8>,
}

impl Features {
    pub(super) fn of(compression: Compression) -> Self {
        let Some(algorithm) = algorithm(compression) else {
            return Self {
                incompat: 0,
                algorithms: 0,
                configuration: Vec::new(),
            };
        };
        let configuration = match compression {
            // `struct z_erofs_lz4_cfgs`: any distance, blocks, reserved.
            Compression::Lz4hc => {
                [&[0, 0], PIECE_BLOCKS.to_le_bytes().as_slice(), &[0; 10]].concat()
            }
            // `struct z_erofs_zstd_cfgs`: format 0, the window's binary logarithm
            // less ten, reserved.
            _ => vec![0, 6, 0, 0, 0, 0],
        };
        let len = u16::try_from(configuration.len()).unwrap_or_default();
        Self {
            incompat: FEATURE_INCOMPAT,
            algorithms: 1 << algorithm,
            configuration: [len.to_le_bytes().as_slice(), &configuration].concat(),
        }
    }

    /// The compression that a superblock's features stand for.
    pub(super) fn parse(incompat: u32, algorithms: u16) -> Option<Compression> {
        [Compression::None, Compression::Lz4hc, Compression::Zstd]
            .into_iter()
            .find(|compression| {
                let features = Self::of(*compression);
                (features.incompat, features.algorithms) == (incompat, algorithms)
            })
    }
}

/// The content of one file, packed.
pub(super) struct Packed {
    algorithm: u8,
    pieces: Vec<Piece>,
    /// Blocks of all pieces.
    pub(super) blocks: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// Bytes as they are.
    Plain(Bytes),
    /// Whole blocks that end with the compressed bytes, and how many logical blocks
    /// they stand for.
    Compressed { blocks: Bytes, clusters: u16 },
}

impl Piece {
    fn blocks(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len().div_ceil(BLOCK_LEN),
            Self::Compressed { blocks, .. } => blocks.len() / BLOCK_LEN,
        }
    }
}

/// Packs files; a file without a compressed piece gives nothing. What is compressed
/// goes to `keep`.
pub(super) fn pack(
    files: &[&Bytes],
    compression: Compression,
    keep: &dyn Keep,
) -> Result<Vec<Option<Packed>>, EncodeErofsError> {
    let Some(algorithm) = algorithm(compression) else {
        return Ok(files.iter().map(|_| None).collect());
    };
    let pieces: Vec<Bytes> = files.iter().flat_map(|file| pieces(file)).collect();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut packed = Vec::with_capacity(pieces.len());
    for batch in pieces.chunks(BATCH) {
        let compressed = compress_pieces(batch, compression, threads)?;
        packed.extend(keep_pieces(batch, &compressed, keep)?);
    }
    let mut packed = packed.into_iter();
    files
        .iter()
        .map(|file| {
            let count = file.len().div_ceil(PIECE_LEN);
            let pieces: Vec<Piece> = packed.by_ref().take(count).collect();
            let compressed = |piece: &Piece| matches!(piece, Piece::Compressed { .. });
            if !pieces.iter().any(compressed) {
                return Ok(None);
            }
            let blocks = pieces.iter().map(Piece::blocks).sum::<usize>();
            Ok(Some(Packed {
                algorithm,
                pieces,
                blocks: narrow(blocks, "blocks of a file")?,
            }))
        })
        .collect()
}

/// Puts away what is compressed, all at once.
fn keep_pieces(
    pieces: &[Bytes],
    compressed: &[Option<Vec<u8>>],
    keep: &dyn Keep,
) -> Result<Vec<Piece>, EncodeErofsError> {
    let all: Vec<&[u8]> = compressed.iter().flatten().map(Vec::as_slice).collect();
    let kept = keep.keep(all.concat());
    let mut kept = kept.map_err(|error| EncodeErofsError::Keep {
        reason: error.to_string(),
    })?;
    pieces
        .iter()
        .zip(compressed)
        .map(|(piece, compressed)| match compressed {
            None => Ok(Piece::Plain(piece.clone())),
            Some(bytes) => Ok(Piece::Compressed {
                blocks: kept.split_to(bytes.len()),
                clusters: narrow(piece.len().div_ceil(BLOCK_LEN), "blocks of a piece")?,
            }),
        })
        .collect()
}

fn pieces(file: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    (0..file.len())
        .step_by(PIECE_LEN)
        .map(|start| file.slice(start..file.len().min(start + PIECE_LEN)))
}

/// Compresses every piece into whole blocks, on so many threads; nothing where that
/// saves none. The result is in the order of the pieces.
fn compress_pieces(
    pieces: &[Bytes],
    compression: Compression,
    threads: usize,
) -> Result<Vec<Option<Vec<u8>>>, EncodeErofsError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(index) else {
                return done;
            };
            done.push((index, compress_piece(piece, compression)));
        }
    };
    let mut done = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut done = Vec::with_capacity(pieces.len());
        for worker in workers {
            match worker.join() {
                Ok(part) => done.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, piece)| piece).collect()
}

fn compress_piece(
    piece: &Bytes,
    compression: Compression,
) -> Result<Option<Vec<u8>>, EncodeErofsError> {
    if piece.len() <= BLOCK_LEN {
        return Ok(None);
    }
    let bytes = match compression {
        Compression::None => return Ok(None),
        Compression::Lz4hc => {
            let mode = lz4::block::CompressionMode::HIGHCOMPRESSION(LZ4HC_LEVEL);
            lz4::block::compress(piece, Some(mode), false)
        }
        Compression::Zstd => zstd::bulk::compress(piece, ZSTD_LEVEL),
    };
    let bytes = bytes.map_err(|error| EncodeErofsError::Compress {
        codec: compression,
        reason: error.to_string(),
    })?;
    if bytes.len().div_ceil(BLOCK_LEN) >= piece.len().div_ceil(BLOCK_LEN) {
        return Ok(None);
    }
    // Compressed bytes end with their last block.
    let mut blocks = vec![0; bytes.len().next_multiple_of(BLOCK_LEN) - bytes.len()];
    blocks.extend(bytes);
    Ok(Some(blocks))
}

/// Bytes that follow an inode of a packed file, which ends at `end`.
pub(super) fn map_len(end: u64, size: u64) -> u64 {
    let clusters = size.div_ceil(BLOCK);
    end.next_multiple_of(8) - end + MAP_HEADER_LEN as u64 + clusters * INDEX_LEN as u64
}

impl Packed {
    /// Appends the map from logical clusters to blocks: `struct
    /// z_erofs_map_header` and the full index.
    pub(super) fn encode_map(&self, out: &mut Vec<u8>, block: u32) -> Result<(), EncodeErofsError> {
        out.resize(out.len().next_multiple_of(8), 0);
        out.extend([0; 4]);
        out.extend(ADVISE_BIG_PCLUSTER.to_le_bytes());
        // Logical clusters are blocks: h_clusterbits is zero.
        out.extend([self.algorithm, 0]);
        out.extend([0; 8]);
        let mut block = block;
        for piece in &self.pieces {
            let blocks: u16 = narrow(piece.blocks(), "blocks of a piece")?;
            match piece {
                Piece::Plain(_) => {
                    for index in 0..blocks {
                        let at = (block + u32::from(index)).to_le_bytes();
                        out.extend(encode_index(TYPE_PLAIN, at));
                    }
                }
                Piece::Compressed { clusters, .. } => {
                    out.extend(encode_index(TYPE_HEAD, block.to_le_bytes()));
                    for index in 1..*clusters {
                        let back = if index == 1 {
                            BLOCK_COUNT | blocks
                        } else {
                            index
                        };
                        let [b0, b1] = back.to_le_bytes();
                        let [f0, f1] = (clusters - index).to_le_bytes();
                        out.extend(encode_index(TYPE_NONHEAD, [b0, b1, f0, f1]));
                    }
                }
            }
            block += u32::from(blocks);
        }
        Ok(())
    }

    /// Appends the blocks.
    pub(super) fn emit(&self, out: &mut Rope) {
        for piece in &self.pieces {
            match piece {
                Piece::Plain(bytes) => {
                    out.push(bytes.clone());
                    out.pad_to(BLOCK);
                }
                Piece::Compressed { blocks, .. } => out.push(blocks.clone()),
            }
        }
    }
}

/// One logical cluster, which starts at its own first byte.
fn encode_index(kind: u16, place: [u8; 4]) -> [u8; INDEX_LEN] {
    let [k0, k1] = kind.to_le_bytes();
    let [p0, p1, p2, p3] = place;
    [k0, k1, 0, 0, p0, p1, p2, p3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let line = |i: u32| format!("{i} lines of text\n");
        let text: String = (0..40_000).map(line).collect();
        let pieces: Vec<Bytes> = pieces(&text.into()).collect();
        assert!(pieces.len() > 10);
        for codec in [Compression::Lz4hc, Compression::Zstd] {
            let alone = compress_pieces(&pieces, codec, 1).unwrap();
            assert!(alone[0].as_ref().unwrap().len().is_multiple_of(BLOCK_LEN));
            for threads in [2, 7, 64] {
                assert_eq!(compress_pieces(&pieces, codec, threads).unwrap(), alone);
            }
        }
    }

    /// Counts what it is given and keeps it.
    #[derive(Debug, Default)]
    struct Counting(std::sync::Mutex<Vec<usize>>);

    impl Keep for Counting {
        fn keep(&self, bytes: Vec<u8>) -> std::io::Result<Bytes> {
            self.0.lock().unwrap().push(bytes.len());
            Ok(bytes.into())
        }
    }

    #[test]
    fn a_batch_at_a_time_is_put_away_and_changes_nothing() {
        // Two files that share a batch, the second longer than one.
        let line = |i: u32| format!("{i:07}\n");
        let small: Bytes = (0..20_000).map(line).collect::<String>().into();
        let large: Bytes = (0..5_000_000).map(line).collect::<String>().into();
        let files = [&small, &large];
        let count: usize = files
            .iter()
            .map(|file| file.len().div_ceil(PIECE_LEN))
            .sum();
        assert!(BATCH < count && count < 2 * BATCH, "{count} pieces");
        let keep = Counting::default();
        let packed = pack(&files, Compression::Lz4hc, &keep).unwrap();
        let kept = keep.0.into_inner().unwrap();
        assert_eq!(kept.len(), 2);
        assert!(kept.iter().all(|len| (1..BATCH * PIECE_LEN).contains(len)));
        let mut whole = Rope::new();
        for packed in packed.iter().flatten() {
            packed.emit(&mut whole);
        }
        assert_eq!(kept.iter().sum::<usize>() as u64, whole.len());
        // Each piece by itself.
        let all: Vec<Bytes> = files.iter().flat_map(|file| pieces(file)).collect();
        let alone = compress_pieces(&all, Compression::Lz4hc, 1).unwrap();
        let expected: Vec<u8> = alone.into_iter().flatten().flatten().collect();
        assert!(whole.to_bytes() == expected, "the blocks are others");
    }

    /// Where nothing can be put.
    #[derive(Debug)]
    struct Full;

    impl Keep for Full {
        fn keep(&self, _: Vec<u8>) -> std::io::Result<Bytes> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn what_cannot_be_put_away_is_said() {
        let file: Bytes = vec![b'x'; PIECE_LEN].into();
        let Err(error) = pack(&[&file], Compression::Zstd, &Full) else {
            panic!("it was kept")
        };
        assert!(error.to_string().contains("no storage space"), "{error}");
    }
}
