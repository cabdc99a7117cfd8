//! The attestation report (SEV-SNP ABI, ATTESTATION_REPORT, versions 2 to 5).
//!
//! The signature covers bytes `0..0x2a0` only. Everything behind it, and every
//! reserved byte, could be changed or used as a covert channel without breaking
//! the signature of some version: a report with a non-zero reserved byte is
//! refused. A verifier must hash the bytes that it received; here they are the
//! value itself, so nothing is ever re-serialised.

#![allow(
    clippy::used_underscore_binding,
    reason = "reserved fields are read to check that they are zero"
)]

use std::mem::{offset_of, size_of};

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{LaunchDigest, ecdsa};

/// Length of a report in bytes.
pub const REPORT_LEN: usize = 0x4a0;
/// Length of the signed part: the signature covers `0..SIGNED_LEN`.
pub const SIGNED_LEN: usize = 0x2a0;
/// SIGNATURE_ALGO of ECDSA P-384 with SHA-384.
pub const SIGNATURE_ALGO_ECDSA_P384_SHA384: u32 = 1;

/// An attestation report as it lies in memory.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct AttestationReport {
    /// VERSION: 2 to 5.
    pub version: U32,
    /// GUEST_SVN from the ID block.
    pub guest_svn: U32,
    /// POLICY given at launch.
    pub policy: U64,
    /// FAMILY_ID from the ID block.
    pub family_id: [u8; 16],
    /// IMAGE_ID from the ID block.
    pub image_id: [u8; 16],
    /// VMPL that asked for the report.
    pub vmpl: U32,
    /// SIGNATURE_ALGO.
    pub signature_algo: U32,
    /// CURRENT_TCB: what runs now.
    pub current_tcb: [u8; 8],
    /// PLATFORM_INFO.
    pub platform_info: U64,
    /// AUTHOR_KEY_EN, MASK_CHIP_KEY and SIGNING_KEY; see [`KeyInfo`].
    pub key_info: U32,
    _rsvd_0x4c: [u8; 4],
    /// REPORT_DATA: 64 bytes that the guest chose.
    pub report_data: [u8; 64],
    /// MEASUREMENT: the launch digest.
    pub measurement: [u8; 48],
    /// HOST_DATA: 32 bytes that the host chose at launch.
    pub host_data: [u8; 32],
    /// ID_KEY_DIGEST.
    pub id_key_digest: [u8; 48],
    /// AUTHOR_KEY_DIGEST.
    pub author_key_digest: [u8; 48],
    /// REPORT_ID: random, one per launched guest.
    pub report_id: [u8; 32],
    /// REPORT_ID_MA of the migration agent; all ones without one.
    pub report_id_ma: [u8; 32],
    /// REPORTED_TCB: what the VCEK was derived from.
    pub reported_tcb: [u8; 8],
    /// CPUID family with its extended part; zero in version 2.
    pub cpuid_family: u8,
    /// CPUID model with its extended part; zero in version 2.
    pub cpuid_model: u8,
    /// CPUID stepping; zero in version 2.
    pub cpuid_stepping: u8,
    _rsvd_0x18b: [u8; 21],
    /// CHIP_ID.
    pub chip_id: [u8; 64],
    /// COMMITTED_TCB: firmware cannot be rolled back below it.
    pub committed_tcb: [u8; 8],
    /// CURRENT_BUILD.
    pub current_build: u8,
    /// CURRENT_MINOR.
    pub current_minor: u8,
    /// CURRENT_MAJOR.
    pub current_major: u8,
    _rsvd_0x1eb: u8,
    /// COMMITTED_BUILD.
    pub committed_build: u8,
    /// COMMITTED_MINOR.
    pub committed_minor: u8,
    /// COMMITTED_MAJOR.
    pub committed_major: u8,
    _rsvd_0x1ef: u8,
    /// LAUNCH_TCB: what ran when the guest was launched.
    pub launch_tcb: [u8; 8],
    /// LAUNCH_MIT_VECTOR; zero before version 5.
    pub launch_mit_vector: U64,
    /// CURRENT_MIT_VECTOR; zero before version 5.
    pub current_mit_vector: U64,
    _rsvd_0x208: [u8; 0x98],
    /// R of the signature, little-endian, the upper 24 bytes zero.
    pub signature_r: [u8; 72],
    /// S of the signature, little-endian, the upper 24 bytes zero.
    pub signature_s: [u8; 72],
    _rsvd_0x330: [u8; 368],
}

