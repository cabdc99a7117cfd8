//! A FAT32 file system with one file (Microsoft, *FAT: General Overview of
//! On-Disk Format*, 1.03): `EFI/BOOT/BOOTX64.EFI`, what firmware starts from a
//! disk that has no boot entry (UEFI 2.10, §3.5.1.1).

use assay_tee::Sha256Digest;

use crate::rope::Rope;

use super::{ALIGNMENT, EncodeDiskError, SECTOR};

/// Sectors before the first table.
const RESERVED: u32 = 32;
/// With fewer clusters a file system is FAT16; some readers are off by a few.
const MIN_CLUSTERS: u32 = 65_536;
/// Two tables of a multiple of this many sectors keep clusters aligned to 4 KiB.
const TABLE_ALIGNMENT: u32 = 4;
/// The last cluster of a file.
const END: u32 = 0x0fff_ffff;
/// The numbers of clusters begin here.
const FIRST_CLUSTER: u32 = 2;
const ROOT: u32 = FIRST_CLUSTER;
const EFI: u32 = 3;
const BOOT: u32 = 4;
const FILE: u32 = 5;
/// 1 January 1980, the first day that the format knows.
const DATE: u16 = 0x21;
const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const VOLUME_ID: u8 = 0x08;
const LABEL: &[u8; 11] = b"ESP        ";
const MEDIA: u8 = 0xf8;

/// How large everything is.
struct Layout {
    file_len: u32,
    file_clusters: u32,
    clusters: u32,
    table_sectors: u32,
    sectors: u32,
}

impl Layout {
    /// One sector is one cluster: the smallest file system that is FAT32.
    fn new(file: u64) -> Option<Self> {
        let file_len = u32::try_from(file).ok()?;
        let sector = u32::try_from(SECTOR).ok()?;
        let file_clusters = file_len.div_ceil(sector);
        let clusters = (file_clusters + (FILE - FIRST_CLUSTER)).max(MIN_CLUSTERS);
        let table_sectors = ((clusters + FIRST_CLUSTER) * 4)
            .div_ceil(sector)
            .next_multiple_of(TABLE_ALIGNMENT);
        Some(Self {
            file_len,
            file_clusters,
            clusters,
            table_sectors,
            sectors: RESERVED + 2 * table_sectors + clusters,
        })
    }

    fn free_clusters(&self) -> u32 {
        self.clusters - (FILE - FIRST_CLUSTER) - self.file_clusters
    }
}

/// Writes the partition. `identity` gives the volume's number.
pub(super) fn encode_esp(uki: &Rope, identity: Sha256Digest) -> Result<Rope, EncodeDiskError> {
    let layout = Layout::new(uki.len()).ok_or(EncodeDiskError::UkiTooLarge(uki.len()))?;
    let boot = boot_sector(&layout, identity);
    let info = info_sector(&layout);
    let mut out = Rope::new();
    // The sectors, and again as the backup from sector 6.
    for _ in 0..2 {
        out.push(boot.clone());
        out.push(info.clone());
        out.push_zeros(4 * SECTOR);
    }
    out.pad_to(u64::from(RESERVED) * SECTOR);
    let table = table(&layout);
    out.append(&table);
    out.append(&table);
    for directory in directories(&layout) {
        out.push(directory);
        out.pad_to(SECTOR);
    }
    out.append(uki);
    out.pad_to(SECTOR);
    out.push_zeros(u64::from(layout.sectors) * SECTOR - out.len());
    Ok(out)
}

fn boot_sector(layout: &Layout, identity: Sha256Digest) -> Vec<u8> {
    let short = u16::to_le_bytes;
    let long = u32::to_le_bytes;
    let hidden = u32::try_from(ALIGNMENT).unwrap_or_default();
    let volume: [u8; 4] = identity
        .as_bytes()
        .first_chunk()
        .copied()
        .unwrap_or_default();
    let parts: [&[u8]; 27] = [
        &[0xeb, 0x58, 0x90], // a jump over what follows
        b"ASSAY   ",
        &short(512),
        &[1], // sectors of a cluster
        &short(32),
        &[2], // tables
        &short(0),
        &short(0),
        &[MEDIA],
        &short(0),
        &short(63),  // sectors of a track
        &short(255), // heads
        &long(hidden),
        &long(layout.sectors),
        &long(layout.table_sectors),
        &short(0), // both tables are written
        &short(0), // version
        &long(ROOT),
        &short(1), // FSInfo
        &short(6), // backup
        &[0; 12],
        &[0x80], // the first disk
        &[0],
        &[0x29],
        &volume,
        LABEL,
        b"FAT32   ",
    ];
    end_sector(parts.concat())
}

fn end_sector(mut sector: Vec<u8>) -> Vec<u8> {
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

fn info_sector(layout: &Layout) -> Vec<u8> {
    let mut sector = b"RRaA".to_vec();
    sector.resize(484, 0);
    sector.extend(b"rrAa");
    sector.extend(layout.free_clusters().to_le_bytes());
    let next = FILE + layout.file_clusters;
    let next = if layout.free_clusters() == 0 {
        u32::MAX
    } else {
        next
    };
    sector.extend(next.to_le_bytes());
    end_sector(sector)
}

/// A table: three directories of one cluster, and the file in one run.
fn table(layout: &Layout) -> Rope {
    let mut entries = vec![0x0fff_ff00 | u32::from(MEDIA), END, END, END, END];
    let last = FILE + layout.file_clusters;
    entries.extend((FILE..last).map(|cluster| if cluster + 1 < last { cluster + 1 } else { END }));
    let bytes: Vec<u8> = entries.into_iter().flat_map(u32::to_le_bytes).collect();
    let mut out = Rope::from(bytes);
    out.push_zeros(u64::from(layout.table_sectors) * SECTOR - out.len());
    out
}

/// The clusters of the three directories.
fn directories(layout: &Layout) -> [Vec<u8>; 3] {
    let directory = |name, cluster| entry(name, DIRECTORY, cluster, 0);
    [
        [
            entry(LABEL, VOLUME_ID, 0, 0),
            directory(b"EFI        ", EFI),
        ]
        .concat(),
        [
            directory(b".          ", EFI),
            // The root directory, by the number that stands for it here.
            directory(b"..         ", 0),
            directory(b"BOOT       ", BOOT),
        ]
        .concat(),
        [
            directory(b".          ", BOOT),
            directory(b"..         ", EFI),
            entry(b"BOOTX64 EFI", ARCHIVE, FILE, layout.file_len),
        ]
        .concat(),
    ]
}

fn entry(name: &[u8; 11], attributes: u8, cluster: u32, len: u32) -> Vec<u8> {
    let [low, more, high, highest] = cluster.to_le_bytes();
    let date = DATE.to_le_bytes();
    let parts: [&[u8]; 9] = [
        name,
        &[attributes, 0, 0, 0, 0], // created at 0:00
        &date,
        &date,
        &[high, highest],
        &[0, 0],
        &date,
        &[low, more],
        &len.to_le_bytes(),
    ];
    parts.concat()
}
