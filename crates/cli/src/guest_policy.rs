//! The guest policy as people write it.

use std::str::FromStr;

use anyhow::{Result, ensure};
use assay_tee::GuestPolicy;

use crate::measure::parse_u64;

/// A guest policy, decimal or 0x and hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PolicyArg(GuestPolicy);

impl PolicyArg {
    /// The policy of `--policy`, if a processor could launch it. Says so where
    /// it protects nothing.
    pub(crate) fn checked(self) -> Result<GuestPolicy> {
        let policy = self.0;
        ensure!(
            policy.unknown_bits() == 0,
            "--policy {:#x} sets the reserved bits {:#x}; clear them",
            policy.0,
            policy.unknown_bits()
        );
        ensure!(
            policy.contains(GuestPolicy::RESERVED_MUST_BE_ONE),
            "--policy {:#x} has bit 17 clear, which must be one; use {:#x}",
            policy.0,
            policy.0 | GuestPolicy::RESERVED_MUST_BE_ONE
        );
        if policy.contains(GuestPolicy::DEBUG) {
            eprintln!("warning: --policy allows debugging: the host can read and write the guest");
        }
        Ok(policy)
    }
}

impl FromStr for PolicyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_u64(text).map(|value| Self(GuestPolicy(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        let policy = Ok(PolicyArg(GuestPolicy(0x3_0000)));
        assert_eq!("0x30000".parse(), policy);
        assert_eq!("196608".parse(), policy);
        for text in ["", "0x", "30000h", "0x1ffffffffffffffff"] {
            assert!(text.parse::<PolicyArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_no_processor_launches_is_refused() {
        for (value, says) in [
            (0x1_0000, "use 0x30000"),
            (0x8000_0000_0003_0000, "0x8000000000000000"),
        ] {
            let refused = PolicyArg(GuestPolicy(value)).checked().unwrap_err();
            assert!(refused.to_string().contains(says), "{refused}");
        }
        assert!(PolicyArg(GuestPolicy(0x3_0000)).checked().is_ok());
    }
}
