//! Products and their TCB versions (SEV-SNP ABI, TCB_VERSION).
//!
//! A TCB version is eight bytes whose layout depends on the product. It is
//! compared component by component: as one number, a new microcode would hide
//! an old SNP firmware.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A line of processors that share a root key and a TCB layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004, 8004 and 97x4 (Genoa, Siena, Bergamo).
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl Product {
    /// Every product.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// The product of a CPUID family and model (both with their extended parts
    /// added), as reports carry them since version 3.
    ///
    /// # Errors
    /// When no known product has this family and model.
    pub const fn from_cpuid(family: u8, model: u8) -> Result<Self, UnknownProductError> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Ok(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Ok(Self::Genoa),
            (0x1a, 0x00..=0x11) => Ok(Self::Turin),
            _ => Err(UnknownProductError { family, model }),
        }
    }

    /// The name in certificates (`ARK-{name}`, `SEV-{name}`) and KDS addresses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }

    /// Bytes of the chip's identity: the others of CHIP_ID are zero.
    pub const fn chip_id_len(self) -> usize {
        match self {
            Self::Milan | Self::Genoa => 64,
            Self::Turin => 8,
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Product {
    type Err = ParseProductError;

    /// Reads the productName of a VCEK: `Genoa`, or with a stepping `Milan-B0`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let line = text.split_once('-').map_or(text, |(line, _)| line);
        Self::ALL
            .into_iter()
            .find(|product| product.name() == line)
            .ok_or_else(|| ParseProductError(text.to_owned()))
    }
}

/// No known product has this CPUID family and model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no known product has CPUID family {family:#x} and model {model:#x}")]
pub struct UnknownProductError {
    family: u8,
    model: u8,
}

/// A name that no known product has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown product name {0:?}")]
pub struct ParseProductError(String);

/// One component of a TCB version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TcbComponent {
    /// Firmware of the FMC; Turin only.
    Fmc,
    /// Boot loader of the secure processor.
    Bootloader,
    /// Operating system of the secure processor.
    Tee,
    /// SNP firmware.
    Snp,
    /// Microcode of the cores.
    Microcode,
}

impl fmt::Display for TcbComponent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fmc => "fmc",
            Self::Bootloader => "bootloader",
            Self::Tee => "tee",
            Self::Snp => "snp",
            Self::Microcode => "microcode",
        })
    }
}

/// Security versions of the firmware that protects a guest.
///
/// Not `Ord`: of two TCB versions, neither need be the newer. Compare with
/// [`TcbVersion::shortfalls`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcbVersion {
    /// Firmware of the FMC: present on Turin, absent on Milan and Genoa.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fmc: Option<u8>,
    /// Boot loader of the secure processor.
    pub bootloader: u8,
    /// Operating system of the secure processor.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode of the cores.
    pub microcode: u8,
}

/// A TCB version that its product cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TcbError {
    /// A reserved byte is not zero.
    #[error("reserved byte {offset} of a {product} TCB version is not zero")]
    Reserved {
        /// The product whose layout was used.
        product: Product,
        /// Offset of the byte in the TCB version.
        offset: usize,
    },
    /// The `fmc` component is present or absent against the product's layout.
    #[error(
        "fmc must be present on Turin and absent elsewhere, which this version for {product} is not"
    )]
    Layout {
        /// The product whose layout was used.
        product: Product,
    },
}

impl TcbVersion {
    /// Reads the eight bytes of a report.
    ///
    /// # Errors
    /// When a byte that `product` reserves is not zero.
    pub fn parse(product: Product, raw: [u8; 8]) -> Result<Self, TcbError> {
        let (tcb, reserved, first) = match product {
            Product::Milan | Product::Genoa => {
                let [bootloader, tee, r2, r3, r4, r5, snp, microcode] = raw;
                (
                    Self {
                        fmc: None,
                        bootloader,
                        tee,
                        snp,
                        microcode,
                    },
                    [r2, r3, r4, r5],
                    2,
                )
            }
            Product::Turin => {
                let [fmc, bootloader, tee, snp, r4, r5, r6, microcode] = raw;
                (
                    Self {
                        fmc: Some(fmc),
                        bootloader,
                        tee,
                        snp,
                        microcode,
                    },
                    [r4, r5, r6, 0],
                    4,
                )
            }
        };
        match reserved.iter().position(|&byte| byte != 0) {
            Some(index) => Err(TcbError::Reserved {
                product,
                offset: first + index,
            }),
            None => Ok(tcb),
        }
    }