const _: () = {
    assert!(size_of::<AttestationReport>() == REPORT_LEN);
    assert!(offset_of!(AttestationReport, policy) == 0x008);
    assert!(offset_of!(AttestationReport, vmpl) == 0x030);
    assert!(offset_of!(AttestationReport, current_tcb) == 0x038);
    assert!(offset_of!(AttestationReport, platform_info) == 0x040);
    assert!(offset_of!(AttestationReport, key_info) == 0x048);
    assert!(offset_of!(AttestationReport, report_data) == 0x050);
    assert!(offset_of!(AttestationReport, measurement) == 0x090);
    assert!(offset_of!(AttestationReport, host_data) == 0x0c0);
    assert!(offset_of!(AttestationReport, id_key_digest) == 0x0e0);
    assert!(offset_of!(AttestationReport, author_key_digest) == 0x110);
    assert!(offset_of!(AttestationReport, report_id) == 0x140);
    assert!(offset_of!(AttestationReport, reported_tcb) == 0x180);
    assert!(offset_of!(AttestationReport, cpuid_family) == 0x188);
    assert!(offset_of!(AttestationReport, _rsvd_0x18b) == 0x18b);
    assert!(offset_of!(AttestationReport, chip_id) == 0x1a0);
    assert!(offset_of!(AttestationReport, committed_tcb) == 0x1e0);
    assert!(offset_of!(AttestationReport, _rsvd_0x1eb) == 0x1eb);
    assert!(offset_of!(AttestationReport, _rsvd_0x1ef) == 0x1ef);
    assert!(offset_of!(AttestationReport, launch_tcb) == 0x1f0);
    assert!(offset_of!(AttestationReport, launch_mit_vector) == 0x1f8);
    assert!(offset_of!(AttestationReport, _rsvd_0x208) == 0x208);
    assert!(offset_of!(AttestationReport, signature_r) == SIGNED_LEN);
    assert!(offset_of!(AttestationReport, signature_s) == 0x2e8);
    assert!(offset_of!(AttestationReport, _rsvd_0x330) == 0x330);
};

/// Why bytes are not an attestation report. The order is that of the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseReportError {
    /// The length is not [`REPORT_LEN`].
    #[error("an attestation report has {REPORT_LEN} bytes, got {got}")]
    Length {
        /// Bytes that were given.
        got: usize,
    },
    /// The version is outside 2 to 5.
    #[error("attestation reports of version {got} are not known, only 2 to 5")]
    Version {
        /// The version field.
        got: u32,
    },
    /// A byte that must be zero is not.
    #[error("reserved byte {offset:#x} is not zero")]
    Reserved {
        /// Offset of the first such byte in the report.
        offset: usize,
    },
    /// The signature algorithm is not ECDSA P-384 with SHA-384.
    #[error("signature algorithm {got} is not 1 (ECDSA P-384 with SHA-384)")]
    SignatureAlgorithm {
        /// The SIGNATURE_ALGO field.
        got: u32,
    },
    /// A reserved bit of the key information is set, or its signing key is not
    /// one that exists.
    #[error("key information {got:#x} is not valid")]
    KeyInfo {
        /// The field at 0x48.
        got: u32,
    },
}

