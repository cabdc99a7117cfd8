//! The launch commands and guest requests of the processor.
//!
//! The commands of a launch form a typestate: [`Processor::launch_start`] gives
//! a [`Launching`], which takes pages until [`Launching::launch_finish`] makes a
//! [`Guest`] of it. Only a guest has a report, and no page enters a guest.

use assay_tee::guest_message::{
    CertificateTable, ReportRequest, ReportResponse, STATUS_INVALID_KEY_SELECTION,
    STATUS_INVALID_PARAMETERS,
};
use assay_tee::page_info::{PAGE_SIZE, PAGE_SIZE_U64, PageInfo, PageType};
use assay_tee::report::{PlatformInfo, SIGNATURE_ALGO_ECDSA_P384_SHA384, SigningKey};
use assay_tee::tcb::TcbError;
use assay_tee::{AttestationReport, GuestPolicy, LaunchDigest, Product, Sha256Digest};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use sha2::{Digest as _, Sha384};
use zerocopy::IntoBytes as _;

use crate::id_block::{self, IdBlockError, IdBlockInput};
use crate::pki::{Endorsement, Identity, PkiError};

/// The firmware that is simulated: 1.55.43, the first report version 5 known.
const FIRMWARE: (u8, u8, u8) = (1, 55, 43);
/// Version of the reports that this firmware makes.
const REPORT_VERSION: u32 = 5;
/// What a server with default settings reports.
const PLATFORM_INFO: u64 =
    PlatformInfo::SMT | PlatformInfo::ECC | PlatformInfo::ALIAS_CHECK_COMPLETE;
/// The only mitigation bit that real reports of this firmware show.
const MITIGATIONS: u64 = 1;
/// Privilege levels that a guest has.
const VMPLS: u32 = 4;
/// KEY_SEL of the VLEK where one is loaded, and else the VCEK.
const KEY_SEL_DEFAULT: u32 = 0;
/// KEY_SEL of the VCEK.
const KEY_SEL_VCEK: u32 = 1;
/// KEY_SEL of the VLEK.
const KEY_SEL_VLEK: u32 = 2;
/// SIGNING_KEY of the VLEK, in the report's key information.
const SIGNING_KEY_VLEK: u32 = 1 << 2;

