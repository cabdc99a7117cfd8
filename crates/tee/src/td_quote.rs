//! The TD quote, versions 4 and 5 with a TD report of TDX 1.0 or 1.5 (Intel TDX
//! DCAP Quoting Library API, appendix "Quote Format").
//!
//! The attestation key's signature covers header and report only. What follows
//! is bound by other signatures or by nothing, so every length must be exact and
//! what lies behind the last field must be zero: some hosts hand out a buffer of
//! a fixed size. A report of TDX 1.5ex is not read: there is no evidence of one.

use std::mem::{offset_of, size_of};

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// TEE_TYPE of a TD; an SGX enclave has 0.
const TEE_TYPE_TDX: u32 = 0x81;
/// ATT_KEY_TYPE of ECDSA P-256 with SHA-256, the only one that is in use.
const KEY_TYPE_ECDSA_P256: u16 = 2;
/// QE_VENDOR_ID of Intel's quoting enclave.
const INTEL_QE_VENDOR: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
/// Certification data that is a report of the quoting enclave with its own.
const CERTIFICATION_QE_REPORT: u16 = 6;
/// Certification data that is the PCK certificate chain in PEM.
const CERTIFICATION_PCK_CHAIN: u16 = 5;

/// The header of a quote.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct QuoteHeader {
    /// VERSION: 4 or 5.
    pub version: U16,
    /// ATT_KEY_TYPE.
    pub attestation_key_type: U16,
    /// TEE_TYPE.
    pub tee_type: U32,
    /// Security version of the quoting enclave: informative, not verified.
    pub qe_svn: U16,
    /// Security version of the provisioning enclave: informative, not verified.
    pub pce_svn: U16,
    /// QE_VENDOR_ID.
    pub qe_vendor_id: [u8; 16],
    /// USER_DATA of the quoting enclave.
    pub user_data: [u8; 20],
}

/// A TD report of TDX 1.0, the first part of later ones too.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct TdReport {
    /// TEE_TCB_SVN: security versions of the TDX module when the TD was launched.
    pub tee_tcb_svn: [u8; 16],
    /// MRSEAM: the TDX module.
    pub mr_seam: [u8; 48],
    /// MRSIGNERSEAM: who signed the TDX module; zero for Intel's.
    pub mr_signer_seam: [u8; 48],
    /// SEAMATTRIBUTES.
    pub seam_attributes: [u8; 8],
    /// TDATTRIBUTES; see [`TdAttributes`].
    pub td_attributes: [u8; 8],
    /// XFAM: the extended features of the TD.
    pub xfam: [u8; 8],
    /// MRTD: what was loaded before the TD started.
    pub mr_td: [u8; 48],
    /// MRCONFIGID: chosen by the host at launch.
    pub mr_config_id: [u8; 48],
    /// MROWNER: chosen by the host at launch.
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG: chosen by the host at launch.
    pub mr_owner_config: [u8; 48],
    /// RTMR0 to RTMR3: extended by what runs in the TD.
    pub rtmrs: [[u8; 48]; 4],
    /// REPORTDATA: 64 bytes that the TD chose.
    pub report_data: [u8; 64],
}

/// What TDX 1.5 adds to a TD report.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct TdReport15Tail {
    /// TEE_TCB_SVN2: security versions of the TDX module that runs now.
    pub tee_tcb_svn2: [u8; 16],
    /// MRSERVICETD: the service TDs that are bound to the TD; zero without one.
    pub mr_service_td: [u8; 48],
}

/// The report of the quoting enclave (Intel SDM volume 3D, REPORT, without its
/// MAC).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct QeReport {
    /// CPUSVN.
    pub cpu_svn: [u8; 16],
    /// MISCSELECT.
    pub misc_select: [u8; 4],
    _rsvd_0x14: [u8; 12],
    /// ISVEXTPRODID.
    pub isv_ext_prod_id: [u8; 16],
    /// ATTRIBUTES.
    pub attributes: [u8; 16],
    /// MRENCLAVE.
    pub mr_enclave: [u8; 32],
    _rsvd_0x60: [u8; 32],
    /// MRSIGNER.
    pub mr_signer: [u8; 32],
    _rsvd_0xa0: [u8; 32],
    /// CONFIGID.
    pub config_id: [u8; 64],
    /// ISVPRODID.
    pub isv_prod_id: U16,
    /// ISVSVN.
    pub isv_svn: U16,
    /// CONFIGSVN.
    pub config_svn: U16,
    _rsvd_0x106: [u8; 42],
    /// ISVFAMILYID.
    pub isv_family_id: [u8; 16],
    /// REPORTDATA: SHA-256 of attestation key and authentication data, then zeros.
    pub report_data: [u8; 64],
}

