//! What a kernel module says of itself: `.modinfo` of its ELF file, and whether
//! a signature follows it (Linux `Documentation/admin-guide/module-signing.rst`).

use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use flate2::read::GzDecoder;
use lzma_rust2::XzReader;

#[cfg(test)]
use crate::elf::elf_file;
use crate::elf::section;
use crate::modules::soft::{Soft, is_one_name, plain};

/// Largest module once uncompressed.
const MAX_LEN: u64 = 512 << 20;
/// Memory that an xz stream may ask for, in KiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;
/// What ends a signed module.
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";

/// What a module says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Its name, with underscores.
    pub name: String,
    /// Names of the modules that it cannot be loaded without.
    pub depends: Vec<String>,
    /// What it asks for and can do without.
    pub soft: Soft,
    /// Names that stand for it; patterns of devices are left out.
    pub aliases: Vec<String>,
    /// The kernel that it was built for: the first word of `vermagic`.
    pub release: String,
    /// Whether a signature follows it. Nobody has verified that: the kernel will.
    pub signed: bool,
}

/// Bytes are no module.
#[derive(Debug, thiserror::Error)]
pub enum ParseModuleError {
    /// It cannot be uncompressed.
    #[error("cannot uncompress it")]
    Uncompress(#[source] io::Error),
    /// It is larger than anything that is a module.
    #[error("more than {MAX_LEN} bytes uncompressed")]
    TooLarge,
    /// It is no ELF file for x86-64, or damaged.
    #[error("not an ELF file for x86-64 with a section .modinfo")]
    Elf,
    /// `.modinfo` lacks something.
    #[error(".modinfo does not say {0}")]
    Lacks(&'static str),
}

/// Whether the kernel has to unpack a module of this name before it loads it.
pub fn is_compressed(path: &str) -> bool {
    Path::new(path)
        .extension()
        .is_none_or(|extension| extension != "ko")
}

/// Reads a module as it is stored under `path`, whose ending says how it is
/// compressed.
pub fn parse_module(path: &str, stored: &Bytes) -> Result<ModuleInfo, ParseModuleError> {
    let module = uncompress(path, stored)?;
    let info = section(&module, b".modinfo").ok_or(ParseModuleError::Elf)?;
    let values = |key: &'static str| {
        let entries = info.split(|byte| *byte == 0);
        entries.filter_map(move |entry| {
            let value = entry.strip_prefix(key.as_bytes())?.strip_prefix(b"=")?;
            std::str::from_utf8(value).ok()
        })
    };
    let value = |key| values(key).next();
    let mut soft = Soft::default();
    values("softdep").for_each(|words| soft.add(words));
    values("weakdep").for_each(|words| soft.add_weak(words));
    let name = value("name").ok_or(ParseModuleError::Lacks("its name"))?;
    let magic = value("vermagic").ok_or(ParseModuleError::Lacks("its kernel"))?;
    let depends = value("depends").unwrap_or_default().split(',');
    Ok(ModuleInfo {
        name: plain(name),
        depends: depends.filter(|name| !name.is_empty()).map(plain).collect(),
        soft,
        aliases: values("alias")
            .filter(|alias| is_one_name(alias))
            .map(str::to_owned)
            .collect(),
        release: magic.split(' ').next().unwrap_or_default().to_owned(),
        signed: module.ends_with(SIGNATURE_MARK),
    })
}

fn uncompress(path: &str, stored: &Bytes) -> Result<Bytes, ParseModuleError> {
    let error = ParseModuleError::Uncompress;
    let plain = match path.rsplit('.').next() {
        Some("xz") => read(XzReader::new_mem_limit(
            stored.as_ref(),
            true,
            XZ_MEMORY_KIB,
        )),
        Some("gz") => read(GzDecoder::new(stored.as_ref())),
        Some("zst") => read(zstd::stream::read::Decoder::new(stored.as_ref()).map_err(error)?),
        _ => return Ok(stored.clone()),
    }
    .map_err(error)?;
    if plain.len() as u64 > MAX_LEN {
        return Err(ParseModuleError::TooLarge);
    }
    Ok(plain.into())
}

fn read(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    reader.take(MAX_LEN + 1).read_to_end(&mut plain)?;
    Ok(plain)
}

/// A module as a compiler would leave it, as far as anything here reads it.
#[cfg(test)]
pub(crate) fn module_file(name: &str, depends: &str, release: &str, signed: bool) -> Vec<u8> {
    let info = format!(
        "license=GPL\0depends={depends}\0name={name}\0vermagic={release} SMP mod_unload \0"
    );
    let mut elf = elf_file(&[(".modinfo", info.as_bytes())]);
    if signed {
        elf.extend(b"signature");
        elf.extend(SIGNATURE_MARK);
    }
    elf
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_module_says_its_name_its_needs_and_its_kernel() {
        let plain = module_file("dm-verity", "dm-bufio,dm-mod", "6.12.1", true);
        let expected = ModuleInfo {
            name: "dm_verity".to_owned(),
            depends: vec!["dm_bufio".to_owned(), "dm_mod".to_owned()],
            soft: Soft::default(),
            aliases: Vec::new(),
            release: "6.12.1".to_owned(),
            signed: true,
        };
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let stored = [
            ("a/dm-verity.ko.gz", gzip.finish().unwrap()),
            (
                "a/dm-verity.ko.zst",
                zstd::encode_all(plain.as_slice(), 1).unwrap(),
            ),
            ("a/dm-verity.ko", plain),
        ];
        for (path, bytes) in stored {
            let info = parse_module(path, &bytes.into()).unwrap();
            assert_eq!(info, expected, "{path}");
        }
        let unsigned = module_file("x", "", "6.12.1", false).into();
        let info = parse_module("x.ko", &unsigned).unwrap();
        assert!(!info.signed && info.depends.is_empty());
    }

    #[test]
    fn what_it_can_do_without_is_apart() {
        let info = b"name=x\0vermagic=6.12.1 SMP\0softdep=pre: a-b c post: d\0\
                     alias=pci:v1*\0softdep=post: e\0weakdep=f\0alias=crypto-x\0";
        let module = elf_file(&[(".text", b""), (".modinfo", info)]).into();
        let info = parse_module("x.ko", &module).unwrap();
        assert_eq!(info.soft.before, ["a_b", "c", "f"]);
        assert_eq!(info.soft.after, ["d", "e"]);
        assert_eq!(info.aliases, ["crypto-x"]);
    }

    #[test]
    fn damaged_modules_are_refused() {
        let good = module_file("x", "", "6.12.1", false);
        for cut in 0..good.len() {
            let cut = Bytes::copy_from_slice(&good[..cut]);
            assert!(parse_module("x.ko", &cut).is_err());
        }
        let mut foreign = good.clone();
        foreign[18] = 183;
        assert!(matches!(
            parse_module("x.ko", &foreign.into()),
            Err(ParseModuleError::Elf)
        ));
        assert!(matches!(
            parse_module("x.ko.xz", &good.into()),
            Err(ParseModuleError::Uncompress(_))
        ));
    }
}