/// A launch command is refused.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The guest policy is invalid, or asks for what this platform has not.
    #[error("guest policy {policy:#x} is refused: {why}")]
    Policy {
        /// The policy.
        policy: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The address is not that of a page, or pages go past the address space.
    #[error("guest physical address {gpa:#x} is not that of a page")]
    Address {
        /// The address.
        gpa: u64,
    },
    /// The content is not whole pages.
    #[error("{got} bytes at {gpa:#x} are not whole pages")]
    PageLength {
        /// The address.
        gpa: u64,
        /// Bytes of content.
        got: usize,
    },
    /// The endorsement key cannot be used.
    #[error("the endorsement key cannot be used")]
    Endorsement(#[from] PkiError),
    /// The TCB in the endorsement is not one of its product.
    #[error("the endorsement's TCB cannot be encoded")]
    Tcb(#[from] TcbError),
    /// The ID block is invalid, or wants another launch.
    #[error("the ID block is refused")]
    IdBlock(#[from] IdBlockError),
    /// The random number generator failed.
    #[error("the random number generator failed")]
    Random,
}

/// A simulated processor.
#[derive(Clone)]
pub struct Processor {
    vcek: Endorsement,
    vlek: Option<Endorsement>,
    identity: Identity,
}

impl Processor {
    /// A processor with this endorsement key; its product, chip identity and
    /// TCB are those that the VCEK names.
    ///
    /// # Errors
    /// When the VCEK does not name them.
    pub fn new(vcek: Endorsement) -> Result<Self, PkiError> {
        let identity = vcek.identity()?;
        Ok(Self {
            vcek,
            vlek: None,
            identity,
        })
    }

    /// SNP_VLEK_LOAD: guests that are launched from now on may have their
    /// reports signed by the provider's key.
    ///
    /// # Errors
    /// When the VLEK is not for this product and TCB.
    pub fn load_vlek(&mut self, vlek: Endorsement) -> Result<(), PkiError> {
        let Identity { product, tcb, .. } = vlek.identity()?;
        if vlek.chain().kind != SigningKey::Vlek
            || (product, tcb) != (self.identity.product, self.identity.tcb)
        {
            return Err(PkiError::VlekMismatch);
        }
        self.vlek = Some(vlek);
        Ok(())
    }

    /// SNP_LAUNCH_START.
    ///
    /// # Errors
    /// When the processor would refuse the guest policy.
    pub fn launch_start(&self, policy: GuestPolicy) -> Result<Launching, LaunchError> {
        let refuse = |why| {
            Err(LaunchError::Policy {
                policy: policy.0,
                why,
            })
        };
        let (major, minor, _) = FIRMWARE;
        if policy.unknown_bits() != 0 {
            return refuse("reserved bits are set");
        }
        if !policy.contains(GuestPolicy::RESERVED_MUST_BE_ONE) {
            return refuse("bit 17 must be one");
        }
        if !policy.contains(GuestPolicy::SMT) {
            return refuse("SMT is on");
        }
        if policy.contains(GuestPolicy::RAPL_DIS) {
            return refuse("RAPL is on");
        }
        if policy.contains(GuestPolicy::CIPHERTEXT_HIDING_DRAM) {
            return refuse("ciphertext hiding is off");
        }
        if policy.minimum_abi() > (major, minor) {
            return refuse("the firmware is older");
        }
        Ok(Launching {
            processor: self.clone(),
            policy,
            digest: [0; 48],
        })
    }
}

/// A launch that takes pages.
pub struct Launching {
    processor: Processor,
    policy: GuestPolicy,
    digest: [u8; 48],
}

impl Launching {
    /// SNP_LAUNCH_UPDATE for every page of `content`, from `gpa` on. Of page
    /// types whose content is not measured only the length counts.
    ///
    /// # Errors
    /// When address or length are not those of whole pages.
    pub fn launch_update(
        &mut self,
        page_type: PageType,
        gpa: u64,
        content: &[u8],
    ) -> Result<(), LaunchError> {
        let pages = content.chunks_exact(PAGE_SIZE);
        if content.is_empty() || !pages.remainder().is_empty() {
            return Err(LaunchError::PageLength {
                gpa,
                got: content.len(),
            });
        }
        if !gpa.is_multiple_of(PAGE_SIZE_U64) {
            return Err(LaunchError::Address { gpa });
        }
        let mut address = Some(gpa);
        for page in pages {
            let at = address.ok_or(LaunchError::Address { gpa })?;
            let contents = if page_type.has_contents() {
                Sha384::digest(page).into()
            } else {
                [0; 48]
            };
            let info = PageInfo::new(self.digest, page_type, at, contents);
            self.digest = Sha384::digest(info.as_bytes()).into();
            address = at.checked_add(PAGE_SIZE_U64);
        }
        Ok(())
    }

    /// SNP_LAUNCH_FINISH without an ID block: the guest exists, and its launch
    /// digest is final.
    ///
    /// # Errors
    /// When no report identity can be drawn.
    pub fn launch_finish(self, host_data: Sha256Digest) -> Result<Guest, LaunchError> {
        self.finish(host_data, None)
    }

    /// SNP_LAUNCH_FINISH with an ID block: the launch must be the one that the
    /// block's owner signed, and reports name the owner.
    ///
    /// # Errors
    /// When the ID block is refused, or no report identity can be drawn.
    pub fn launch_finish_with_id_block(
        self,
        host_data: Sha256Digest,
        id_block: &IdBlockInput<'_>,
    ) -> Result<Guest, LaunchError> {
        self.finish(host_data, Some(id_block))
    }

    fn finish(
        self,
        host_data: Sha256Digest,
        id_block: Option<&IdBlockInput<'_>>,
    ) -> Result<Guest, LaunchError> {
        let mut report_id = [0; 32];
        SystemRandom::new()
            .fill(&mut report_id)
            .map_err(|_| LaunchError::Random)?;
        let Identity {
            product,
            tcb,
            chip_id,
        } = self.processor.identity;
        let tcb = tcb.encode(product)?;
        let (major, minor, build) = FIRMWARE;
        let (family, model, stepping) = cpuid(product);
        let mut report = AttestationReport::zeroed();
        report.version = REPORT_VERSION.into();
        report.policy = self.policy.0.into();
        report.signature_algo = SIGNATURE_ALGO_ECDSA_P384_SHA384.into();
        report.current_tcb = tcb;
        report.platform_info = PLATFORM_INFO.into();
        report.measurement = self.digest;
        report.host_data = *host_data.as_bytes();
        report.report_id = report_id;
        // No migration agent.
        report.report_id_ma = [0xff; 32];
        report.reported_tcb = tcb;
        report.cpuid_family = family;
        report.cpuid_model = model;
        report.cpuid_stepping = stepping;
        report.chip_id = chip_id;
        report.committed_tcb = tcb;
        (
            report.current_major,
            report.current_minor,
            report.current_build,
        ) = (major, minor, build);
        (
            report.committed_major,
            report.committed_minor,
            report.committed_build,
        ) = (major, minor, build);
        report.launch_tcb = tcb;
        report.launch_mit_vector = MITIGATIONS.into();
        report.current_mit_vector = MITIGATIONS.into();
        if let Some(id_block) = id_block {
            id_block::apply(id_block, &mut report)?;
        }
        Ok(Guest {
            vcek: self.processor.vcek,
            vlek: self.processor.vlek,
            template: report,
        })
    }
}

/// A launched guest, as the processor knows it.
pub struct Guest {
    vcek: Endorsement,
    vlek: Option<Endorsement>,
    /// The guest's report but for REPORT_DATA, VMPL, and what depends on the key
    /// that signs; as for the VCEK.
    template: AttestationReport,
}

impl Guest {
    /// The launch digest.
    pub fn launch_digest(&self) -> LaunchDigest {
        self.template.launch_digest()
    }

    /// Answers MSG_REPORT_REQ with MSG_REPORT_RSP. What the processor would
    /// refuse is answered by a status, as it does.
    ///
    /// # Errors
    /// When signing fails.
    pub fn guest_request(&self, request: &[u8]) -> Result<Vec<u8>, PkiError> {
        self.respond(request, |_| CertificateTable::default())
    }

    /// Answers an extended request: MSG_REPORT_RSP and the certificate table,
    /// the message of [`assay_tee::guest_event::PSP_SIM_PORT`].
    ///
    /// # Errors
    /// When signing fails.
    pub fn extended_guest_request(&self, request: &[u8]) -> Result<Vec<u8>, PkiError> {
        self.respond(request, |key| key.chain().to_table())
    }

    fn respond(
        &self,
        request: &[u8],
        certificates: impl Fn(&Endorsement) -> CertificateTable,
    ) -> Result<Vec<u8>, PkiError> {
        let refuse = |status| Ok(ReportResponse::encode_refusal(status));
        let Ok(request) = ReportRequest::parse(request) else {
            return refuse(STATUS_INVALID_PARAMETERS);
        };
        if request.vmpl.get() >= VMPLS {
            return refuse(STATUS_INVALID_PARAMETERS);
        }
        let key = match (request.key_sel.get(), &self.vlek) {
            (KEY_SEL_DEFAULT | KEY_SEL_VLEK, Some(vlek)) => vlek,
            (KEY_SEL_DEFAULT | KEY_SEL_VCEK, _) => &self.vcek,
            (KEY_SEL_VLEK, None) => return refuse(STATUS_INVALID_KEY_SELECTION),
            _ => return refuse(STATUS_INVALID_PARAMETERS),
        };
        let mut report = self.template;
        report.report_data = request.report_data;
        report.vmpl = request.vmpl;
        if key.chain().kind == SigningKey::Vlek {
            report.key_info |= SIGNING_KEY_VLEK;
            report.chip_id = [0; 64];
        }
        key.sign_report(&mut report)?;
        let response = ReportResponse {
            report: report.encode(),
            certificates: certificates(key),
        };
        response.encode().map_err(|_| PkiError::Sign)
    }
}

/// CPUID family, model and stepping of a common processor of the product.
const fn cpuid(product: Product) -> (u8, u8, u8) {
    match product {
        Product::Milan => (0x19, 0x01, 0x01),
        Product::Genoa => (0x19, 0x11, 0x01),
        Product::Turin => (0x1a, 0x02, 0x01),
    }
}
