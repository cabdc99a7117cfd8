//! The ID block and its authentication (SEV-SNP ABI, SNP_LAUNCH_FINISH, tables
//! *Structure of the ID Block* and *Structure of the ID Authentication
//! Information*).
//!
//! The guest's owner states which launch digest and guest policy he wants, and
//! signs that. The processor refuses any other launch, and reports the digest of
//! the owner's key. Layout alone: signatures are made and verified elsewhere.

#![allow(
    clippy::used_underscore_binding,
    reason = "reserved fields are read to check that they are zero"
)]

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ecdsa::{self, P384_LEN};
use crate::{GuestPolicy, LaunchDigest, Sha384Digest};

/// Length of an ID block in bytes.
pub const ID_BLOCK_LEN: usize = 0x60;
/// Length of the authentication in bytes.
pub const ID_AUTH_LEN: usize = 0x1000;
/// Length of a public key in bytes: what a key's digest is taken over.
pub const PUBLIC_KEY_LEN: usize = 0x404;
/// The only version of the ID block.
pub const ID_BLOCK_VERSION: u32 = 1;
/// ID_KEY_ALGO and AUTH_KEY_ALGO of ECDSA P-384 with SHA-384.
pub const KEY_ALGORITHM_ECDSA_P384_SHA384: u32 = 1;
/// CURVE of P-384.
pub const CURVE_P384: u32 = 2;

/// What the guest's owner wants to be launched: the message that the ID key
/// signs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdBlock {
    /// LD: the only launch digest to accept.
    pub launch_digest: [u8; 48],
    /// FAMILY_ID: the owner's choice, carried into reports.
    pub family_id: [u8; 16],
    /// IMAGE_ID: the owner's choice, carried into reports.
    pub image_id: [u8; 16],
    /// VERSION, always [`ID_BLOCK_VERSION`].
    pub version: U32,
    /// GUEST_SVN: security version of the image, carried into reports.
    pub guest_svn: U32,
    /// POLICY: the only guest policy to accept.
    pub policy: U64,
}

const _: () = {
    assert!(size_of::<IdBlock>() == ID_BLOCK_LEN);
    assert!(offset_of!(IdBlock, family_id) == 0x30);
    assert!(offset_of!(IdBlock, image_id) == 0x40);
    assert!(offset_of!(IdBlock, version) == 0x50);
    assert!(offset_of!(IdBlock, guest_svn) == 0x54);
    assert!(offset_of!(IdBlock, policy) == 0x58);
};

impl IdBlock {
    /// A block for this launch, with identities and security version zero.
    pub fn new(launch_digest: LaunchDigest, policy: GuestPolicy) -> Self {
        Self {
            launch_digest: *launch_digest.as_bytes(),
            family_id: [0; 16],
            image_id: [0; 16],
            version: ID_BLOCK_VERSION.into(),
            guest_svn: 0.into(),
            policy: policy.0.into(),
        }
    }

    /// Reads a block of the known version.
    ///
    /// # Errors
    /// When length or version are wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseIdBlockError> {
        let block = Self::read_from_bytes(bytes).map_err(|_| ParseIdBlockError::Length {
            what: "an ID block",
            need: ID_BLOCK_LEN,
            got: bytes.len(),
        })?;
        match block.version.get() {
            ID_BLOCK_VERSION => Ok(block),
            got => Err(ParseIdBlockError::Version { got }),
        }
    }

    /// The block's bytes: what the ID key signs.
    pub fn encode(&self) -> [u8; ID_BLOCK_LEN] {
        zerocopy::transmute!(*self)
    }

    /// The launch digest to accept.
    pub fn launch_digest(&self) -> LaunchDigest {
        LaunchDigest::new(self.launch_digest)
    }

    /// The guest policy to accept.
    pub fn policy(&self) -> GuestPolicy {
        GuestPolicy(self.policy.get())
    }
}

/// A signature (table *ECDSA P-384 with SHA-384 Signature Format*).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct EcdsaSignature {
    r: [u8; 72],
    s: [u8; 72],
    _rsvd_0x90: [u8; 0x170],
}

const _: () = {
    assert!(size_of::<EcdsaSignature>() == 0x200);
    assert!(offset_of!(EcdsaSignature, s) == 0x48);
};

