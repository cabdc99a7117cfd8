//! Attestation reports.

use anyhow::Result;
use assay_attest::policy::{GuestPolicyBit, PlatformBit};
use assay_tee::report::{KeyInfo, PlatformInfo, SigningKey};
use assay_tee::{AttestationReport, GuestPolicy, LaunchDigest, Product, TcbVersion};
use serde::Serialize;

use super::bits::Bits;
use super::table::Table;

/// A report, field by field. Byte fields are hexadecimal.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Fields {
    version: u32,
    guest_svn: u32,
    policy: Bits,
    minimum_abi: String,
    family_id: String,
    image_id: String,
    vmpl: u32,
    signature_algorithm: u32,
    platform_info: Bits,
    /// Absent where the field at 0x48 is invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_info: Option<Keys>,
    report_data: String,
    measurement: LaunchDigest,
    host_data: String,
    id_key_digest: String,
    author_key_digest: String,
    report_id: String,
    report_id_ma: String,
    /// From CPUID; absent in version 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<Product>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpuid: Option<Cpuid>,
    chip_id: String,
    current_tcb: Tcb,
    reported_tcb: Tcb,
    committed_tcb: Tcb,
    launch_tcb: Tcb,
    current_firmware: String,
    committed_firmware: String,
    launch_mitigations: String,
    current_mitigations: String,
    signature: String,
    /// What a verifier would refuse about the form, a sentence each.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    signing_key: SigningKey,
    author_key_enabled: bool,
    mask_chip_key: bool,
}

#[derive(Debug, Serialize)]
struct Cpuid {
    family: u8,
    model: u8,
    stepping: u8,
}

#[derive(Debug, Serialize)]
struct Tcb {
    /// The eight bytes, hexadecimal.
    raw: String,
    /// Absent where the bytes are no TCB version of the product.
    #[serde(skip_serializing_if = "Option::is_none")]
    components: Option<TcbVersion>,
}

pub(super) fn inspect(bytes: &[u8]) -> Result<Fields> {
    let report = AttestationReport::read_layout(bytes)?;
    let mut problems = Vec::new();
    for check in [
        report.check_version(),
        report.check_reserved(),
        report.check_signature_algorithm(),
        report.key_info().map(|_| ()),
    ] {
        if let Err(error) = check {
            problems.push(format!("A verifier refuses the report: {error}."));
        }
    }
    let has_cpuid = report.version.get() >= 3;
    let product = Product::from_cpuid(report.cpuid_family, report.cpuid_model);
    if has_cpuid && let Err(error) = &product {
        problems.push(format!("Its product is unknown: {error}."));
    }
    let product = product.ok().filter(|_| has_cpuid);
    let layout = product.unwrap_or_else(|| layout_by_chip_id(&report.chip_id));
    let mut tcb = |name: &str, raw: [u8; 8]| {
        let components = TcbVersion::parse(layout, raw);
        if let Err(error) = &components {
            problems.push(format!("{name} is no TCB version: {error}."));
        }
        Tcb {
            raw: hex::encode(raw),
            components: components.ok(),
        }
    };
    let (current_tcb, reported_tcb, committed_tcb, launch_tcb) = (
        tcb("CURRENT_TCB", report.current_tcb),
        tcb("REPORTED_TCB", report.reported_tcb),
        tcb("COMMITTED_TCB", report.committed_tcb),
        tcb("LAUNCH_TCB", report.launch_tcb),
    );
    if report.signature_fixed() == [0; 96] {
        problems.push("It is not signed: the signature is zero.".to_owned());
    }
    let policy = GuestPolicy(report.policy.get());
    let platform = PlatformInfo(report.platform_info.get());
    let (major, minor) = policy.minimum_abi();
    Ok(Fields {
        version: report.version.get(),
        guest_svn: report.guest_svn.get(),
        policy: Bits::new(
            policy.0,
            policy.unknown_bits(),
            GuestPolicyBit::ALL
                .iter()
                .map(|bit| (bit.mask(), bit.name(), bit.meaning())),
        ),
        minimum_abi: format!("{major}.{minor}"),
        family_id: hex::encode(report.family_id),
        image_id: hex::encode(report.image_id),
        vmpl: report.vmpl.get(),
        signature_algorithm: report.signature_algo.get(),
        platform_info: Bits::new(
            platform.0,
            platform.unknown_bits(),
            PlatformBit::ALL
                .iter()
                .map(|bit| (bit.mask(), bit.name(), bit.meaning())),
        ),
        key_info: report.key_info().ok().map(|info| {
            let KeyInfo {
                author_key_enabled,
                mask_chip_key,
                signing_key,
            } = info;
            Keys {
                signing_key,
                author_key_enabled,
                mask_chip_key,
            }
        }),
        report_data: hex::encode(report.report_data),
        measurement: report.launch_digest(),
        host_data: hex::encode(report.host_data),
        id_key_digest: hex::encode(report.id_key_digest),
        author_key_digest: hex::encode(report.author_key_digest),
        report_id: hex::encode(report.report_id),
        report_id_ma: hex::encode(report.report_id_ma),
        product,
        cpuid: has_cpuid.then_some(Cpuid {
            family: report.cpuid_family,
            model: report.cpuid_model,
            stepping: report.cpuid_stepping,
        }),
        chip_id: hex::encode(report.chip_id),
        current_tcb,
        reported_tcb,
        committed_tcb,
        launch_tcb,
        current_firmware: format!(
            "{}.{}.{}",
            report.current_major, report.current_minor, report.current_build
        ),
        committed_firmware: format!(
            "{}.{}.{}",
            report.committed_major, report.committed_minor, report.committed_build
        ),
        launch_mitigations: format!("{:#x}", report.launch_mit_vector),
        current_mitigations: format!("{:#x}", report.current_mit_vector),
        signature: hex::encode(report.signature_fixed()),
        problems,
    })
}

