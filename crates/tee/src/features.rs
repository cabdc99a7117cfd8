//! SEV_FEATURES by name (AMD APM vol. 2, table B-4, offset 0x3b0): people think
//! of "DebugSwap", digests of 0x20.

use std::fmt;
use std::str::FromStr;

use crate::GuestFeatures;

/// Every bit with a meaning, by the APM's name.
const NAMES: [(&str, u64); 15] = [
    ("SNPActive", GuestFeatures::SNP_ACTIVE),
    ("vTOM", 1 << 1),
    ("ReflectVC", 1 << 2),
    ("RestrictedInjection", 1 << 3),
    ("AlternateInjection", 1 << 4),
    ("DebugSwap", GuestFeatures::DEBUG_SWAP),
    ("PreventHostIBS", 1 << 6),
    ("BTBIsolation", 1 << 7),
    ("VmplSSS", 1 << 8),
    ("SecureTSC", 1 << 9),
    ("VmgexitParameter", 1 << 10),
    ("IbsVirtualization", 1 << 12),
    ("VmsaRegProt", 1 << 14),
    ("SmtProtection", 1 << 15),
    ("SecureAVIC", 1 << 16),
];

impl GuestFeatures {
    /// Bit 0: the guest is an SEV-SNP guest.
    pub const SNP_ACTIVE: u64 = 1;
    /// Bit 5: debug registers are swapped on exits. Linux 6.6 and 6.7 set it
    /// for every SNP guest where the processor has it, other versions only
    /// where the VMM asks for it.
    pub const DEBUG_SWAP: u64 = 1 << 5;

    /// Every bit with a meaning and the APM's name for it, lowest first.
    pub fn named() -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter()
    }
}

/// Text names no set of guest features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseGuestFeaturesError {
    /// A number that is none, or needs more than 64 bits.
    Number {
        /// The text.
        got: String,
    },
    /// A name that the APM does not have.
    Name {
        /// The text.
        got: String,
    },
}

impl fmt::Display for ParseGuestFeaturesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { got } => write!(
                f,
                "{got:?} is no number of at most 64 bits; write it in decimal or after 0x"
            ),
            Self::Name { got } => {
                let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
                write!(f, "unknown guest feature {got:?}; known: ")?;
                f.write_str(&names.join(", "))
            }
        }
    }
}

impl std::error::Error for ParseGuestFeaturesError {}

impl FromStr for GuestFeatures {
    type Err = ParseGuestFeaturesError;

    /// A number, decimal or hexadecimal after `0x`, or the APM's names in any
    /// case with commas between them, such as `SNPActive,DebugSwap`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
            let number = match hex {
                // The standard library would take a sign here.
                Some(digits) if digits.starts_with('+') => None,
                Some(digits) => u64::from_str_radix(digits, 16).ok(),
                None => text.parse().ok(),
            };
            return number
                .map(Self)
                .ok_or_else(|| ParseGuestFeaturesError::Number {
                    got: text.to_owned(),
                });
        }
        let bit = |name: &str| {
            let known = NAMES
                .iter()
                .find(|known| known.0.eq_ignore_ascii_case(name));
            known
                .map(|(_, bit)| *bit)
                .ok_or_else(|| ParseGuestFeaturesError::Name {
                    got: name.to_owned(),
                })
        };
        let bits = text.split(',').map(bit);
        bits.reduce(|set, bit| Ok(set? | bit?))
            .unwrap_or(Ok(0))
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_read() {
        for (text, features) in [
            ("1", 1),
            ("0x21", 0x21),
            ("0XFFFFFFFFFFFFFFFF", u64::MAX),
            ("SNPActive", 1),
            ("snpactive,DEBUGSWAP", 0x21),
            ("SNPActive,SecureTSC,SmtProtection", 0x8201),
        ] {
            assert_eq!(text.parse(), Ok(GuestFeatures(features)), "{text}");
        }
    }

    #[test]
    fn nothing_else_is() {
        for text in [
            "0x10000000000000000",
            "18446744073709551616",
            "0x",
            "0x+1",
            "1_0",
        ] {
            let got = text.to_owned();
            let error = ParseGuestFeaturesError::Number { got };
            assert_eq!(text.parse::<GuestFeatures>(), Err(error), "{text}");
        }
        for (text, name) in [
            ("", ""),
            ("SNPActive,", ""),
            ("-1", "-1"),
            ("SNPActive,Debug", "Debug"),
            ("SNPActive DebugSwap", "SNPActive DebugSwap"),
        ] {
            let got = name.to_owned();
            let error = ParseGuestFeaturesError::Name { got };
            assert_eq!(text.parse::<GuestFeatures>(), Err(error), "{text}");
        }
    }

    #[test]
    fn every_bit_has_one_name() {
        let mut bits: Vec<_> = NAMES.iter().map(|(_, bit)| *bit).collect();
        assert!(bits.iter().all(|bit| bit.is_power_of_two()));
        bits.dedup();
        assert!(bits.is_sorted());
        assert_eq!(bits.len(), NAMES.len());
    }
}