impl AttestationReport {
    /// A report of zeros, for a processor to fill in.
    pub fn zeroed() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }

    /// Reads a report strictly: known version, every reserved byte zero (the
    /// unsigned ones too), known signature algorithm, valid key information.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseReportError> {
        let report = Self::read_layout(bytes)?;
        report.check_version()?;
        report.check_reserved()?;
        report.check_signature_algorithm()?;
        report.key_info()?;
        Ok(report)
    }

    /// Reads the layout alone. For a verifier that makes the checks of
    /// [`AttestationReport::parse`] one by one to report each.
    ///
    /// # Errors
    /// When the length is not [`REPORT_LEN`].
    pub fn read_layout(bytes: &[u8]) -> Result<Self, ParseReportError> {
        Self::read_from_bytes(bytes).map_err(|_| ParseReportError::Length { got: bytes.len() })
    }

    /// Checks that the version is known.
    ///
    /// # Errors
    /// When it is not 2, 3, 4 or 5.
    pub fn check_version(&self) -> Result<(), ParseReportError> {
        match self.version.get() {
            2..=5 => Ok(()),
            got => Err(ParseReportError::Version { got }),
        }
    }

    /// Checks that every byte that this version reserves is zero.
    ///
    /// # Errors
    /// With the offset of the first byte that is not.
    pub fn check_reserved(&self) -> Result<(), ParseReportError> {
        let version = self.version.get();
        let (_, signature_r_tail) = self.signature_r.split_at(48);
        let (_, signature_s_tail) = self.signature_s.split_at(48);
        let cpuid = [self.cpuid_family, self.cpuid_model, self.cpuid_stepping];
        let ranges: [(usize, &[u8], bool); 11] = [
            (0x04c, &self._rsvd_0x4c, true),
            (0x188, &cpuid, version < 3),
            (0x18b, &self._rsvd_0x18b, true),
            (0x1eb, std::slice::from_ref(&self._rsvd_0x1eb), true),
            (0x1ef, std::slice::from_ref(&self._rsvd_0x1ef), true),
            (0x1f8, self.launch_mit_vector.as_bytes(), version < 5),
            (0x200, self.current_mit_vector.as_bytes(), version < 5),
            (0x208, &self._rsvd_0x208, true),
            (0x2d0, signature_r_tail, true),
            (0x318, signature_s_tail, true),
            (0x330, &self._rsvd_0x330, true),
        ];
        for (start, bytes, reserved) in ranges {
            if reserved && let Some(index) = bytes.iter().position(|&byte| byte != 0) {
                return Err(ParseReportError::Reserved {
                    offset: start + index,
                });
            }
        }
        Ok(())
    }

    /// Checks that the signature algorithm is ECDSA P-384 with SHA-384.
    ///
    /// # Errors
    /// When it is another.
    pub fn check_signature_algorithm(&self) -> Result<(), ParseReportError> {
        match self.signature_algo.get() {
            SIGNATURE_ALGO_ECDSA_P384_SHA384 => Ok(()),
            got => Err(ParseReportError::SignatureAlgorithm { got }),
        }
    }

    /// The key information, decoded.
    ///
    /// # Errors
    /// When a reserved bit is set or the signing key is unknown.
    pub fn key_info(&self) -> Result<KeyInfo, ParseReportError> {
        let raw = self.key_info.get();
        let signing_key = match (raw >> 2) & 0b111 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::None,
            _ => return Err(ParseReportError::KeyInfo { got: raw }),
        };
        if raw >> 5 != 0 {
            return Err(ParseReportError::KeyInfo { got: raw });
        }
        Ok(KeyInfo {
            author_key_enabled: raw & 1 != 0,
            mask_chip_key: raw & 2 != 0,
            signing_key,
        })
    }

    /// The report's bytes.
    pub fn encode(&self) -> [u8; REPORT_LEN] {
        zerocopy::transmute!(*self)
    }

    /// The bytes that the signature covers.
    pub fn signed_bytes(&self) -> &[u8] {
        let (signed, _) = self.as_bytes().split_at(SIGNED_LEN);
        signed
    }

    /// The signature as `r || s`, big-endian, 48 bytes each: the fixed form of
    /// ECDSA P-384 signatures. Only the lower 48 bytes of either field.
    pub fn signature_fixed(&self) -> [u8; 96] {
        ecdsa::to_fixed(&self.signature_r, &self.signature_s)
    }

    /// Places a signature given as `r || s`, big-endian, 48 bytes each.
    pub fn set_signature_fixed(&mut self, fixed: &[u8; 96]) {
        (self.signature_r, self.signature_s) = ecdsa::from_fixed(fixed);
    }

    /// The launch digest.
    pub fn launch_digest(&self) -> LaunchDigest {
        LaunchDigest::new(self.measurement)
    }
}

/// Which keys signed the report and the ID block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyInfo {
    /// The digest of the author key is in AUTHOR_KEY_DIGEST.
    pub author_key_enabled: bool,
    /// The processor was told not to sign: the signature is zero.
    pub mask_chip_key: bool,
    /// The key that signed the report.
    pub signing_key: SigningKey,
}

/// The key that signed a report (SIGNING_KEY).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SigningKey {
    /// The versioned chip endorsement key.
    Vcek,
    /// The versioned loaded endorsement key.
    Vlek,
    /// None.
    None,
}

/// PLATFORM_INFO: properties of the machine. Bits that this crate does not
/// know are carried and must be tolerated: real processors set bit 6, which the
/// published specification reserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlatformInfo(pub u64);

impl PlatformInfo {
    /// Bit 0: simultaneous multithreading is on.
    pub const SMT: u64 = 1 << 0;
    /// Bit 1: transparent SME is on.
    pub const TSME: u64 = 1 << 1;
    /// Bit 2: the memory has ECC.
    pub const ECC: u64 = 1 << 2;
    /// Bit 3: RAPL, a power side channel, is off.
    pub const RAPL_DISABLED: u64 = 1 << 3;
    /// Bit 4: ciphertext hiding is on.
    pub const CIPHERTEXT_HIDING: u64 = 1 << 4;
    /// Bit 5: the firmware found no aliased memory addresses (version 3 on).
    pub const ALIAS_CHECK_COMPLETE: u64 = 1 << 5;
    /// Bit 7: trusted I/O is on.
    pub const TIO: u64 = 1 << 7;
    /// Every bit with a meaning here.
    pub const KNOWN: u64 = Self::SMT
        | Self::TSME
        | Self::ECC
        | Self::RAPL_DISABLED
        | Self::CIPHERTEXT_HIDING
        | Self::ALIAS_CHECK_COMPLETE
        | Self::TIO;

