//! The release of a kernel from its x86 boot header (Linux
//! `Documentation/arch/x86/boot.rst`).

use crate::pe::u16_at;

const MAGIC_OFFSET: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// `kernel_version`, relative to 0x200.
const VERSION_POINTER: usize = 0x20e;
const BASE: usize = 0x200;
const MAX_RELEASE_LEN: usize = 64;

/// Bytes are not a bzImage that says its release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kernel is no x86 bzImage that names its release")]
pub struct ParseKernelReleaseError;

/// The release as `uname -r` prints it: the first word of the version string.
pub fn parse_kernel_release(kernel: &[u8]) -> Result<String, ParseKernelReleaseError> {
    let release = || {
        if kernel.get(MAGIC_OFFSET..)?.get(..MAGIC.len())? != MAGIC {
            return None;
        }
        let start = BASE + usize::from(u16_at(kernel, VERSION_POINTER)?);
        let text = kernel.get(start..)?;
        let end = text
            .iter()
            .take(MAX_RELEASE_LEN)
            .position(|byte| matches!(byte, b' ' | 0))?;
        let word = std::str::from_utf8(text.get(..end)?).ok()?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte);
        (!word.is_empty() && word.bytes().all(plain)).then(|| word.to_owned())
    };
    release().ok_or(ParseKernelReleaseError)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A boot header with `text` at `at` and a pointer to it.
    pub(crate) fn header(pointer: u16, text: &[u8]) -> Vec<u8> {
        let mut kernel = vec![0; BASE + usize::from(pointer)];
        kernel.resize(kernel.len().max(0x300), 0);
        kernel[MAGIC_OFFSET..MAGIC_OFFSET + 4].copy_from_slice(MAGIC);
        kernel[VERSION_POINTER..VERSION_POINTER + 2].copy_from_slice(&pointer.to_le_bytes());
        let start = BASE + usize::from(pointer);
        kernel.truncate(start);
        kernel.extend_from_slice(text);
        kernel
    }

    #[test]
    fn the_first_word_is_the_release() {
        let kernel = header(0x400, b"6.12.1+deb13-cloud-amd64 (x@y) #1\0");
        assert_eq!(
            parse_kernel_release(&kernel).unwrap(),
            "6.12.1+deb13-cloud-amd64"
        );
    }

    #[test]
    fn anything_else_is_an_error() {
        let mut wrong_magic = header(0x400, b"6.12 x\0");
        wrong_magic[MAGIC_OFFSET] = 0;
        let table = [
            Vec::new(),
            wrong_magic,
            header(0x400, b""),
            header(0x400, b" x\0"),
            header(0x400, b"../../etc \0"),
            header(0x400, &[b'6'; 100]),
        ];
        for kernel in table {
            assert!(parse_kernel_release(&kernel).is_err());
        }
    }
}
