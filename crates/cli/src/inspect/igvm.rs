//! IGVM files.

use anyhow::Result;
use assay_measure::igvm::{id_block_digest, qemu_refuses};
use assay_tee::igvm::layout::HeaderType;
use assay_tee::igvm::{
    Architecture, Directive, FormatVersion, IgvmFile, Initialization, PageData, PageDataType,
    PlatformType, VpState, parse_igvm,
};
use assay_tee::vmsa::KVM_VMSA_GPA;
use assay_tee::{LaunchDigest, Sha256Digest};
use serde::Serialize;

use super::table::{Table, printable};

/// An IGVM file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct File {
    /// Bytes of the file.
    size: usize,
    /// SHA-256 of the file.
    digest: Sha256Digest,
    version: u32,
    architecture: &'static str,
    /// CRC-32 of the headers, which is right.
    checksum: String,
    platforms: Vec<Platform>,
    /// In file order.
    initialization: Vec<Header>,
    /// In file order; pages of the same kind that follow each other are one.
    directives: Vec<Header>,
    /// Headers of unknown types that loaders may ignore.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    optional: Vec<Header>,
    /// The launch digest that the file's ID block demands.
    #[serde(skip_serializing_if = "Option::is_none")]
    id_block_digest: Option<LaunchDigest>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Platform {
    name: String,
    /// The bit that stands for it in headers.
    mask: String,
    highest_vtl: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_gpa_boundary: Option<String>,
}

/// A variable header, or pages that follow each other.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    #[serde(rename = "type")]
    kind: String,
    /// Platforms that it is for; absent where it is for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    platforms: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpa: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// What else it says, in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    says: String,
}

pub(super) fn inspect(bytes: &[u8]) -> Result<File> {
    let file = parse_igvm(bytes)?;
    let names = Names(&file);
    Ok(File {
        size: bytes.len(),
        digest: Sha256Digest::of(bytes),
        version: match file.version {
            FormatVersion::V1 => 1,
            FormatVersion::V2 { .. } => 2,
        },
        architecture: match file.version.architecture() {
            Architecture::X64 => "x86-64",
            Architecture::Aarch64 => "AArch64",
        },
        checksum: format!("{:#010x}", file.checksum),
        platforms: file
            .platforms
            .iter()
            .map(|platform| Platform {
                name: platform.platform_type.to_string(),
                mask: format!("{:#x}", platform.compatibility_mask),
                highest_vtl: platform.highest_vtl,
                shared_gpa_boundary: (platform.shared_gpa_boundary != 0)
                    .then(|| format!("{:#x}", platform.shared_gpa_boundary)),
            })
            .collect(),
        initialization: file
            .initialization
            .iter()
            .map(|header| names.initialization(header))
            .collect(),
        directives: directives(&file, &names),
        optional: file
            .optional
            .iter()
            .map(|header| Header {
                bytes: Some(header.data.len() as u64),
                ..Header::new(header.header_type)
            })
            .collect(),
        id_block_digest: id_block_digest(&file),
        notes: notes(&file),
    })
}

impl Header {
    fn new(header_type: HeaderType) -> Self {
        Self {
            kind: header_type.to_string(),
            platforms: None,
            gpa: None,
            bytes: None,
            says: String::new(),
        }
    }

    fn at(self, gpa: u64, bytes: u64) -> Self {
        Self {
            gpa: Some(format!("{gpa:#x}")),
            bytes: Some(bytes),
            ..self
        }
    }

    fn saying(self, says: impl Into<String>) -> Self {
        Self {
            says: says.into(),
            ..self
        }
    }
}

/// The names of the file's platforms.
struct Names<'a>(&'a IgvmFile<'a>);

