//! Certificates.

use anyhow::{Context as _, Result};
use assay_attest::describe::{CertificateDescription, describe_certificate};
use assay_attest::evidence::parse_certificates;
use serde::Serialize;

use super::table::Table;

/// The certificates of a file, in its order.
#[derive(Debug, Serialize)]
pub(super) struct Certificates {
    certificates: Vec<CertificateDescription>,
}

pub(super) fn inspect(bytes: &[u8]) -> Result<Certificates> {
    let ders = parse_certificates(bytes)?;
    let certificates = ders.iter().enumerate().map(|(index, der)| {
        describe_certificate(der).with_context(|| format!("certificate {index}"))
    });
    Ok(Certificates {
        certificates: certificates.collect::<Result<_>>()?,
    })
}

impl Certificates {
    pub(super) fn to_text(&self) -> Table {
        let mut table = Table::default();
        for certificate in &self.certificates {
            describe(certificate, &mut table);
        }
        table
    }
}

fn describe(certificate: &CertificateDescription, table: &mut Table) {
    let CertificateDescription {
        role,
        product,
        subject,
        issuer,
        serial_number,
        not_before,
        not_after,
        fingerprint,
        key_digest,
        key,
        is_amd_root,
        vendor,
        problems,
    } = certificate;
    table.heading(format!("certificate: {}", role.name()));
    table.maybe("product", *product);
    table.row("subject", subject);
    table.row("issuer", issuer);
    table.row("serial number", serial_number);
    table.row("valid", format!("{not_before} to {not_after}"));
    table.row("certificate digest", fingerprint);
    table.row("key", key);
    table.row("key digest (SPKI)", key_digest);
    if *is_amd_root {
        table.row("root", "this very certificate is a root of AMD's");
    }
    table.maybe("product name", vendor.product_name.as_ref());
    table.maybe("structure version", vendor.struct_version);
    table.maybe("chip (hwID)", vendor.hw_id.as_ref());
    table.maybe("provider (CSP_ID)", vendor.csp_id.as_ref());
    table.maybe("TCB fmc", vendor.tcb.fmc);
    table.maybe("TCB bootloader", vendor.tcb.bootloader);
    table.maybe("TCB tee", vendor.tcb.tee);
    table.maybe("TCB snp", vendor.tcb.snp);
    table.maybe("TCB microcode", vendor.tcb.microcode);
    table.sentences(problems);
}
