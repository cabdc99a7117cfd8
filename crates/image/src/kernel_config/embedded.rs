//! The configuration that a kernel carries (`CONFIG_IKCONFIG`; Linux
//! `kernel/configs.c`), inside the compressed part of a bzImage
//! (`Documentation/arch/x86/boot.rst`).

use std::io::{self, Read};

use flate2::read::GzDecoder;
use lzma_rust2::XzReader;
use memchr::memmem;

use crate::pe::{u16_at, u32_at};

const MAGIC_OFFSET: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
const SETUP_SECTORS: usize = 0x1f1;
const SECTOR: usize = 512;
const VERSION: usize = 0x206;
/// The first version of the boot protocol that says where the payload is.
const WITH_PAYLOAD: u16 = 0x208;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// What stands before and after the configuration, which is a gzip file.
const START: &[u8] = b"IKCFG_ST";
const END: &[u8] = b"IKCFG_ED";

/// Largest kernel once uncompressed, and largest configuration.
const MAX_LEN: u64 = 512 << 20;
/// Memory that an xz stream may ask for, in KiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// The text of the configuration. `None` where the kernel carries none, or is
/// compressed in a way that is not read (gzip, xz and zstd are).
pub fn embedded_config(kernel: &[u8]) -> Option<String> {
    let image = uncompress(payload(kernel)?)?;
    let start = memmem::find(&image, START)? + START.len();
    let rest = image.get(start..)?;
    let packed = rest.get(..memmem::find(rest, END)?)?;
    let text = read(GzDecoder::new(packed)).ok()?;
    String::from_utf8(text).ok()
}

fn payload(kernel: &[u8]) -> Option<&[u8]> {
    if kernel.get(MAGIC_OFFSET..)?.get(..MAGIC.len())? != MAGIC
        || u16_at(kernel, VERSION)? < WITH_PAYLOAD
    {
        return None;
    }
    // Zero means four, for kernels of old.
    let sectors = match *kernel.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = usize::try_from(u32_at(kernel, PAYLOAD_OFFSET)?).ok()?;
    let len = usize::try_from(u32_at(kernel, PAYLOAD_LENGTH)?).ok()?;
    let start = ((sectors + 1) * SECTOR).checked_add(offset)?;
    kernel.get(start..start.checked_add(len)?)
}

/// The length of what is uncompressed follows the compressed data, and is no part
/// of it.
fn uncompress(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.starts_with(b"\x1f\x8b") {
        read(GzDecoder::new(payload))
    } else if payload.starts_with(b"\xfd7zXZ\0") {
        read(XzReader::new_mem_limit(payload, false, XZ_MEMORY_KIB))
    } else if payload.starts_with(b"\x28\xb5\x2f\xfd") {
        read(
            zstd::stream::read::Decoder::new(payload)
                .ok()?
                .single_frame(),
        )
    } else {
        return None;
    }
    .ok()
}

fn read(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    reader.take(MAX_LEN).read_to_end(&mut plain)?;
    Ok(plain)
}

/// A bzImage with a configuration in it, compressed with zstd.
#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // small numbers
pub(crate) fn put_config(kernel: &[u8], config: &str) -> Vec<u8> {
    use std::io::Write as _;

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(config.as_bytes()).unwrap();
    let image = [b"text", START, &gzip.finish().unwrap(), END, b"data"].concat();
    let mut payload = zstd::encode_all(image.as_slice(), 1).unwrap();
    payload.extend((image.len() as u32).to_le_bytes());

    let mut kernel = kernel.to_vec();
    kernel.resize(kernel.len().max(0x1000), 0);
    let start = kernel.len();
    kernel[SETUP_SECTORS] = 1;
    kernel[MAGIC_OFFSET..MAGIC_OFFSET + 4].copy_from_slice(MAGIC);
    kernel[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
    let offset = (start - 2 * SECTOR) as u32;
    kernel[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&offset.to_le_bytes());
    let len = payload.len() as u32;
    kernel[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&len.to_le_bytes());
    kernel.extend(payload);
    kernel
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracles::Oracles;

    #[test]
    fn a_configuration_is_found_in_a_kernel() {
        let kernel = put_config(&[], "CONFIG_X=y\n");
        assert_eq!(embedded_config(&kernel).as_deref(), Some("CONFIG_X=y\n"));
    }

    /// Debian's kernel carries no configuration, but is compressed as others are.
    #[test]
    fn a_real_kernel_is_uncompressed() {
        let Some(oracles) = Oracles::find("Debian's kernel") else {
            return;
        };
        let kernel = oracles.kernel();
        let image = uncompress(payload(&kernel).unwrap()).unwrap();
        assert!(memmem::find(&image, b"Linux version ").is_some());
        assert_eq!(embedded_config(&kernel), None);
    }

    #[test]
    fn a_kernel_without_one_has_none() {
        let kernel = put_config(&[], "CONFIG_X=y\n");
        for cut in 0..kernel.len() {
            assert_eq!(embedded_config(&kernel[..cut]), None);
        }
        let mut old = kernel.clone();
        old[VERSION] = 0;
        old[VERSION + 1] = 2;
        assert_eq!(embedded_config(&old), None);
        for at in 0x1000..kernel.len() {
            let mut damaged = kernel.clone();
            damaged[at] ^= 0xff;
            let _ = embedded_config(&damaged);
        }
    }
}
