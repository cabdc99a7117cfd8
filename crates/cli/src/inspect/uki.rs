//! EFI executables: unified kernel images.

use anyhow::Result;
use assay_image::authenticode::{ImageSignature, verify_signatures};
use assay_image::bzimage::parse_kernel_release;
use assay_image::pe::{PeImage, PeSection};
use assay_tee::Sha256Digest;
use bytes::Bytes;
use serde::Serialize;

use super::table::{Table, printable};

/// Sections whose content is text that people want to see.
const TEXTS: [(&str, &str); 4] = [
    (".cmdline", "command line"),
    (".osrel", "operating system"),
    (".uname", "kernel release"),
    (".sbat", "SBAT"),
];

/// An EFI executable.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Executable {
    /// Bytes of the file.
    size: usize,
    /// SHA-256 of the file: the kernel's hash of a launch with `-kernel`.
    digest: Sha256Digest,
    /// Whether it is signed for Secure Boot.
    signed: bool,
    /// Who signed it, each verified with the certificate that it brings. Whether
    /// to trust that is for a firmware's `db`.
    signatures: Vec<Signature>,
    sections: Vec<Section>,
    /// Text of the sections that hold text, by name.
    texts: Vec<Text>,
    /// Release of the kernel in `.linux`, as its own header says.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_release: Option<String>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Signature {
    Valid(ImageSignature),
    Invalid { problem: String },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Section {
    name: String,
    /// Bytes of content.
    size: u32,
    /// Where the content starts in the file.
    offset: u32,
    virtual_address: u32,
    /// SHA-256 of the content; absent where the file does not have all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Sha256Digest>,
}

#[derive(Debug, Serialize)]
struct Text {
    section: &'static str,
    text: String,
}

pub(super) fn inspect(bytes: &Bytes) -> Result<Executable> {
    let image = PeImage::parse(bytes)?;
    let content = |name: &str| {
        image
            .section(name)
            .and_then(|section| section.content(bytes))
    };
    let texts = TEXTS.iter().filter_map(|(section, _)| {
        let bytes = content(section)?;
        let text = String::from_utf8_lossy(&bytes);
        Some(Text {
            section,
            text: text.trim_end_matches(['\0', '\n']).to_owned(),
        })
    });
    let kernel = content(".linux");
    let signatures = match verify_signatures(bytes) {
        Ok(signatures) => signatures
            .into_iter()
            .map(|it| it.map_or_else(|error| invalid(&error.into()), Signature::Valid))
            .collect(),
        Err(error) => vec![invalid(&error.into())],
    };
    Ok(Executable {
        size: bytes.len(),
        digest: Sha256Digest::of(bytes),
        signed: image.certificates.is_some(),
        signatures,
        texts: texts.collect(),
        kernel_release: kernel.and_then(|kernel| parse_kernel_release(&kernel).ok()),
        notes: notes(&image, bytes),
        sections: image
            .sections
            .iter()
            .map(|section| Section {
                name: section.name.clone(),
                size: section.virtual_size,
                offset: section.raw_offset,
                virtual_address: section.virtual_address,
                digest: section
                    .content(bytes)
                    .map(|content| Sha256Digest::of(&content)),
            })
            .collect(),
    })
}

fn invalid(error: &anyhow::Error) -> Signature {
    Signature::Invalid {
        problem: format!("{error:#}"),
    }
}

fn notes(image: &PeImage, bytes: &Bytes) -> Vec<String> {
    let mut notes: Vec<String> = image
        .sections
        .iter()
        .filter(|section| section.content(bytes).is_none() && !is_uninitialised(section))
        .map(|section| {
            format!(
                "Section {} of {} bytes at byte {:#x} is not all in the file.",
                section.name, section.virtual_size, section.raw_offset
            )
        })
        .collect();
    let mut note = |condition: bool, text: &str| {
        if condition {
            notes.push(text.to_owned());
        }
    };
    let has = |name: &str| image.section(name).is_some();
    note(
        !has(".linux"),
        "It has no .linux section, so it is no unified kernel image.",
    );
    note(
        has(".linux") && !has(".cmdline"),
        "It has no .cmdline section, so the host chooses the kernel's command line.",
    );
    note(
        has(".linux") && !has(".initrd"),
        "It has no .initrd section, so the host may supply one.",
    );
    note(
        has(".osrel"),
        "With .osrel systemd-stub adds archives of its own to the initrd, and PCR 9 cannot be \
         predicted.",
    );
    notes
}

/// Whether the section is memory only, as `.bss` is.
fn is_uninitialised(section: &PeSection) -> bool {
    section.raw_size == 0 || section.virtual_size > section.raw_size
}

impl Executable {
    pub(super) fn to_text(&self) -> Table {
        let mut table = Table::default();
        let is_uki = self.sections.iter().any(|section| section.name == ".linux");
        table.heading(if is_uki {
            "unified kernel image"
        } else {
            "EFI executable"
        });
        table.row("size", format!("{} bytes", self.size));
        table.row("digest", self.digest);
        if !self.signed {
            table.row("signed", "no");
        }
        for signature in &self.signatures {
            match signature {
                Signature::Valid(ImageSignature {
                    subject,
                    certificate,
                    key_bits,
                }) => {
                    table.row("signed by", printable(subject));
                    table.row("certificate digest", certificate);
                    table.row("key", format!("RSA, {key_bits} bits"));
                }
                Signature::Invalid { problem } => {
                    table.row("signature not valid", printable(problem));
                }
            }
        }
        table.maybe("kernel's own release", self.kernel_release.as_ref());
        table.heading("sections");
        for section in &self.sections {
            let digest = section.digest.map_or_else(
                || "(not in the file)".to_owned(),
                |digest| digest.to_string(),
            );
            table.row(
                &section.name,
                format!(
                    "{:>10} bytes at {:#010x}  {digest}",
                    section.size, section.offset
                ),
            );
        }
        for Text { section, text } in &self.texts {
            let title = TEXTS
                .iter()
                .find_map(|(name, title)| (name == section).then_some(*title));
            table.heading(format!("{} ({section})", title.unwrap_or_default()));
            let lines: Vec<String> = text.lines().map(printable).collect();
            table.sentences(&lines);
        }
        if !self.notes.is_empty() {
            table.heading("notes");
            table.sentences(&self.notes);
        }
        table
    }
}