impl EcdsaSignature {
    /// A signature given as `r || s`, big-endian, 48 bytes each.
    pub fn from_fixed(fixed: &[u8; 96]) -> Self {
        let (r, s) = ecdsa::from_fixed(fixed);
        Self {
            r,
            s,
            _rsvd_0x90: [0; 0x170],
        }
    }

    /// The signature as `r || s`, big-endian, 48 bytes each.
    pub fn to_fixed(&self) -> [u8; 96] {
        ecdsa::to_fixed(&self.r, &self.s)
    }

    /// Whether every byte is zero: there is no signature.
    pub fn is_absent(&self) -> bool {
        first_nonzero(self.as_bytes()).is_none()
    }

    /// Offset of the first reserved byte that is not zero.
    fn reserved_offset(&self) -> Option<usize> {
        first_reserved(&[
            (P384_LEN, self.r.split_at(P384_LEN).1),
            (0x48 + P384_LEN, self.s.split_at(P384_LEN).1),
            (0x90, &self._rsvd_0x90),
        ])
    }
}

/// A public key (table *ECDSA P-384 Public Key Format*). The digest that
/// reports carry is taken over all of it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct EcdsaPublicKey {
    curve: U32,
    qx: [u8; 72],
    qy: [u8; 72],
    _rsvd_0x94: [u8; 0x370],
}

const _: () = {
    assert!(size_of::<EcdsaPublicKey>() == PUBLIC_KEY_LEN);
    assert!(offset_of!(EcdsaPublicKey, qx) == 0x04);
    assert!(offset_of!(EcdsaPublicKey, qy) == 0x4c);
    assert!(offset_of!(EcdsaPublicKey, _rsvd_0x94) == 0x94);
};

impl EcdsaPublicKey {
    /// A key on P-384 given as `x || y`, big-endian, 48 bytes each. Whether they
    /// are a point of the curve is not checked.
    pub fn from_coordinates(coordinates: &[u8; 96]) -> Self {
        let (qx, qy) = ecdsa::from_fixed(coordinates);
        Self {
            curve: CURVE_P384.into(),
            qx,
            qy,
            _rsvd_0x94: [0; 0x370],
        }
    }

    /// The uncompressed point: `04 || x || y`, big-endian.
    pub fn to_point(&self) -> [u8; 97] {
        let mut point = [4; 97];
        let (_, coordinates) = point.split_at_mut(1);
        coordinates.copy_from_slice(&ecdsa::to_fixed(&self.qx, &self.qy));
        point
    }

    /// The key's bytes: what the author key signs of the ID key.
    pub fn encode(&self) -> [u8; PUBLIC_KEY_LEN] {
        zerocopy::transmute!(*self)
    }

    /// ID_KEY_DIGEST or AUTHOR_KEY_DIGEST of this key in reports.
    pub fn digest(&self) -> Sha384Digest {
        Sha384Digest::of(self.as_bytes())
    }

    /// Whether every byte is zero: there is no key.
    pub fn is_absent(&self) -> bool {
        first_nonzero(self.as_bytes()).is_none()
    }

    /// Offset of the first reserved byte that is not zero.
    fn reserved_offset(&self) -> Option<usize> {
        first_reserved(&[
            (0x04 + P384_LEN, self.qx.split_at(P384_LEN).1),
            (0x4c + P384_LEN, self.qy.split_at(P384_LEN).1),
            (0x94, &self._rsvd_0x94),
        ])
    }
}

/// A public key and what it signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyAndSignature {
    /// The key.
    pub key: EcdsaPublicKey,
    /// Its signature.
    pub signature: EcdsaSignature,
}

/// The authentication of an ID block: keys and signatures.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IdAuth {
    id_key_algo: U32,
    author_key_algo: U32,
    _rsvd_0x008: [u8; 0x38],
    /// ID_BLOCK_SIG: the ID key's signature of the ID block.
    pub id_block_signature: EcdsaSignature,
    /// ID_KEY.
    pub id_key: EcdsaPublicKey,
    _rsvd_0x644: [u8; 0x3c],
    /// ID_KEY_SIG: the author key's signature of the ID key; zero without one.
    pub id_key_signature: EcdsaSignature,
    /// AUTHOR_KEY; zero without one.
    pub author_key: EcdsaPublicKey,
    _rsvd_0xc84: [u8; 0x37c],
}

