//! How a root file system's partitions are known from its root hash (UAPI group,
//! *Discoverable Partitions Specification*, "Verity").

use crate::Sha256Digest;
use crate::guid::Guid;

/// SD_GPT_ROOT_X86_64.
pub const ROOT: Guid = Guid::new(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709);
/// SD_GPT_ROOT_X86_64_VERITY.
pub const ROOT_VERITY: Guid = Guid::new(0x2c73_57ed_ebd2_46d9_aec1_23d4_37ec_2bf5);

/// The identifiers of the partitions with data and with hash tree: the first and
/// the last 128 bits of the root hash, read as text.
pub fn root_partition_ids(root_hash: Sha256Digest) -> [Guid; 2] {
    let (first, last) = root_hash.as_bytes().split_at(16);
    [first, last].map(|half| {
        let half = half.first_chunk().copied().unwrap_or_default();
        Guid::new(u128::from_be_bytes(half))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_both_identifiers_is_the_root_hash() {
        let root_hash = Sha256Digest::of(b"root");
        let text = root_partition_ids(root_hash).map(|id| id.to_string().replace('-', ""));
        assert_eq!(text.concat(), root_hash.to_hex());
    }

    #[test]
    fn types_are_those_of_the_specification() {
        assert_eq!(ROOT.to_string(), "4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
        assert_eq!(
            ROOT_VERITY.to_string(),
            "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"
        );
    }
}