impl Names<'_> {
    fn of(&self, mask: u32) -> Vec<String> {
        self.0
            .platforms
            .iter()
            .filter(|platform| platform.compatibility_mask & mask != 0)
            .map(|platform| platform.platform_type.to_string())
            .collect()
    }

    fn initialization(&self, header: &Initialization<'_>) -> Header {
        let says = match header {
            Initialization::GuestPolicy(policy) => format!("policy {:#x}", policy.policy),
            Initialization::CcaPolicy(policy) => {
                format!("hash algorithm {}", policy.hash_algorithm)
            }
            Initialization::RelocatableRegion(region) => format!(
                "{:#x} bytes at {:#x} may move to {:#x} to {:#x}",
                region.relocation_region_size,
                region.relocation_region_gpa,
                region.minimum_relocation_gpa,
                region.maximum_relocation_gpa
            ),
            Initialization::PageTableRelocation(tables) => {
                format!("{:#x} bytes at {:#x}", tables.size, tables.gpa)
            }
            Initialization::CorimDocument(data) | Initialization::CorimSignature(data) => {
                format!("{} bytes of CBOR", data.data.len())
            }
            Initialization::VersionString(text) => printable(text),
        };
        Header {
            platforms: header.compatibility_mask().map(|mask| self.of(mask)),
            ..Header::new(header.header_type()).saying(says)
        }
    }

    fn directive(&self, directive: &Directive<'_>) -> Header {
        let header = Header {
            platforms: directive.compatibility_mask().map(|mask| self.of(mask)),
            ..Header::new(directive.header_type())
        };
        match directive {
            Directive::ParameterArea(area) => Header {
                bytes: Some(area.number_of_bytes),
                ..header
            }
            .saying(format!("area {}", area.index)),
            Directive::Parameter(parameter) => header.saying(format!(
                "area {} at byte {:#x}",
                parameter.area, parameter.byte_offset
            )),
            Directive::ParameterInsert(insert) => header
                .at(insert.gpa, insert.number_of_bytes)
                .saying(format!("area {}", insert.area)),
            Directive::PageData(page) => header.at(page.gpa, page.length()).saying(kind(page)),
            Directive::VpContext(context) => header.saying(format!(
                "virtual CPU {}: {}",
                context.vp_index,
                state(&context.state)
            )),
            Directive::RequiredMemory(memory) => {
                header.at(memory.gpa, memory.number_of_bytes.into())
            }
            Directive::ErrorRange(range) => {
                header.at(range.gpa.get(), range.size_bytes.get().into())
            }
            Directive::SnpIdBlock(block) => header.saying(format!(
                "family {}, image {}, guest SVN {}, {}",
                hex::encode(block.family_id),
                hex::encode(block.image_id),
                block.guest_svn,
                if block.author_key_enabled == 0 {
                    "no author key"
                } else {
                    "with an author key"
                }
            )),
            Directive::VbsMeasurement(measurement) => {
                header.saying(format!("security version {}", measurement.security_version))
            }
        }
    }
}

