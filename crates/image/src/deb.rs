//! Debian binary packages (deb(5)): what is in them, without installing them.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;

const MAGIC: &[u8] = b"!<arch>\n";
const HEADER_LEN: usize = 60;
/// Most bytes that a member may have once uncompressed.
const MAX_LEN: u64 = 8 << 30;
/// Memory that an xz stream may ask for, in KiB: four times what `xz -9` needs.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// A package that was read.
#[derive(Debug, Clone)]
pub struct DebPackage {
    /// Its control file.
    pub control: String,
    /// Its files, as a tar archive.
    pub data: Bytes,
}

/// Bytes are no Debian binary package.
#[derive(Debug, thiserror::Error)]
pub enum ParseDebError {
    /// Not an archive.
    #[error("not a Debian package: {problem} at byte {offset}")]
    Archive {
        /// What is wrong.
        problem: &'static str,
        /// Where.
        offset: usize,
    },
    /// Another version of the format.
    #[error("the package has format {0:?}, expected 2.x")]
    Format(String),
    /// A member is not there.
    #[error("the package has no member {0}")]
    Missing(&'static str),
    /// A member is compressed in a way that is not read.
    #[error("member {0} is compressed in a way that is not read (xz, zst and gz are)")]
    Compression(String),
    /// A member cannot be uncompressed.
    #[error("cannot uncompress {member}")]
    Uncompress {
        /// Its name.
        member: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A member is absurdly large.
    #[error("{0} has more than {MAX_LEN} bytes")]
    TooLarge(String),
    /// The control archive holds no control file.
    #[error("cannot find the control file")]
    Control,
}

/// Reads a package.
pub fn parse_deb(bytes: &Bytes) -> Result<DebPackage, ParseDebError> {
    let members = members(bytes)?;
    let find = |prefix: &'static str| {
        members
            .iter()
            .find(|(name, _)| name.starts_with(prefix))
            .ok_or(ParseDebError::Missing(prefix))
    };
    let (_, format) = find("debian-binary")?;
    if !format.starts_with(b"2.") {
        let format = String::from_utf8_lossy(format).trim().to_owned();
        return Err(ParseDebError::Format(format));
    }
    let (name, control) = find("control.tar")?;
    let control = control_file(&uncompress(name, control)?).ok_or(ParseDebError::Control)?;
    let (name, data) = find("data.tar")?;
    Ok(DebPackage {
        control,
        data: uncompress(name, data)?,
    })
}

/// Name and content of the members of an ar archive in the common format.
fn members(bytes: &Bytes) -> Result<Vec<(String, Bytes)>, ParseDebError> {
    let error = |problem, offset| ParseDebError::Archive { problem, offset };
    if !bytes.starts_with(MAGIC) {
        return Err(error("no ar archive", 0));
    }
    let mut found = Vec::new();
    let mut offset = MAGIC.len();
    while offset < bytes.len() {
        let header = bytes
            .get(offset..offset.saturating_add(HEADER_LEN))
            .filter(|header| header.ends_with(b"`\n"))
            .ok_or_else(|| error("no member header", offset))?;
        let text = |range: std::ops::Range<usize>| {
            let field = header.get(range).unwrap_or_default();
            std::str::from_utf8(field).map(str::trim_end)
        };
        let name = text(0..16).map_err(|_| error("a name is no text", offset))?;
        let len: usize = text(48..58)
            .ok()
            .and_then(|len| len.parse().ok())
            .ok_or_else(|| error("a length is no number", offset))?;
        let start = offset + HEADER_LEN;
        let end = start
            .checked_add(len)
            .filter(|end| *end <= bytes.len())
            .ok_or_else(|| error("a member ends after the file", offset))?;
        let name = name.trim_end_matches('/').to_owned();
        found.push((name, bytes.slice(start..end)));
        offset = end.next_multiple_of(2);
    }
    Ok(found)
}

fn uncompress(member: &str, stored: &Bytes) -> Result<Bytes, ParseDebError> {
    let error = |source| ParseDebError::Uncompress {
        member: member.to_owned(),
        source,
    };
    let plain = match member.rsplit('.').next() {
        Some("tar") => return Ok(stored.clone()),
        Some("xz") => {
            let reader = XzReader::new_mem_limit(stored.as_ref(), true, XZ_MEMORY_KIB);
            read(reader)
        }
        Some("gz") => read(MultiGzDecoder::new(stored.as_ref())),
        Some("zst") => read(zstd::stream::read::Decoder::new(stored.as_ref()).map_err(error)?),
        _ => return Err(ParseDebError::Compression(member.to_owned())),
    }
    .map_err(error)?;
    if plain.len() as u64 > MAX_LEN {
        return Err(ParseDebError::TooLarge(member.to_owned()));
    }
    Ok(plain.into())
}

fn read(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    reader.take(MAX_LEN + 1).read_to_end(&mut plain)?;
    Ok(plain)
}

fn control_file(tar: &Bytes) -> Option<String> {
    let mut archive = tar::Archive::new(tar.as_ref());
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        let path = entry.path_bytes();
        if path.strip_prefix(b"./").unwrap_or(&path) == b"control" {
            let mut text = String::new();
            entry.read_to_string(&mut text).ok()?;
            return Some(text);
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::tarball::{Owner, TarBuilder};

    fn archive(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (name, content) in members {
            let len = content.len();
            writeln!(out, "{name:<16}0           0     0     100644  {len:<10}`").unwrap();
            out.extend(content);
            out.resize(out.len().next_multiple_of(2), b'\n');
        }
        out
    }

    fn tar(path: &str, content: &str) -> Vec<u8> {
        let mut tar = TarBuilder::new();
        tar.file(path, 0o644, Owner::ROOT, content.as_bytes().to_vec());
        tar.finish().to_bytes().to_vec()
    }

    const CONTROL: &str = "Package: ovmf\nVersion: 1-2\nArchitecture: all\n";

    fn good() -> Vec<(&'static str, Vec<u8>)> {
        let control = tar("./control", CONTROL);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&control).unwrap();
        let data = tar("./usr/x", "odd");
        vec![
            ("debian-binary", b"2.0\n".to_vec()),
            ("control.tar.gz", gzip.finish().unwrap()),
            (
                "data.tar.zst",
                zstd::encode_all(data.as_slice(), 1).unwrap(),
            ),
        ]
    }

    #[test]
    fn a_package_has_control_and_files() {
        let package = parse_deb(&archive(&good()).into()).unwrap();
        assert_eq!(package.control, CONTROL);
        assert_eq!(package.data, tar("./usr/x", "odd"));
    }

    #[test]
    fn what_is_no_package_is_named() {
        let refused = |members: &[(&'static str, Vec<u8>)]| {
            let error = parse_deb(&archive(members).into()).unwrap_err();
            error.to_string()
        };
        let mut other = good();
        other[0].1 = b"3.0\n".to_vec();
        assert_eq!(
            refused(&other),
            "the package has format \"3.0\", expected 2.x"
        );
        let mut other = good();
        other.pop();
        assert_eq!(refused(&other), "the package has no member data.tar");
        let mut other = good();
        other[2].0 = "data.tar.lzma";
        assert!(refused(&other).contains("data.tar.lzma is compressed"));
        let mut other = good();
        other[1].1 = zstd::encode_all(tar("./x", "").as_slice(), 1).unwrap();
        other[1].0 = "control.tar.zst";
        assert_eq!(refused(&other), "cannot find the control file");
        let whole = archive(&good());
        for cut in 0..whole.len() - 1 {
            assert!(parse_deb(&Bytes::copy_from_slice(&whole[..cut])).is_err());
        }
    }
}