const _: () = {
    assert!(size_of::<QuoteHeader>() == 48);
    assert!(offset_of!(QuoteHeader, qe_vendor_id) == 12);
    assert!(size_of::<TdReport>() == 584);
    assert!(offset_of!(TdReport, td_attributes) == 120);
    assert!(offset_of!(TdReport, mr_td) == 136);
    assert!(offset_of!(TdReport, mr_config_id) == 184);
    assert!(offset_of!(TdReport, rtmrs) == 328);
    assert!(offset_of!(TdReport, report_data) == 520);
    assert!(size_of::<TdReport15Tail>() == 64);
    assert!(size_of::<QeReport>() == 384);
    assert!(offset_of!(QeReport, attributes) == 48);
    assert!(offset_of!(QeReport, mr_signer) == 128);
    assert!(offset_of!(QeReport, isv_prod_id) == 256);
    assert!(offset_of!(QeReport, report_data) == 320);
};

/// TDATTRIBUTES (Intel TDX Module ABI, "ATTRIBUTES").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TdAttributes(pub u64);

impl TdAttributes {
    /// DEBUG: the host may read and write the TD.
    pub const DEBUG: u64 = 1 << 0;
    /// HGS_PLUS_PROF, PERF_PROF, PMT_PROF: the host may profile the TD.
    pub const PROFILING: u64 = 0b111 << 4;
    /// SERVTD_EXT: service TDs of the extended kind may be bound.
    pub const SERVTD_EXT: u64 = 1 << 17;
    /// SEPT_VE_DISABLE: a page that the host took away ends the TD instead of
    /// raising an exception that the TD would have to handle.
    pub const SEPT_VE_DISABLE: u64 = 1 << 28;
    /// MIGRATABLE: the TD may be migrated.
    pub const MIGRATABLE: u64 = 1 << 29;
    /// Every bit with a meaning: the TUD group, ICSSD, SERVTD_EXT and their
    /// neighbours, LASS to KL, TPA and PERFMON.
    const KNOWN: u64 =
        Self::DEBUG | Self::PROFILING | 0b111_1111 << 16 | 0b1_1111 << 27 | 0b11 << 62;

    /// The bits that must be zero and are not.
    pub const fn unknown(self) -> u64 {
        self.0 & !Self::KNOWN
    }

    /// Whether any bit of `mask` is set.
    pub const fn has(self, mask: u64) -> bool {
        self.0 & mask != 0
    }
}

impl TdReport {
    /// The TD's attributes.
    pub const fn attributes(&self) -> TdAttributes {
        TdAttributes(u64::from_le_bytes(self.td_attributes))
    }
}

/// A quote by its parts. Nothing about it has been verified.
#[derive(Debug, Clone, Copy)]
pub struct TdQuote<'a> {
    /// The header.
    pub header: &'a QuoteHeader,
    /// The TD report, or the part of it that TDX 1.0 has.
    pub report: &'a TdReport,
    /// What TDX 1.5 adds, in a report of it.
    pub report_15: Option<&'a TdReport15Tail>,
    /// The bytes that the attestation key signed.
    pub signed_bytes: &'a [u8],
    /// `r || s`, big-endian, by the attestation key.
    pub signature: &'a [u8; 64],
    /// `x || y`, big-endian, of the attestation key on P-256.
    pub attestation_key: &'a [u8; 64],
    /// The report of the quoting enclave, byte for byte.
    pub qe_report: &'a QeReport,
    /// `r || s`, big-endian, by the PCK.
    pub qe_report_signature: &'a [u8; 64],
    /// Authentication data of the quoting enclave.
    pub qe_authentication_data: &'a [u8],
    /// The PCK certificate chain, PEM.
    pub pck_chain: &'a [u8],
}

/// Bytes are no TD quote that can be appraised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuoteError {
    /// It ends within a field.
    #[error("the quote ends within {field}")]
    Truncated {
        /// Name of the field.
        field: &'static str,
    },
    /// Its version is unknown.
    #[error("version {found} is unknown: 4 and 5 are known")]
    Version {
        /// What it says.
        found: u16,
    },
    /// It is of another TEE.
    #[error("TEE type {found:#x} is no TD (0x81)")]
    TeeType {
        /// What it says.
        found: u32,
    },
    /// A field has a value that is not known.
    #[error("{field} is {found}, and {expected} is known")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What it says.
        found: u32,
        /// What would have been read.
        expected: u32,
    },
    /// The quoting enclave is another vendor's.
    #[error("the quoting enclave is not Intel's")]
    Vendor,
    /// A length disagrees with what it holds.
    #[error("{count} bytes are left over behind {field}")]
    LeftOver {
        /// Name of the last field.
        field: &'static str,
        /// How many.
        count: usize,
    },
}