    /// Writes the eight bytes of a report.
    ///
    /// # Errors
    /// When `fmc` is present on a product without it, or absent on Turin.
    pub fn encode(&self, product: Product) -> Result<[u8; 8], TcbError> {
        let Self {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        } = *self;
        match (product, fmc) {
            (Product::Milan | Product::Genoa, None) => {
                Ok([bootloader, tee, 0, 0, 0, 0, snp, microcode])
            }
            (Product::Turin, Some(fmc)) => Ok([fmc, bootloader, tee, snp, 0, 0, 0, microcode]),
            _ => Err(TcbError::Layout { product }),
        }
    }

    /// The components that are older than `minimum` asks; empty when none is.
    ///
    /// A version with `fmc` and one without belong to different products: then
    /// `fmc` is listed.
    pub fn shortfalls(&self, minimum: &Self) -> Vec<TcbComponent> {
        let fmc = match (self.fmc, minimum.fmc) {
            (Some(have), Some(want)) => have < want,
            (None, None) => false,
            _ => true,
        };
        [
            (TcbComponent::Fmc, fmc),
            (
                TcbComponent::Bootloader,
                self.bootloader < minimum.bootloader,
            ),
            (TcbComponent::Tee, self.tee < minimum.tee),
            (TcbComponent::Snp, self.snp < minimum.snp),
            (TcbComponent::Microcode, self.microcode < minimum.microcode),
        ]
        .into_iter()
        .filter_map(|(component, short)| short.then_some(component))
        .collect()
    }

    /// Whether no component is older than `minimum` asks.
    pub fn covers(&self, minimum: &Self) -> bool {
        self.shortfalls(minimum).is_empty()
    }
}

impl fmt::Display for TcbVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc={fmc} ")?;
        }
        let Self {
            bootloader,
            tee,
            snp,
            microcode,
            ..
        } = self;
        write!(
            f,
            "bootloader={bootloader} tee={tee} snp={snp} microcode={microcode}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENOA: TcbVersion = TcbVersion {
        fmc: None,
        bootloader: 9,
        tee: 0,
        snp: 23,
        microcode: 72,
    };

    #[test]
    fn layouts_follow_the_product() {
        let raw = [9, 0, 0, 0, 0, 0, 23, 72];
        assert_eq!(TcbVersion::parse(Product::Genoa, raw), Ok(GENOA));
        assert_eq!(GENOA.encode(Product::Genoa), Ok(raw));

        let raw = [1, 2, 3, 4, 0, 0, 0, 71];
        let turin = TcbVersion {
            fmc: Some(1),
            bootloader: 2,
            tee: 3,
            snp: 4,
            microcode: 71,
        };
        assert_eq!(TcbVersion::parse(Product::Turin, raw), Ok(turin));
        assert_eq!(turin.encode(Product::Turin), Ok(raw));
        assert_eq!(
            turin.encode(Product::Milan),
            Err(TcbError::Layout {
                product: Product::Milan
            })
        );
        assert_eq!(
            TcbVersion::parse(Product::Genoa, raw),
            Err(TcbError::Reserved {
                product: Product::Genoa,
                offset: 2
            })
        );
    }

    #[test]
    fn comparison_is_by_component() {
        assert!(GENOA.covers(&GENOA));
        // As one little-endian number this would be the newer version.
        let mixed = TcbVersion {
            snp: 22,
            microcode: 255,
            ..GENOA
        };
        assert_eq!(mixed.shortfalls(&GENOA), [TcbComponent::Snp]);
        let turin = TcbVersion {
            fmc: Some(0),
            ..GENOA
        };
        assert_eq!(turin.shortfalls(&GENOA), [TcbComponent::Fmc]);
        assert_eq!(GENOA.shortfalls(&turin), [TcbComponent::Fmc]);
    }

    #[test]
    fn products_have_names_and_models() {
        for (family, model, product) in [
            (0x19, 0x01, Product::Milan),
            (0x19, 0x11, Product::Genoa),
            (0x19, 0xa0, Product::Genoa),
            (0x19, 0xaf, Product::Genoa),
            (0x1a, 0x02, Product::Turin),
            (0x1a, 0x11, Product::Turin),
        ] {
            assert_eq!(Product::from_cpuid(family, model), Ok(product));
        }
        for (family, model) in [
            (0x19, 0x20),
            (0x19, 0xb0),
            (0x1a, 0x12),
            (0x17, 0x31),
            (0, 0),
        ] {
            assert!(
                Product::from_cpuid(family, model).is_err(),
                "{family:#x} {model:#x}"
            );
        }
        assert_eq!("Milan-B0".parse(), Ok(Product::Milan));
        assert_eq!("Turin".parse(), Ok(Product::Turin));
        for name in ["", "milan", "Milan2", "-Milan", "Venice"] {
            assert!(name.parse::<Product>().is_err(), "{name}");
        }
    }
}
