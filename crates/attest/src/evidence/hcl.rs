//! The HCL report of Azure's confidential VMs: an attestation report that the
//! paravisor asked for at boot, and the runtime data that it is bound to, among
//! them the vTPM's attestation key.
//!
//! The layout is not specified by its vendor. It is the one that
//! confidential-containers/trustee and kinvolk/azure-cvm-tooling read, checked
//! against real evidence.

use std::mem::size_of;

use assay_tee::AttestationReport;
use assay_tee::report::REPORT_LEN;
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const SIGNATURE: [u8; 4] = *b"HCLA";
/// The only version that real evidence was seen of.
const VERSION: u32 = 2;
/// REPORT_TYPE of SEV-SNP.
const REPORT_TYPE_SNP: u32 = 2;

#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    _signature: [u8; 4],
    version: U32,
    /// Bytes of header, report and runtime data together.
    size: U32,
    _request_type: U32,
    _status: U32,
    _rsvd_0x14: [u8; 12],
}

#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RuntimeHeader {
    /// Bytes of this header and the runtime data together.
    size: U32,
    _version: U32,
    report_type: U32,
    hash_type: U32,
    data_size: U32,
}

const _: () = {
    assert!(size_of::<Header>() == 0x20);
    assert!(size_of::<RuntimeHeader>() == 0x14);
};

/// Bytes are not an HCL report of an SNP guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseHclError {
    /// It ends too early.
    #[error("the HCL report ends within its {part}")]
    Truncated {
        /// What it ends within.
        part: &'static str,
    },
    /// The version is unknown.
    #[error("HCL reports of version {got} are not known, only {VERSION}")]
    Version {
        /// The version field.
        got: u32,
    },
    /// The hardware report is another TEE's.
    #[error("the HCL report holds a hardware report of type {got}, not {REPORT_TYPE_SNP} (SNP)")]
    ReportType {
        /// The report type field.
        got: u32,
    },
    /// The sizes in the headers contradict each other.
    #[error("the sizes in the HCL report contradict each other")]
    Size,
    /// The hash type is unknown.
    #[error("hash type {got} of the HCL report's runtime data is not known")]
    HashType {
        /// The hash type field.
        got: u32,
    },
    /// The hardware report binds other runtime data.
    #[error(
        "REPORT_DATA of the hardware report is not the digest of the HCL report's runtime data"
    )]
    RuntimeData,
}

/// Whether the bytes begin like an HCL report.
pub(crate) fn is_hcl(bytes: &[u8]) -> bool {
    bytes.starts_with(&SIGNATURE)
}

/// Reads the attestation report. The runtime data is compared with the report's
/// REPORT_DATA, so that it can be believed once the report is.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<u8>, ParseHclError> {
    let truncated = |part| ParseHclError::Truncated { part };
    let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| truncated("header"))?;
    let version = header.version.get();
    if version != VERSION {
        return Err(ParseHclError::Version { got: version });
    }
    let (report, rest) = rest
        .split_first_chunk::<REPORT_LEN>()
        .ok_or(truncated("hardware report"))?;
    let (runtime, rest) =
        RuntimeHeader::read_from_prefix(rest).map_err(|_| truncated("runtime header"))?;
    if runtime.report_type.get() != REPORT_TYPE_SNP {
        return Err(ParseHclError::ReportType {
            got: runtime.report_type.get(),
        });
    }
    let len = usize::try_from(runtime.data_size.get()).map_err(|_| ParseHclError::Size)?;
    let (data, padding) = rest
        .split_at_checked(len)
        .ok_or(truncated("runtime data"))?;
    let with_header = len.checked_add(size_of::<RuntimeHeader>());
    let total = with_header.and_then(|len| len.checked_add(size_of::<Header>() + REPORT_LEN));
    if usize::try_from(runtime.size.get()).ok() != with_header
        || usize::try_from(header.size.get()).ok() != total
        || padding.iter().any(|&byte| byte != 0)
    {
        return Err(ParseHclError::Size);
    }
    let digest = match runtime.hash_type.get() {
        1 => Sha256::digest(data).to_vec(),
        2 => Sha384::digest(data).to_vec(),
        3 => Sha512::digest(data).to_vec(),
        got => return Err(ParseHclError::HashType { got }),
    };
    let claimed = AttestationReport::read_layout(report)
        .map_err(|_| truncated("hardware report"))?
        .report_data;
    let (bound, rest) = claimed.split_at(digest.len().min(claimed.len()));
    if bound != digest || rest.iter().any(|&byte| byte != 0) {
        return Err(ParseHclError::RuntimeData);
    }
    Ok(report.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &[u8] = b"{\"keys\":[]}";

    fn good() -> Vec<u8> {
        let mut report = AttestationReport::zeroed();
        report.report_data[..32].copy_from_slice(&Sha256::digest(DATA));
        let word = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
        let (data, runtime) = (DATA.len(), DATA.len() + 20);
        let header = [*b"HCLA", word(2), word(32 + 1184 + runtime), word(2)];
        let runtime = [word(runtime), word(1), word(2), word(1), word(data)];
        [
            &header.concat()[..],
            &[0; 16],
            &report.encode(),
            &runtime.concat(),
            DATA,
            &[0; 100],
        ]
        .concat()
    }

    #[test]
    fn the_report_is_found() {
        let good = good();
        assert!(is_hcl(&good));
        assert_eq!(parse(&good).unwrap(), good[32..32 + 1184]);
    }

    #[test]
    fn each_rule_refuses_alone() {
        use ParseHclError as E;
        const RUNTIME: usize = 32 + 1184;
        for (offset, value, error) in [
            (4, 3, E::Version { got: 3 }),
            (8, 0, E::Size),
            (32 + 0x50, 0, E::RuntimeData),
            (32 + 0x50 + 32, 1, E::RuntimeData),
            (RUNTIME, 0, E::Size),
            (RUNTIME + 8, 4, E::ReportType { got: 4 }),
            (RUNTIME + 12, 0, E::HashType { got: 0 }),
            (RUNTIME + 12, 2, E::RuntimeData),
            (RUNTIME + 20, 0, E::RuntimeData),
            (RUNTIME + 20 + DATA.len(), 1, E::Size),
        ] {
            let mut bytes = good();
            assert_ne!(bytes[offset], value, "{offset:#x}");
            bytes[offset] = value;
            assert_eq!(parse(&bytes), Err(error), "{offset:#x}={value:#x}");
        }
        for (len, part) in [
            (31, "header"),
            (RUNTIME - 1, "hardware report"),
            (RUNTIME + 19, "runtime header"),
            (RUNTIME + 20 + DATA.len() - 1, "runtime data"),
        ] {
            let cut = &good()[..len];
            assert_eq!(parse(cut), Err(E::Truncated { part }));
        }
    }
}