/// What of a quote has not been read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], ParseQuoteError> {
        let (head, tail) = self
            .0
            .split_at_checked(len)
            .ok_or(ParseQuoteError::Truncated { field })?;
        self.0 = tail;
        Ok(head)
    }

    fn take_ref<T>(&mut self, field: &'static str) -> Result<&'a T, ParseQuoteError>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let (value, tail) =
            T::ref_from_prefix(self.0).map_err(|_| ParseQuoteError::Truncated { field })?;
        self.0 = tail;
        Ok(value)
    }

    fn take_u16(&mut self, field: &'static str) -> Result<u16, ParseQuoteError> {
        self.take_ref::<U16>(field).map(|value| value.get())
    }

    fn take_u32(&mut self, field: &'static str) -> Result<u32, ParseQuoteError> {
        self.take_ref::<U32>(field).map(|value| value.get())
    }

    /// A field behind its length in four bytes.
    fn take_data(&mut self, field: &'static str) -> Result<Self, ParseQuoteError> {
        let len = usize::try_from(self.take_u32(field)?)
            .map_err(|_| ParseQuoteError::Truncated { field })?;
        self.take(len, field).map(Self)
    }

    fn end(&self, field: &'static str) -> Result<(), ParseQuoteError> {
        match self.0.len() {
            0 => Ok(()),
            count => Err(ParseQuoteError::LeftOver { field, count }),
        }
    }
}

fn known<T: Into<u32> + Copy + PartialEq>(
    field: &'static str,
    found: T,
    expected: T,
) -> Result<(), ParseQuoteError> {
    if found == expected {
        Ok(())
    } else {
        Err(ParseQuoteError::Field {
            field,
            found: found.into(),
            expected: expected.into(),
        })
    }
}

impl<'a> TdQuote<'a> {
    /// Splits a quote into its parts.
    ///
    /// # Errors
    /// When it is no quote of a TD of a known form, of exactly its length but for
    /// zeros behind it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseQuoteError> {
        let mut rest = Reader(bytes);
        let header: &QuoteHeader = rest.take_ref("the header")?;
        if header.tee_type.get() != TEE_TYPE_TDX {
            let found = header.tee_type.get();
            return Err(ParseQuoteError::TeeType { found });
        }
        let tail = match header.version.get() {
            4 => false,
            5 => Self::parse_body_descriptor(&mut rest)?,
            found => return Err(ParseQuoteError::Version { found }),
        };
        let key_type = header.attestation_key_type.get();
        known("ATT_KEY_TYPE", key_type, KEY_TYPE_ECDSA_P256)?;
        if header.qe_vendor_id != INTEL_QE_VENDOR {
            return Err(ParseQuoteError::Vendor);
        }
        let report = rest.take_ref("the TD report")?;
        let report_15 = tail
            .then(|| rest.take_ref("the TD report of TDX 1.5"))
            .transpose()?;
        let (signed_bytes, _) = bytes.split_at(bytes.len() - rest.0.len());

        let mut signature_data = rest.take_data("the signature data")?;
        if rest.0.iter().any(|&byte| byte != 0) {
            rest.end("the signature data")?;
        }
        let signature = signature_data.take_ref("the signature")?;
        let attestation_key = signature_data.take_ref("the attestation key")?;
        let kind = signature_data.take_u16("the certification data")?;
        known(
            "the type of the certification data",
            kind,
            CERTIFICATION_QE_REPORT,
        )?;
        let mut certification = signature_data.take_data("the certification data")?;
        signature_data.end("the certification data")?;
        let qe_report = certification.take_ref("the QE report")?;
        let qe_report_signature = certification.take_ref("the QE report's signature")?;
        let len = certification.take_u16("the QE authentication data")?;
        let qe_authentication_data =
            certification.take(len.into(), "the QE authentication data")?;
        let kind = certification.take_u16("the PCK certificate chain")?;
        known("the type of the PCK's data", kind, CERTIFICATION_PCK_CHAIN)?;
        let pck_chain = certification.take_data("the PCK certificate chain")?;
        certification.end("the PCK certificate chain")?;
        Ok(Self {
            header,
            report,
            report_15,
            signed_bytes,
            signature,
            attestation_key,
            qe_report,
            qe_report_signature,
            qe_authentication_data,
            pck_chain: pck_chain.0,
        })
    }

    /// Type and length of the body of version 5: whether it is of TDX 1.5.
    fn parse_body_descriptor(rest: &mut Reader<'a>) -> Result<bool, ParseQuoteError> {
        const TD_REPORT_10: u16 = 2;
        const TD_REPORT_15: u16 = 3;
        let kind = rest.take_u16("the body's type")?;
        let size = rest.take_u32("the body's length")?;
        if kind == TD_REPORT_10 {
            known("the body's length", size, 584)?;
            return Ok(false);
        }
        known("the body's type", kind, TD_REPORT_15)?;
        known("the body's length", size, 648)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
