//! The launch shape: every choice outside the image's bytes that changes a
//! launch digest.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The trusted execution environment that a guest runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tee {
    /// AMD SEV-SNP.
    #[serde(rename = "SNP")]
    Snp,
    /// A simulated SEV-SNP processor: proves the logic, protects nothing.
    #[serde(rename = "SimulatedSNP")]
    SimulatedSnp,
}

impl Tee {
    /// Whether real hardware protects the guest.
    pub const fn is_hardware(self) -> bool {
        match self {
            Self::Snp => true,
            Self::SimulatedSnp => false,
        }
    }
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snp => "SNP",
            Self::SimulatedSnp => "SimulatedSNP",
        })
    }
}

/// How the UKI reaches the guest.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum BootMethod {
    /// QEMU loads firmware and UKI; the hashes page is measured and the
    /// firmware verifies the UKI against it.
    #[default]
    DirectKernel,
    /// QEMU loads one IGVM file that holds firmware and UKI. Both are measured,
    /// and the firmware takes the UKI from guest memory.
    #[serde(rename = "IGVM")]
    Igvm,
}

impl fmt::Display for BootMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DirectKernel => "DirectKernel",
            Self::Igvm => "IGVM",
        })
    }
}

/// Number of virtual CPUs of a guest: 1 to 512.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VcpuCount(u32);

impl VcpuCount {
    /// Most vCPUs that a guest may have.
    pub const MAX: u32 = 512;
    /// A single vCPU.
    pub const ONE: Self = Self(1);

    /// The count as a number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A vCPU count outside 1 to 512.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("vcpus must be between 1 and {max}, got {got}", max = VcpuCount::MAX)]
pub struct VcpuCountError {
    got: u32,
}

impl TryFrom<u32> for VcpuCount {
    type Error = VcpuCountError;

    fn try_from(got: u32) -> Result<Self, Self::Error> {
        if (1..=Self::MAX).contains(&got) {
            Ok(Self(got))
        } else {
            Err(VcpuCountError { got })
        }
    }
}

impl From<VcpuCount> for u32 {
    fn from(count: VcpuCount) -> Self {
        count.0
    }
}

/// SEV_FEATURES of the guest's VMSA (AMD APM vol. 2, table B-4, offset 0x3b0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestFeatures(pub u64);

impl Default for GuestFeatures {
    /// SNPActive alone: what KVM sets since Linux 6.8.
    fn default() -> Self {
        Self(1)
    }
}

/// The guest policy that the processor enforces (SEV-SNP ABI, GUEST_POLICY).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestPolicy(pub u64);

impl GuestPolicy {
    /// Bit 16: simultaneous multithreading is allowed.
    pub const SMT: u64 = 1 << 16;
    /// Bit 17: reserved, must be one.
    pub const RESERVED_MUST_BE_ONE: u64 = 1 << 17;
    /// Bit 18: association with a migration agent is allowed.
    pub const MIGRATE_MA: u64 = 1 << 18;
    /// Bit 19: debugging is allowed.
    pub const DEBUG: u64 = 1 << 19;
    /// Bit 20: the guest may run on one socket only.
    pub const SINGLE_SOCKET: u64 = 1 << 20;
    /// Bit 21: CXL devices are allowed.
    pub const CXL_ALLOW: u64 = 1 << 21;
    /// Bit 22: memory must be encrypted with AES-256-XTS.
    pub const MEM_AES_256_XTS: u64 = 1 << 22;
    /// Bit 23: RAPL must be off.
    pub const RAPL_DIS: u64 = 1 << 23;
    /// Bit 24: ciphertext hiding must be on.
    pub const CIPHERTEXT_HIDING_DRAM: u64 = 1 << 24;
    /// Bit 25: the page swap and move commands must be off.
    pub const PAGE_SWAP_DISABLE: u64 = 1 << 25;
    /// Every bit with a meaning: the ABI version in 15:0, and 25:16.
    pub const KNOWN: u64 = (1 << 26) - 1;

    /// Whether all of `bits` are set.
    pub const fn contains(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// The set bits without a meaning. A policy that has any is invalid.
    pub const fn unknown_bits(self) -> u64 {
        self.0 & !Self::KNOWN
    }

    /// The least ABI version of the firmware, major before minor.
    pub const fn minimum_abi(self) -> (u8, u8) {
        let [minor, major, ..] = self.0.to_le_bytes();
        (major, minor)
    }
}

impl Default for GuestPolicy {
    /// SMT allowed, nothing else: the policy that needs no special platform.
    fn default() -> Self {
        Self(Self::SMT | Self::RESERVED_MUST_BE_ONE)
    }
}

/// Everything but bytes that a launch digest depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LaunchShape {
    /// The trusted execution environment.
    pub tee: Tee,
    /// How the UKI reaches the guest.
    pub boot: BootMethod,
    /// Number of virtual CPUs.
    pub vcpus: VcpuCount,
    /// CPU model by QEMU's name, such as `EPYC-v4`.
    pub cpu_model: String,
    /// SEV_FEATURES of every VMSA.
    pub guest_features: GuestFeatures,
}
