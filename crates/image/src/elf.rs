//! Sections of ELF64 files for x86-64 (System V ABI, chapter 4).

/// The content of the first section called `name`; `None` where there is none, or
/// where the bytes are no such file.
pub(crate) fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    const MACHINE_X86_64: u16 = 62;
    if !elf.starts_with(b"\x7fELF\x02\x01") || u16_at(elf, 18)? != MACHINE_X86_64 {
        return None;
    }
    let table = usize_at(elf, 0x28)?;
    let entry_len = usize::from(u16_at(elf, 0x3a)?);
    let count = u16_at(elf, 0x3c)?;
    let header = |index: u16| {
        let start = table.checked_add(entry_len.checked_mul(usize::from(index))?)?;
        elf.get(start..start.checked_add(64)?)
    };
    let content = |header: &[u8]| {
        let start = usize_at(header, 0x18)?;
        elf.get(start..start.checked_add(usize_at(header, 0x20)?)?)
    };
    let names = content(header(u16_at(elf, 0x3e)?)?)?;
    let is_wanted = |header: &[u8]| {
        let at = header.first_chunk().map(|at| u32::from_le_bytes(*at));
        let rest = at
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| names.get(at..));
        rest.and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    (0..count)
        .filter_map(header)
        .find(|header| is_wanted(header))
        .and_then(content)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_le_bytes(*field))
}

fn usize_at(bytes: &[u8], offset: usize) -> Option<usize> {
    let field = bytes.get(offset..)?.first_chunk()?;
    usize::try_from(u64::from_le_bytes(*field)).ok()
}

/// A file with these sections and nothing else.
#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // small numbers
pub(crate) fn elf_file(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut names = vec![0];
    let mut headers = vec![(0, 0, 0)];
    let mut content: Vec<u8> = Vec::new();
    for (name, bytes) in sections {
        headers.push((names.len(), 64 + content.len(), bytes.len()));
        names.extend(name.as_bytes());
        names.push(0);
        content.extend(*bytes);
    }
    let name = names.len();
    names.extend(b".shstrtab\0");
    headers.push((name, 64 + content.len(), names.len()));

    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([1, 0, 62, 0, 1, 0, 0, 0]);
    elf.resize(0x28, 0);
    elf.extend(((64 + content.len() + names.len()) as u64).to_le_bytes());
    elf.resize(0x3a, 0);
    elf.extend([64, 0, headers.len() as u8, 0, headers.len() as u8 - 1, 0]);
    elf.extend(content);
    elf.extend(names);
    for (name, offset, len) in headers {
        let start = elf.len();
        elf.extend((name as u32).to_le_bytes());
        elf.resize(start + 0x18, 0);
        elf.extend((offset as u64).to_le_bytes());
        elf.extend((len as u64).to_le_bytes());
        elf.resize(start + 64, 0);
    }
    elf
}
