//! OVMF images.

use anyhow::Result;
use assay_image::kernel_loader::{KernelLoader, read_kernel_loader};
use assay_tee::Sha256Digest;
use assay_tee::ovmf::{
    OvmfMetadata, ParseOvmfError, SectionKind, entry_name, parse_ovmf, parse_table,
};
use serde::Serialize;

use super::table::Table;

/// Bytes at the end of the image that the first instructions are in.
const RESET_VECTOR_LEN: usize = 16;

/// An OVMF image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Firmware {
    /// Bytes of the file.
    size: usize,
    /// SHA-256 of the file: its launch digest with plain SEV.
    digest: Sha256Digest,
    /// The last 16 bytes, hexadecimal: where every processor starts.
    reset_vector: String,
    /// Entries of the GUIDed table, as they lie in the file.
    table: Vec<Entry>,
    /// Absent where they cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    guid: String,
    /// edk2's name, where one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'static str>,
    /// Hexadecimal.
    data: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    base_gpa: String,
    /// Where application processors start.
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_eip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hashes_table: Option<Area>,
    /// In file order, which is the order of measurement.
    sections: Vec<Section>,
}

#[derive(Debug, Serialize)]
struct Area {
    gpa: String,
    size: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Section {
    #[serde(flatten)]
    area: Area,
    kind: u32,
    name: String,
}

pub(super) fn inspect(bytes: &[u8]) -> Result<Firmware> {
    let entries = parse_table(bytes)?;
    let metadata = parse_ovmf(bytes);
    let reset_vector = bytes.last_chunk::<RESET_VECTOR_LEN>();
    Ok(Firmware {
        size: bytes.len(),
        digest: Sha256Digest::of(bytes),
        reset_vector: reset_vector.map(hex::encode).unwrap_or_default(),
        table: entries
            .iter()
            .rev()
            .map(|(guid, data)| Entry {
                guid: guid.to_string(),
                name: entry_name(*guid),
                data: hex::encode(data),
            })
            .collect(),
        notes: notes(bytes, &metadata),
        metadata: metadata.ok().map(|metadata| describe(&metadata)),
    })
}

fn describe(metadata: &OvmfMetadata) -> Metadata {
    let area = |gpa: u32, size| Area {
        gpa: format!("{gpa:#x}"),
        size,
    };
    Metadata {
        base_gpa: format!("{:#x}", metadata.base_gpa),
        reset_eip: metadata.reset_eip.map(|eip| format!("{eip:#x}")),
        hashes_table: metadata
            .hashes_table
            .map(|table| area(table.gpa, table.size)),
        sections: metadata
            .sections
            .iter()
            .map(|section| Section {
                area: area(section.gpa, section.size),
                kind: section.kind.into(),
                name: section_name(section.kind),
            })
            .collect(),
    }
}

fn section_name(kind: SectionKind) -> String {
    match kind {
        SectionKind::SecMem => "SEC_MEM".to_owned(),
        SectionKind::SnpSecrets => "SNP_SECRETS".to_owned(),
        SectionKind::Cpuid => "CPUID".to_owned(),
        SectionKind::SvsmCaa => "SVSM_CAA".to_owned(),
        SectionKind::KernelHashes => "KERNEL_HASHES".to_owned(),
        SectionKind::Unknown(kind) => format!("unknown type {kind:#x}"),
    }
}

/// What the firmware lacks for a measured boot, and what follows.
fn notes(bytes: &[u8], metadata: &Result<OvmfMetadata, ParseOvmfError>) -> Vec<String> {
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) => return vec![format!("Its metadata cannot be used: {error}.")],
    };
    let mut notes = Vec::new();
    let mut note = |condition: bool, text: &str| {
        if condition {
            notes.push(text.to_owned());
        }
    };
    // A section of size zero is in the table and not in memory.
    let has = |kind| {
        metadata
            .section(kind)
            .is_some_and(|section| section.size > 0)
    };
    let snp = !metadata.sections.is_empty();
    note(
        !snp,
        "It has no SEV metadata, so it cannot start an SEV-SNP guest.",
    );
    note(
        snp && !has(SectionKind::SnpSecrets),
        "It has no SNP_SECRETS section, so the guest cannot ask for reports.",
    );
    note(
        snp && !has(SectionKind::Cpuid),
        "It has no CPUID section, so the guest has no verified CPUID values.",
    );
    note(
        snp && !has(SectionKind::SvsmCaa),
        "It has no SVSM_CAA section, so it cannot run under an SVSM.",
    );
    note(
        snp && !has(SectionKind::KernelHashes),
        "It has no KERNEL_HASHES section, so a kernel given with -kernel is not measured; use the \
         AmdSev build of OVMF.",
    );
    note(
        metadata.hashes_table.is_none(),
        "It names no area for the hashes table, so it never verifies a kernel; use the AmdSev \
         build of OVMF.",
    );
    if metadata.hashes_table.is_some() && has(SectionKind::KernelHashes) {
        let loader = read_kernel_loader(bytes);
        note(
            matches!(
                loader,
                Ok(KernelLoader {
                    verifies_hashes: false,
                    ..
                })
            ),
            "It has a place for kernel hashes and never compares a kernel with them, so it boots \
             anything; use the AmdSev build of OVMF.",
        );
        note(
            loader.is_err(),
            "It has a place for kernel hashes. Whether it verifies them cannot be told from its \
             drivers: of edk2's builds only AmdSev does.",
        );
    }
    note(
        metadata.reset_eip.is_none(),
        "It names no start address for application processors, so guests can have one virtual CPU \
         only.",
    );
    notes
}

impl Firmware {
    pub(super) fn to_text(&self) -> Table {
        let mut table = Table::default();
        table.heading("OVMF image");
        table.row("size", format!("{} bytes", self.size));
        table.row("digest", self.digest);
        table.row("reset vector", &self.reset_vector);
        if let Some(metadata) = &self.metadata {
            let none = || "none".to_owned();
            table.row("loaded at", &metadata.base_gpa);
            table.row(
                "SEV-ES reset EIP",
                metadata.reset_eip.clone().unwrap_or_else(none),
            );
            table.row(
                "hashes table",
                metadata
                    .hashes_table
                    .as_ref()
                    .map_or_else(none, Area::to_text),
            );
            table.heading("SEV metadata sections, in order of measurement");
            for section in &metadata.sections {
                table.row(&section.name, section.area.to_text());
            }
        }
        table.heading("GUIDed table");
        for entry in &self.table {
            table.row(
                entry.name.unwrap_or("unknown"),
                format!("{}  {}", entry.guid, entry.data),
            );
        }
        if !self.notes.is_empty() {
            table.heading("notes");
            table.sentences(&self.notes);
        }
        table
    }
}

impl Area {
    fn to_text(&self) -> String {
        format!("{} of {:#x} bytes", self.gpa, self.size)
    }
}
