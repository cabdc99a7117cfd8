//! The fields of an ID block: from options, and to text.

use std::fmt::Write as _;
use std::str::FromStr;

use anyhow::Result;
use assay_attest::policy::GuestPolicyBit;
use assay_tee::LaunchDigest;
use assay_tee::id_block::IdBlock;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::guest_policy::PolicyArg;

/// What the owner wants to be launched.
#[derive(Debug, clap::Args)]
pub(super) struct BlockArgs {
    /// Launch digest: sha384:<hex>, 96 hex digits, or base64
    #[arg(long, value_name = "DIGEST")]
    launch_digest: Digest,
    /// FAMILY_ID, 32 hex digits [default: zeros]
    #[arg(long, value_name = "HEX", default_value_t, hide_default_value = true)]
    family_id: Identity,
    /// IMAGE_ID, 32 hex digits [default: zeros]
    #[arg(long, value_name = "HEX", default_value_t, hide_default_value = true)]
    image_id: Identity,
    /// GUEST_SVN, the security version of the image
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    guest_svn: u32,
    /// Guest policy, decimal or 0x and hexadecimal
    #[arg(long, value_name = "NUMBER", default_value = "0x30000")]
    policy: PolicyArg,
}

impl BlockArgs {
    /// The block, if a processor could launch it.
    pub(super) fn to_block(&self) -> Result<IdBlock> {
        let mut block = IdBlock::new(self.launch_digest.0, self.policy.checked()?);
        block.family_id = self.family_id.0;
        block.image_id = self.image_id.0;
        block.guest_svn = self.guest_svn.into();
        Ok(block)
    }
}

/// A launch digest in any of its written forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digest(LaunchDigest);

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("sha384:").unwrap_or(text);
        let mut bytes = [0; LaunchDigest::LEN];
        if hex::decode_to_slice(digits, &mut bytes).is_ok() {
            return Ok(Self(LaunchDigest::new(bytes)));
        }
        STANDARD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(|bytes| Self(LaunchDigest::new(bytes)))
            .ok_or_else(|| {
                "neither 96 hex digits nor 64 characters of base64, which a launch digest has"
                    .to_owned()
            })
    }
}

/// An identity that the owner chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Identity([u8; 16]);

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| "not 32 hex digits (16 bytes); pad a shorter identity yourself")?;
        Ok(Self(bytes))
    }
}

pub(super) fn to_json(block: &IdBlock) -> Value {
    json!({
        "launchDigest": block.launch_digest(),
        "familyId": hex::encode(block.family_id),
        "imageId": hex::encode(block.image_id),
        "guestSvn": block.guest_svn.get(),
        "policy": format!("{:#x}", block.policy),
    })
}

pub(super) fn to_text(block: &IdBlock) -> String {
    let mut policy = format!("{:#x}", block.policy);
    for bit in GuestPolicyBit::ALL.iter().copied() {
        if block.policy().contains(bit.mask()) {
            let _ = write!(policy, " {}", bit.name());
        }
    }
    format!(
        "launch digest      {}\nfamily ID          {}\nimage ID           {}\n\
         guest SVN          {}\nguest policy       {policy}",
        hex::encode(block.launch_digest),
        hex::encode(block.family_id),
        hex::encode(block.image_id),
        block.guest_svn,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launch_digests_are_read_in_every_form() {
        let digest = LaunchDigest::new(std::array::from_fn(|i| u8::try_from(i).unwrap()));
        let base64 = STANDARD.encode(digest.as_bytes());
        for text in [
            digest.to_string(),
            digest.to_hex(),
            digest.to_hex().to_uppercase(),
            base64.clone(),
        ] {
            assert_eq!(text.parse(), Ok(Digest(digest)), "{text}");
        }
        for text in ["", "00", &digest.to_hex()[2..], &base64[4..], "sha384:"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn identities_have_sixteen_bytes() {
        assert!("00".parse::<Identity>().is_err());
        assert_eq!("01".repeat(16).parse(), Ok(Identity([1; 16])));
    }
}
