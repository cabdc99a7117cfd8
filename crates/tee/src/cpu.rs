//! CPU models by QEMU's names, and the CPUID signature that each puts into the
//! VMSA and so into the launch digest.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Family, model and stepping as CPUID Fn0000_0001 returns them in EAX (AMD APM
/// vol. 3, appendix E).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CpuSignature(pub u32);

impl CpuSignature {
    /// The signature of a family, model and stepping as people write them
    /// (family 25 = 19h for Milan).
    ///
    /// # Errors
    /// When a number does not fit its field: family up to 270 (0xf plus an
    /// 8-bit extension), model up to 255, stepping up to 15.
    pub const fn from_family_model_stepping(
        family: u32,
        model: u32,
        stepping: u32,
    ) -> Result<Self, CpuSignatureError> {
        if family > 0xf + 0xff {
            return Err(CpuSignatureError::Family(family));
        }
        if model > 0xff {
            return Err(CpuSignatureError::Model(model));
        }
        if stepping > 0xf {
            return Err(CpuSignatureError::Stepping(stepping));
        }
        let (base_family, ext_family) = if family > 0xf {
            (0xf, family - 0xf)
        } else {
            (family, 0)
        };
        let (base_model, ext_model) = (model & 0xf, model >> 4);
        Ok(Self(
            (ext_family << 20)
                | (ext_model << 16)
                | (base_family << 8)
                | (base_model << 4)
                | stepping,
        ))
    }
}

impl fmt::Display for CpuSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}", self.0)
    }
}

impl fmt::Debug for CpuSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A number does not fit its field of the CPUID signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CpuSignatureError {
    /// The family is above 270.
    #[error("CPU family must be at most 270 (0x10e), got {0}")]
    Family(u32),
    /// The model is above 255.
    #[error("CPU model number must be at most 255, got {0}")]
    Model(u32),
    /// The stepping is above 15.
    #[error("CPU stepping must be at most 15, got {0}")]
    Stepping(u32),
}

/// A CPU model that QEMU offers for SEV guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuModel {
    name: &'static str,
    signature: CpuSignature,
}

const NAPLES: CpuSignature = CpuSignature(0x0080_0f12);
const ROME: CpuSignature = CpuSignature(0x0083_0f10);
const MILAN: CpuSignature = CpuSignature(0x00a0_0f11);
const GENOA: CpuSignature = CpuSignature(0x00a1_0f10);
const TURIN: CpuSignature = CpuSignature(0x00b0_0f00);

const fn model(name: &'static str, signature: CpuSignature) -> CpuModel {
    CpuModel { name, signature }
}

/// Every EPYC model of `qemu-system-x86_64 -cpu help` (QEMU 10.1, and Turin's
/// second version of QEMU 11). The versions of a model differ in features, not
/// in the signature.
const MODELS: [CpuModel; 23] = [
    model("EPYC", NAPLES),
    model("EPYC-v1", NAPLES),
    model("EPYC-v2", NAPLES),
    model("EPYC-IBPB", NAPLES),
    model("EPYC-v3", NAPLES),
    model("EPYC-v4", NAPLES),
    model("EPYC-v5", NAPLES),
    model("EPYC-Rome", ROME),
    model("EPYC-Rome-v1", ROME),
    model("EPYC-Rome-v2", ROME),
    model("EPYC-Rome-v3", ROME),
    model("EPYC-Rome-v4", ROME),
    model("EPYC-Rome-v5", ROME),
    model("EPYC-Milan", MILAN),
    model("EPYC-Milan-v1", MILAN),
    model("EPYC-Milan-v2", MILAN),
    model("EPYC-Milan-v3", MILAN),
    model("EPYC-Genoa", GENOA),
    model("EPYC-Genoa-v1", GENOA),
    model("EPYC-Genoa-v2", GENOA),
    model("EPYC-Turin", TURIN),
    model("EPYC-Turin-v1", TURIN),
    model("EPYC-Turin-v2", TURIN),
];

impl CpuModel {
    /// Every known model, older ones first.
    pub fn all() -> impl Iterator<Item = Self> {
        MODELS.into_iter()
    }

    /// The model of QEMU's name `name`, in QEMU's spelling.
    ///
    /// # Errors
    /// When QEMU has no such EPYC model; the message lists those it has.
    pub fn by_name(name: &str) -> Result<Self, UnknownCpuModelError> {
        Self::all()
            .find(|model| model.name == name)
            .ok_or_else(|| UnknownCpuModelError {
                name: name.to_owned(),
            })
    }

    /// QEMU's name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The signature that QEMU gives the model.
    pub const fn signature(&self) -> CpuSignature {
        self.signature
    }
}

/// A name that is no EPYC model of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownCpuModelError {
    name: String,
}

impl fmt::Display for UnknownCpuModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown CPU model {:?}", self.name)?;
        let meant = CpuModel::all().find(|model| model.name.eq_ignore_ascii_case(&self.name));
        if let Some(meant) = meant {
            return write!(f, ": QEMU spells it {}", meant.name);
        }
        if self.name == "host" || self.name == "max" {
            f.write_str(
                ": its signature is the host's, so a launch digest can only be computed from \
                 an explicit signature",
            )?;
        }
        let names: Vec<_> = CpuModel::all().map(|model| model.name).collect();
        write!(f, "; known models: {}", names.join(", "))
    }
}

impl std::error::Error for UnknownCpuModelError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_family_model_and_stepping() {
        for (name, family, model, stepping) in [
            ("EPYC-v4", 23, 1, 2),
            ("EPYC-Rome-v5", 23, 49, 0),
            ("EPYC-Milan-v3", 25, 1, 1),
            ("EPYC-Genoa-v2", 25, 17, 0),
            ("EPYC-Turin", 26, 0, 0),
        ] {
            let computed = CpuSignature::from_family_model_stepping(family, model, stepping);
            assert_eq!(
                computed,
                Ok(CpuModel::by_name(name).unwrap().signature()),
                "{name}"
            );
        }
        assert_eq!(
            CpuSignature::from_family_model_stepping(14, 1, 2),
            Ok(CpuSignature(0xe12)),
            "families up to 15 have no extension"
        );
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = CpuModel::all().map(|model| model.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CpuModel::all().count());
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let signature = CpuSignature::from_family_model_stepping;
        assert_eq!(signature(271, 0, 0), Err(CpuSignatureError::Family(271)));
        assert_eq!(signature(25, 256, 0), Err(CpuSignatureError::Model(256)));
        assert_eq!(signature(25, 1, 16), Err(CpuSignatureError::Stepping(16)));
    }

    #[test]
    fn unknown_names_are_explained() {
        let message = |name| CpuModel::by_name(name).unwrap_err().to_string();
        assert_eq!(
            message("epyc-milan"),
            "unknown CPU model \"epyc-milan\": QEMU spells it EPYC-Milan"
        );
        assert!(message("Skylake").contains("known models: EPYC, EPYC-v1"));
        assert!(message("host").contains("explicit signature"));
    }
}