/// A product with the TCB layout of a report without CPUID: only Turin has chip
/// identities of eight bytes.
fn layout_by_chip_id(chip_id: &[u8; 64]) -> Product {
    let (head, tail) = chip_id.split_at(Product::Turin.chip_id_len());
    let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    if zero(tail) && !zero(head) {
        Product::Turin
    } else {
        Product::Milan
    }
}

impl Fields {
    pub(super) fn to_text(&self) -> Table {
        let mut table = Table::default();
        table.heading(format!("attestation report, version {}", self.version));
        table.row("launch digest", self.measurement);
        table.row("report data", &self.report_data);
        table.row("host data", &self.host_data);
        table.row("VMPL", self.vmpl);
        self.policy.to_text("guest policy", &mut table);
        table.row("", format!("needs firmware ABI {}", self.minimum_abi));
        table.row("report ID", &self.report_id);
        table.row("report ID of agent", &self.report_id_ma);
        table.heading("ID block");
        table.row("family ID", &self.family_id);
        table.row("image ID", &self.image_id);
        table.row("guest SVN", self.guest_svn);
        table.row("ID key digest", &self.id_key_digest);
        table.row("author key digest", &self.author_key_digest);
        table.heading("platform");
        match (&self.product, &self.cpuid) {
            (product, Some(cpuid)) => table.row(
                "product",
                format!(
                    "{} (family {:#x}, model {:#x}, stepping {})",
                    product.map_or("unknown", Product::name),
                    cpuid.family,
                    cpuid.model,
                    cpuid.stepping
                ),
            ),
            (_, None) => table.row("product", "not in a report of this version"),
        }
        table.row("chip ID", &self.chip_id);
        self.platform_info.to_text("platform info", &mut table);
        for (name, tcb) in [
            ("current TCB", &self.current_tcb),
            ("reported TCB", &self.reported_tcb),
            ("committed TCB", &self.committed_tcb),
            ("launch TCB", &self.launch_tcb),
        ] {
            let components = tcb.components.map(|components| components.to_string());
            table.row(name, components.as_ref().unwrap_or(&tcb.raw));
        }
        table.row("current firmware", &self.current_firmware);
        table.row("committed firmware", &self.committed_firmware);
        table.row("mitigations, launch", &self.launch_mitigations);
        table.row("mitigations, now", &self.current_mitigations);
        table.heading("signature (not verified here; use `assay verify`)");
        table.row("algorithm", self.signature_algorithm);
        if let Some(keys) = &self.key_info {
            table.row(
                "signing key",
                match keys.signing_key {
                    SigningKey::Vcek => "VCEK",
                    SigningKey::Vlek => "VLEK",
                    SigningKey::None => "none",
                },
            );
            table.row("author key enabled", keys.author_key_enabled);
            table.row("chip key masked", keys.mask_chip_key);
        }
        table.row("r || s", &self.signature);
        if !self.problems.is_empty() {
            table.heading("problems");
            table.sentences(&self.problems);
        }
        table
    }
}