const _: () = {
    assert!(size_of::<IdAuth>() == ID_AUTH_LEN);
    assert!(offset_of!(IdAuth, id_block_signature) == 0x040);
    assert!(offset_of!(IdAuth, id_key) == 0x240);
    assert!(offset_of!(IdAuth, _rsvd_0x644) == 0x644);
    assert!(offset_of!(IdAuth, id_key_signature) == 0x680);
    assert!(offset_of!(IdAuth, author_key) == 0x880);
    assert!(offset_of!(IdAuth, _rsvd_0xc84) == 0xc84);
};

impl IdAuth {
    /// An authentication by `id`, whose key `author` signed if there is one.
    pub fn new(id: &KeyAndSignature, author: Option<&KeyAndSignature>) -> Self {
        let mut auth = Self::new_zeroed();
        auth.id_key_algo = KEY_ALGORITHM_ECDSA_P384_SHA384.into();
        auth.id_block_signature = id.signature;
        auth.id_key = id.key;
        if let Some(author) = author {
            auth.author_key_algo = KEY_ALGORITHM_ECDSA_P384_SHA384.into();
            auth.id_key_signature = author.signature;
            auth.author_key = author.key;
        }
        auth
    }

    /// Reads an authentication strictly: known algorithms and curves, every
    /// reserved byte zero. Signatures are not verified.
    ///
    /// # Errors
    /// The first of these that does not hold.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseIdBlockError> {
        let auth = Self::read_from_bytes(bytes).map_err(|_| ParseIdBlockError::Length {
            what: "an ID authentication",
            need: ID_AUTH_LEN,
            got: bytes.len(),
        })?;
        let algorithm = |field, got: u32, absent: bool| match got {
            KEY_ALGORITHM_ECDSA_P384_SHA384 => Ok(()),
            0 if absent => Ok(()),
            _ => Err(ParseIdBlockError::Algorithm { field, got }),
        };
        let curve = |field, key: &EcdsaPublicKey| match key.curve.get() {
            CURVE_P384 => Ok(()),
            got => Err(ParseIdBlockError::Curve { field, got }),
        };
        let no_author = auth.author_key.is_absent();
        algorithm("ID_KEY_ALGO", auth.id_key_algo.get(), false)?;
        algorithm("AUTH_KEY_ALGO", auth.author_key_algo.get(), no_author)?;
        curve("ID_KEY", &auth.id_key)?;
        if !no_author {
            curve("AUTHOR_KEY", &auth.author_key)?;
        }
        match auth.reserved_offset() {
            Some(offset) => Err(ParseIdBlockError::Reserved { offset }),
            None => Ok(auth),
        }
    }

    /// The authentication's bytes.
    pub fn encode(&self) -> [u8; ID_AUTH_LEN] {
        zerocopy::transmute!(*self)
    }

    /// Whether there is an author key.
    pub fn has_author_key(&self) -> bool {
        !self.author_key.is_absent()
    }

    fn reserved_offset(&self) -> Option<usize> {
        let within = |start: usize, offset: Option<usize>| offset.map(|offset| start + offset);
        within(0x008, first_nonzero(&self._rsvd_0x008))
            .or_else(|| within(0x040, self.id_block_signature.reserved_offset()))
            .or_else(|| within(0x240, self.id_key.reserved_offset()))
            .or_else(|| within(0x644, first_nonzero(&self._rsvd_0x644)))
            .or_else(|| within(0x680, self.id_key_signature.reserved_offset()))
            .or_else(|| within(0x880, self.author_key.reserved_offset()))
            .or_else(|| within(0xc84, first_nonzero(&self._rsvd_0xc84)))
    }
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte != 0)
}

/// The first offset at which one of the reserved ranges is not zero.
fn first_reserved(ranges: &[(usize, &[u8])]) -> Option<usize> {
    ranges
        .iter()
        .find_map(|(start, bytes)| Some(start + first_nonzero(bytes)?))
}