/// The directives, pages of one kind that follow each other as one.
fn directives(file: &IgvmFile<'_>, names: &Names<'_>) -> Vec<Header> {
    let mut headers = Vec::new();
    let mut run: Option<(PageData<'_>, u64)> = None;
    let close = |headers: &mut Vec<Header>, run: &mut Option<(PageData<'_>, u64)>| {
        if let Some((first, bytes)) = run.take() {
            headers.push(Header {
                bytes: Some(bytes),
                ..names.directive(&Directive::PageData(first))
            });
        }
    };
    for directive in &file.directives {
        let Directive::PageData(page) = directive else {
            close(&mut headers, &mut run);
            headers.push(names.directive(directive));
            continue;
        };
        match &mut run {
            Some((first, bytes))
                if kind(first) == kind(page)
                    && first.compatibility_mask == page.compatibility_mask
                    && first.gpa.checked_add(*bytes) == Some(page.gpa) =>
            {
                *bytes += page.length();
            }
            _ => {
                close(&mut headers, &mut run);
                run = Some((*page, page.length()));
            }
        }
    }
    close(&mut headers, &mut run);
    headers
}

fn kind(page: &PageData<'_>) -> String {
    let mut words = vec![match page.data_type {
        PageDataType::Normal => "normal",
        PageDataType::Secrets => "secrets",
        PageDataType::CpuidData => "CPUID",
        PageDataType::CpuidXf => "CPUID leaf 0xd",
    }];
    for (flag, word) in [
        (page.contents.is_none(), "zeros"),
        (page.flags.is_2mb_page, "2 MiB"),
        (page.flags.unmeasured, "unmeasured"),
        (page.flags.shared, "shared"),
    ] {
        if flag {
            words.push(word);
        }
    }
    words.join(", ")
}

fn state(state: &VpState<'_>) -> String {
    match state {
        VpState::Vmsa(vmsa) => format!(
            "starts at {:#x}, CR0 {:#x}, EFER {:#x}, SEV_FEATURES {:#x}",
            vmsa.cs.base.get().wrapping_add(vmsa.rip.get()),
            vmsa.cr0,
            vmsa.efer,
            vmsa.sev_features
        ),
        VpState::Native(context) => format!(
            "starts at {:#x}, CR0 {:#x}, EFER {:#x}",
            context.rip, context.cr0, context.efer
        ),
        VpState::Vbs(registers) => format!("{} registers", registers.len()),
        VpState::Cca(_) => "registers of a realm".to_owned(),
    }
}

/// What loaders would trip over, or take for different things.
fn notes(file: &IgvmFile<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    let refused: Vec<_> = qemu_refuses(file)
        .into_iter()
        .map(|header| header.to_string())
        .collect();
    if !refused.is_empty() {
        notes.push(format!("QEMU refuses files with {}.", refused.join(", ")));
    }
    for platform in &file.platforms {
        if let Err(error) = file.check_overlaps(platform.compatibility_mask) {
            notes.push(format!("For {}: {error}.", platform.platform_type));
        }
    }
    let Some(snp) = file.platform(PlatformType::SevSnp) else {
        notes.push("It is not for SEV-SNP, so it has no launch digest there.".to_owned());
        return notes;
    };
    let mut save_area = None;
    for (position, directive) in file.directives_for(snp.compatibility_mask).enumerate() {
        match directive {
            Directive::VpContext(context) => {
                if context.gpa != KVM_VMSA_GPA {
                    notes.push(format!(
                        "The save area of virtual CPU {} is at {:#x}, and QEMU refuses all but \
                         {KVM_VMSA_GPA:#x}.",
                        context.vp_index, context.gpa
                    ));
                }
                save_area.get_or_insert(position);
            }
            Directive::PageData(_) | Directive::ParameterInsert(_) if save_area.is_some() => {
                notes.push(
                    "Pages follow a save area, and QEMU measures save areas last: loaders that \
                     keep the file's order have another launch digest."
                        .to_owned(),
                );
                break;
            }
            _ => {}
        }
    }
    if save_area.is_none() {
        notes.push(
            "It has no state of a virtual CPU for SEV-SNP, so the launch digest depends on the \
             CPU model as well."
                .to_owned(),
        );
    }
    notes
}

impl File {
    pub(super) fn to_text(&self) -> Table {
        let mut table = Table::default();
        table.heading(format!("IGVM file, version {}", self.version));
        table.row("size", format!("{} bytes", self.size));
        table.row("digest", self.digest);
        table.row("architecture", self.architecture);
        table.row("checksum", &self.checksum);
        table.maybe("ID block demands", self.id_block_digest);
        table.heading("platforms");
        for platform in &self.platforms {
            let mut says = vec![format!("mask {}", platform.mask)];
            if platform.highest_vtl != 0 {
                says.push(format!("VTL {}", platform.highest_vtl));
            }
            if let Some(boundary) = &platform.shared_gpa_boundary {
                says.push(format!("shared above {boundary}"));
            }
            table.row(&platform.name, says.join(", "));
        }
        for (title, headers) in [
            ("initialization", &self.initialization),
            ("directives, in the order of the file", &self.directives),
            ("headers that loaders may ignore", &self.optional),
        ] {
            if headers.is_empty() {
                continue;
            }
            table.heading(title);
            for header in headers {
                table.row(&header.kind, header.to_text());
            }
        }
        if !self.notes.is_empty() {
            table.heading("notes");
            table.sentences(&self.notes);
        }
        table
    }
}

impl Header {
    fn to_text(&self) -> String {
        let mut parts = Vec::new();
        match (&self.gpa, self.bytes) {
            (Some(gpa), Some(bytes)) => parts.push(format!("{gpa} of {bytes:#x} bytes")),
            (None, Some(bytes)) => parts.push(format!("{bytes:#x} bytes")),
            _ => {}
        }
        if !self.says.is_empty() {
            parts.push(self.says.clone());
        }
        if let Some(platforms) = &self.platforms {
            parts.push(format!("[{}]", platforms.join(", ")));
        }
        parts.join("  ")
    }
}
