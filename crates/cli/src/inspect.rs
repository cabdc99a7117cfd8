//! `assay inspect`: what a file says about itself, without an opinion on whether
//! it is true.
//!
//! Every kind of file is a module with one function that gives a value to print
//! and its text. A new kind is a module, a variant of [`Kind`] and of
//! [`Inspection`], and a line in [`Kind::detect`].

mod bits;
mod certificate;
mod igvm;
mod ovmf;
mod report;
mod table;
mod uki;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use assay_tee::report::REPORT_LEN;
use bytes::Bytes;
use serde::Serialize;

use crate::stdout;

use table::Table;

/// What a person may type.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File to read
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Kind of the file [default: by its content]
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// OVMF image with its reset vector
    Ovmf,
    /// Unified kernel image, or any EFI executable
    Uki,
    /// IGVM file
    Igvm,
    /// SEV-SNP attestation report
    Report,
    /// AMD certificates: VCEK, VLEK, ASK, ASVK, ARK; PEM or DER
    Certificate,
}

impl Kind {
    fn detect(bytes: &[u8]) -> Option<Self> {
        const FIRMWARE_PAGE: usize = 4096;
        const DER_SEQUENCE_LONG: &[u8] = &[0x30, 0x82];
        const PEM_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
        let contains = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        if bytes.starts_with(b"MZ") {
            Some(Self::Uki)
        } else if bytes.starts_with(&assay_tee::igvm::layout::MAGIC) {
            Some(Self::Igvm)
        } else if bytes.len() == REPORT_LEN {
            Some(Self::Report)
        } else if bytes.starts_with(DER_SEQUENCE_LONG)
            || (str::from_utf8(bytes).is_ok() && contains(PEM_CERTIFICATE))
        {
            Some(Self::Certificate)
        } else if !bytes.is_empty() && bytes.len().is_multiple_of(FIRMWARE_PAGE) {
            // Only the table's footer tells firmware from anything else.
            assay_tee::ovmf::parse_table(bytes).ok().map(|_| Self::Ovmf)
        } else {
            None
        }
    }
}

/// What was found in a file.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
enum Inspection {
    Ovmf(ovmf::Firmware),
    Uki(uki::Executable),
    Igvm(igvm::File),
    Report(Box<report::Fields>),
    Certificate(certificate::Certificates),
}

impl Inspection {
    fn of(kind: Kind, bytes: Vec<u8>) -> Result<Self> {
        Ok(match kind {
            Kind::Ovmf => Self::Ovmf(ovmf::inspect(&bytes)?),
            Kind::Uki => Self::Uki(uki::inspect(&Bytes::from(bytes))?),
            Kind::Igvm => Self::Igvm(igvm::inspect(&bytes)?),
            Kind::Report => Self::Report(Box::new(report::inspect(&bytes)?)),
            Kind::Certificate => Self::Certificate(certificate::inspect(&bytes)?),
        })
    }

    fn to_text(&self) -> Table {
        match self {
            Self::Ovmf(firmware) => firmware.to_text(),
            Self::Uki(executable) => executable.to_text(),
            Self::Igvm(file) => file.to_text(),
            Self::Report(report) => report.to_text(),
            Self::Certificate(certificates) => certificates.to_text(),
        }
    }
}

/// Reads the file and prints what it says.
pub(crate) fn run(args: &Args) -> Result<()> {
    let path = args.file.display();
    let bytes = fs::read(&args.file).with_context(|| format!("cannot read {path}"))?;
    let Some(kind) = args.kind.or_else(|| Kind::detect(&bytes)) else {
        bail!(
            "{path} is nothing that is known by its content: no EFI executable (MZ), no IGVM \
             file (IGVM), no report (1184 bytes), no certificate (DER or PEM), no firmware (table at its end); say what \
             it should be with --kind to see what is wrong with it"
        );
    };
    let inspection =
        Inspection::of(kind, bytes).with_context(|| format!("cannot read {path} as {kind:?}"))?;
    if args.json {
        stdout::write_line(serde_json::to_string_pretty(&inspection)?)?;
    } else {
        stdout::write(inspection.to_text())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_content() {
        for (bytes, kind) in [
            (b"MZ".to_vec(), Some(Kind::Uki)),
            (b"IGVM".to_vec(), Some(Kind::Igvm)),
            (vec![0; REPORT_LEN], Some(Kind::Report)),
            (vec![0x30, 0x82, 0, 0], Some(Kind::Certificate)),
            (
                b"x\n-----BEGIN CERTIFICATE-----\n".to_vec(),
                Some(Kind::Certificate),
            ),
            (vec![0; 4096], None),
            (Vec::new(), None),
            (b"-----BEGIN PRIVATE KEY-----".to_vec(), None),
        ] {
            assert_eq!(Kind::detect(&bytes), kind, "{bytes:?}");
        }
    }
}