    /// Whether all of `bits` are set.
    pub const fn contains(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// The set bits without a meaning here.
    pub const fn unknown_bits(self) -> u64 {
        self.0 & !Self::KNOWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(version: u32) -> AttestationReport {
        let mut report = AttestationReport::zeroed();
        report.version = version.into();
        report.signature_algo = SIGNATURE_ALGO_ECDSA_P384_SHA384.into();
        report.measurement = [0xab; 48];
        report.set_signature_fixed(&std::array::from_fn(|i| u8::try_from(i + 1).unwrap()));
        report
    }

    #[test]
    fn parse_and_encode_are_inverse() {
        for version in 2..=5 {
            let report = good(version);
            assert_eq!(AttestationReport::parse(&report.encode()), Ok(report));
        }
    }

    #[test]
    fn signature_changes_byte_order() {
        let report = good(5);
        let fixed = report.signature_fixed();
        assert_eq!(fixed, std::array::from_fn(|i| u8::try_from(i + 1).unwrap()));
        assert_eq!((report.signature_r[0], report.signature_r[47]), (48, 1));
        assert_eq!((report.signature_s[0], report.signature_s[47]), (96, 49));
    }

    #[test]
    fn each_rule_refuses_alone() {
        use ParseReportError as E;
        let bytes = good(5).encode();
        for len in [0, 1, REPORT_LEN - 1] {
            assert_eq!(
                AttestationReport::parse(&bytes[..len]),
                Err(E::Length { got: len })
            );
        }
        for (offset, value, error) in [
            (0, 1, E::Version { got: 1 }),
            (0, 6, E::Version { got: 6 }),
            (0x34, 0, E::SignatureAlgorithm { got: 0 }),
            (0x34, 2, E::SignatureAlgorithm { got: 2 }),
            (0x48, 0x20, E::KeyInfo { got: 0x20 }),
            (0x48, 2 << 2, E::KeyInfo { got: 8 }),
            (0x4b, 0x80, E::KeyInfo { got: 0x8000_0000 }),
        ] {
            let mut bytes = bytes;
            bytes[offset] = value;
            assert_eq!(
                AttestationReport::parse(&bytes),
                Err(error),
                "{offset:#x}={value:#x}"
            );
        }
    }

    /// The reserved ranges, written down a second time from the specification.
    #[test]
    fn reserved_ranges_are_exactly_those_of_the_version() {
        for version in 2..=5 {
            let reserved = |offset: usize| {
                matches!(offset, 0x4c..0x50 | 0x18b..0x1a0 | 0x1eb | 0x1ef | 0x208..0x2a0)
                    || matches!(offset, 0x2d0..0x2e8 | 0x318..0x4a0)
                    || (version == 2 && (0x188..0x18b).contains(&offset))
                    || (version < 5 && (0x1f8..0x208).contains(&offset))
            };
            let bytes = good(version).encode();
            for offset in 4..REPORT_LEN {
                let mut bytes = bytes;
                bytes[offset] ^= 0x80;
                let refused = matches!(
                    AttestationReport::read_layout(&bytes).unwrap().check_reserved(),
                    Err(ParseReportError::Reserved { offset: at }) if at == offset
                );
                assert_eq!(
                    refused,
                    reserved(offset),
                    "version {version}, offset {offset:#x}"
                );
            }
        }
    }

    #[test]
    fn key_info_is_decoded() {
        let mut report = good(3);
        report.key_info = 0b0_0111.into();
        let info = report.key_info().unwrap();
        assert!(info.author_key_enabled && info.mask_chip_key);
        assert_eq!(info.signing_key, SigningKey::Vlek);
        report.key_info = 0b1_1100.into();
        assert_eq!(report.key_info().unwrap().signing_key, SigningKey::None);
    }

    #[test]
    fn unknown_platform_bits_are_carried() {
        let info = PlatformInfo(0x67);
        assert!(info.contains(PlatformInfo::ALIAS_CHECK_COMPLETE | PlatformInfo::SMT));
        assert!(!info.contains(PlatformInfo::TIO));
        assert_eq!(info.unknown_bits(), 0x40);
    }
}