/// Bytes are no ID block or no authentication of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdBlockError {
    /// The length is wrong.
    #[error("{what} has {need} bytes, got {got}")]
    Length {
        /// What was to be read.
        what: &'static str,
        /// Its length.
        need: usize,
        /// Bytes that were given.
        got: usize,
    },
    /// The block's version is not known.
    #[error("the ID block's VERSION at 0x50 is {got}, only 1 is known")]
    Version {
        /// The version field.
        got: u32,
    },
    /// A key's algorithm is not known.
    #[error("{field} is {got}, only 1 (ECDSA P-384 with SHA-384) is known")]
    Algorithm {
        /// The field.
        field: &'static str,
        /// Its value.
        got: u32,
    },
    /// A key is on another curve.
    #[error("{field} is on curve {got}, only 2 (P-384) is allowed")]
    Curve {
        /// The field.
        field: &'static str,
        /// Its curve.
        got: u32,
    },
    /// A byte that must be zero is not.
    #[error("reserved byte {offset:#x} of the ID authentication is not zero")]
    Reserved {
        /// Offset of the first such byte.
        offset: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(start: u8) -> [u8; 96] {
        std::array::from_fn(|i| start.wrapping_add(u8::try_from(i).unwrap()))
    }

    fn good() -> IdAuth {
        let of = |start| KeyAndSignature {
            key: EcdsaPublicKey::from_coordinates(&numbered(start)),
            signature: EcdsaSignature::from_fixed(&numbered(start + 1)),
        };
        IdAuth::new(&of(1), Some(&of(2)))
    }

    /// Block of virtee/sev 8.0.0, tests/id-block.rs.
    #[test]
    fn the_block_has_the_known_bytes() {
        let digest: LaunchDigest =
            "sha384:a14d638341e5674628fe1e02fbedebe5e5ab4faf1dd72d8966068e61\
             5bb99efd13d214b35c231715b38e263dc6059745"
                .parse()
                .unwrap();
        let block = IdBlock::new(digest, GuestPolicy::default());
        let mut expected = digest.as_bytes().to_vec();
        expected.extend([0; 32]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0]);
        assert_eq!(block.encode().as_slice(), expected);
        assert_eq!(IdBlock::parse(&expected), Ok(block));
        expected[0x50] = 2;
        assert_eq!(
            IdBlock::parse(&expected),
            Err(ParseIdBlockError::Version { got: 2 })
        );
        assert!(IdBlock::parse(&expected[1..]).is_err());
    }

    #[test]
    fn parse_and_encode_are_inverse() {
        let auth = good();
        assert_eq!(IdAuth::parse(&auth.encode()), Ok(auth));
        assert!(auth.has_author_key());
        let alone = KeyAndSignature {
            key: auth.id_key,
            signature: auth.id_block_signature,
        };
        let without = IdAuth::new(&alone, None);
        assert_eq!(IdAuth::parse(&without.encode()), Ok(without));
        assert!(!without.has_author_key());
        assert!(without.id_key_signature.is_absent());
    }

    #[test]
    fn numbers_change_byte_order() {
        let auth = good();
        assert_eq!(auth.id_block_signature.to_fixed(), numbered(2));
        assert_eq!(auth.id_key.to_point()[0], 4);
        assert_eq!(auth.id_key.to_point()[1..], numbered(1));
        let bytes = auth.encode();
        // The last byte of big-endian X is the first of little-endian QX.
        assert_eq!(bytes[0x244], 48);
        assert_eq!(bytes[0x244 + 72], 96);
    }

    /// The fields, written down a second time from the specification.
    #[test]
    fn every_byte_outside_the_fields_must_be_zero() {
        let used = |offset: usize| {
            let number = |start: usize| {
                (start..start + 48).contains(&offset) || (start + 72..start + 120).contains(&offset)
            };
            number(0x40) || number(0x244) || number(0x680) || number(0x884)
        };
        let good = good().encode();
        for offset in 0..ID_AUTH_LEN {
            let mut bytes = good;
            bytes[offset] ^= 0x80;
            let error = IdAuth::parse(&bytes).err();
            match offset {
                0..8 => assert!(matches!(error, Some(ParseIdBlockError::Algorithm { .. }))),
                0x240..0x244 | 0x880..0x884 => {
                    assert!(matches!(error, Some(ParseIdBlockError::Curve { .. })));
                }
                _ if used(offset) => assert_eq!(error, None, "{offset:#x}"),
                _ => assert_eq!(
                    error,
                    Some(ParseIdBlockError::Reserved { offset }),
                    "{offset:#x}"
                ),
            }
        }
    }
}
