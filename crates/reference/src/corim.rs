//! CoRIM for Veraison: draft-ietf-rats-corim-10 with AMD's profile,
//! draft-deeglaze-amd-sev-snp-corim-profile-02, signed as COSE_Sign1.
//!
//! Drafts, both: what the profile leaves open is left out and named. Of the
//! profile's measurements these are written: 0 (launch digest, GUEST_SVN, guest
//! policy), 1 (ABI), 5 and 6 (ID and author key), 7 to 10 (TCB versions) and the
//! platform flags of 8.
//!
//! TCB versions are exact. The profile compares them as one number, in which
//! newer microcode outweighs an older boot loader, so that its minimum would
//! accept firmware that the policy refuses.

use assay_crds::v1alpha1::attestation_policy::{
    GuestRestriction, Permission, PlatformProperty, Product, Requirement, SigningKeyType, TcbKind,
};
use assay_tee::Sha256Digest;
use coset::cbor::value::Value;
use coset::{CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _, iana};

use crate::key::{Curve, SigningKey};
use crate::rvps::Derived;
use crate::statement::{Policy, Statement, Validity};
pub use crate::tcb::DeriveError;
use crate::tcb::{hardware_rows, never_expressed, packed, product};

/// The profile's name, as its draft has it. Untagged: CDDL asks for tag 32, and
/// what reads CoRIM (Veraison, the crate `corim`) writes text and reads text.
const PROFILE: &str = "http://amd.com/please-permalink-me";
/// Class of environments whose reports a VCEK signs (profile, 3.1.1).
const BY_CHIP: [u8; 16] = [
    0xd0, 0x5e, 0x6d, 0x1b, 0x9f, 0x46, 0x4a, 0xe2, 0xa6, 0x10, 0xce, 0x3e, 0x6e, 0xe7, 0xe1, 0x53,
];
/// Class of environments whose reports a VLEK signs.
const BY_CSP: [u8; 16] = [
    0x89, 0xa7, 0xa1, 0xf0, 0xe7, 0x04, 0x4f, 0xaa, 0xac, 0xbd, 0x81, 0xc8, 0x6d, 0xf8, 0xa9, 0x61,
];
const CONTENT_TYPE: &str = "application/rim+cbor";
/// SHA-384 in the registry of named information hashes.
const SHA_384: u64 = 7;
/// Semantic versions, of CoSWID's version schemes.
const SEMVER: u64 = 16384;
/// Header parameter of the signer's name and the signature's validity.
const CORIM_META: i64 = 8;

/// CBOR tags of CoRIM (draft, section 12.2) and of RFC 8949.
mod tag {
    pub(super) const EPOCH_TIME: u64 = 1;
    pub(super) const UUID: u64 = 37;
    pub(super) const UNSIGNED_CORIM: u64 = 501;
    pub(super) const COMID: u64 = 506;
    pub(super) const SVN: u64 = 552;
    pub(super) const MINIMUM_SVN: u64 = 553;
    pub(super) const BYTES: u64 = 560;
}

/// Keys of a `measurement-values-map`.
mod mval {
    pub(super) const VERSION: i64 = 0;
    pub(super) const SVN: i64 = 1;
    pub(super) const DIGESTS: i64 = 2;
    pub(super) const FLAGS: i64 = 3;
    pub(super) const RAW: i64 = 4;
}

/// The unsigned CoRIM of a statement for one product, tagged.
///
/// # Errors
/// See [`DeriveError`].
pub fn derive(
    statement: &Statement,
    chosen: Option<Product>,
) -> Result<Derived<Vec<u8>>, DeriveError> {
    let policy = &statement.predicate.policy;
    let product = product(policy, chosen)?;
    let mut left_out = never_expressed(policy, product);
    left_out.push("snp.vmpls");
    let shared = shared_measurements(policy, packed(product)?, &mut left_out);
    let mut triples = Vec::new();
    for key in &policy.snp.signing_keys {
        let class = match key.type_ {
            SigningKeyType::Vcek => BY_CHIP,
            SigningKeyType::Vlek => BY_CSP,
        };
        for row in hardware_rows(statement)? {
            let mut measurements = vec![guest(policy, row.digest.as_bytes(), &mut left_out)];
            measurements.extend(shared.iter().cloned());
            let class_id = tagged(tag::UUID, bytes(&class));
            let environment = map([(0, map([(0, class_id)]))]);
            triples.push(Value::Array(vec![environment, Value::Array(measurements)]));
        }
    }
    left_out.sort_unstable();
    left_out.dedup();
    let encoded = statement
        .encode()
        .map_err(|error| DeriveError::Encode(error.to_string()))?;
    let id = format!("assay.dev/reference-values/{}", Sha256Digest::of(&encoded));
    let comid = map([
        (1, map([(0, text(&id))])),
        (4, map([(0, Value::Array(triples))])),
    ]);
    let comid = tagged(tag::COMID, Value::Bytes(encode(&comid)?));
    let corim = tagged(
        tag::UNSIGNED_CORIM,
        map([
            (0, text(&id)),
            (1, Value::Array(vec![comid])),
            (3, text(PROFILE)),
            (4, validity(&statement.predicate.validity)),
        ]),
    );
    Ok(Derived {
        values: encode(&corim)?,
        left_out,
    })
}

/// Signs an unsigned CoRIM of [`derive`]. `signer` is a name for people.
///
/// # Errors
/// When the header cannot be encoded.
pub fn sign(
    unsigned: Vec<u8>,
    until: &Validity,
    signer: &str,
    key: &SigningKey,
) -> Result<Vec<u8>, DeriveError> {
    let public = key.public_key();
    let algorithm = match public.curve() {
        Curve::P256 => iana::Algorithm::ES256,
        Curve::P384 => iana::Algorithm::ES384,
    };
    let meta = map([(0, map([(0, text(signer))])), (1, validity(until))]);
    let header = HeaderBuilder::new()
        .algorithm(algorithm)
        .content_type(CONTENT_TYPE.to_owned())
        .key_id(public.key_id())
        .value(CORIM_META, Value::Bytes(encode(&meta)?))
        .build();
    CoseSign1Builder::new()
        .protected(header)
        .payload(unsigned)
        .create_signature(b"", |message| key.sign_fixed(message))
        .build()
        .to_tagged_vec()
        .map_err(|error| DeriveError::Encode(error.to_string()))
}

/// Measurement 0: what of the guest a launch fixes.
fn guest(policy: &Policy, digest: &[u8], left_out: &mut Vec<&'static str>) -> Value {
    let rules = &policy.snp.guest_policy;
    let mut flags: Vec<(i64, bool)> = Vec::new();
    for (permission, flag) in [
        (rules.smt, -1),
        (rules.migration_agent, -2),
        (rules.debug, -3),
        (rules.cxl, -5),
    ] {
        if permission == Permission::Forbidden {
            flags.push((flag, false));
        }
    }
    for restriction in &rules.required {
        match restriction {
            GuestRestriction::SingleSocket => flags.push((-4, true)),
            GuestRestriction::Aes256Xts => flags.push((-6, true)),
            GuestRestriction::RaplDisabled => flags.push((-7, true)),
            GuestRestriction::CiphertextHiding => flags.push((-8, true)),
            GuestRestriction::PageSwapDisabled => left_out.push("snp.guestPolicy.required"),
        }
    }
    let mut values = Vec::new();
    if let Some(svn) = policy.snp.id_block.minimum_guest_svn {
        values.push((mval::SVN, tagged(tag::MINIMUM_SVN, Value::from(svn))));
    }
    let digest = Value::Array(vec![Value::from(SHA_384), bytes(digest)]);
    values.push((mval::DIGESTS, Value::Array(vec![digest])));
    values.extend(flags_value(flags));
    measurement(0, values)
}

fn shared_measurements(policy: &Policy, tcb: u64, left_out: &mut Vec<&'static str>) -> Vec<Value> {
    let snp = &policy.snp;
    let mut found = Vec::new();
    if let Some(abi) = snp.guest_policy.minimum_abi {
        let version = format!("{}.{}.0", abi.major, abi.minor);
        let version = map([(0, text(&version)), (1, Value::from(SEMVER))]);
        found.push(measurement(1, vec![(mval::VERSION, version)]));
    }
    for (digests, key, field) in [
        (&snp.id_block.id_key_digests, 5, "snp.idBlock.idKeyDigests"),
        (
            &snp.id_block.author_key_digests,
            6,
            "snp.idBlock.authorKeyDigests",
        ),
    ] {
        match digests.as_deref() {
            None => {}
            Some([digest]) => found.push(measurement(
                key,
                vec![(mval::RAW, tagged(tag::BYTES, bytes(digest.as_bytes())))],
            )),
            // Several values of one measurement would all have to hold.
            Some(_) => left_out.push(field),
        }
    }
    let svn = || (mval::SVN, tagged(tag::SVN, Value::from(tcb)));
    let against = |kind| snp.tcb_against.contains(&kind);
    if against(TcbKind::Reported) {
        found.push(measurement(7, vec![svn()]));
    }
    let mut host = Vec::new();
    if against(TcbKind::Current) {
        host.push(svn());
    }
    host.extend(flags_value(platform_flags(policy, left_out)));
    if !host.is_empty() {
        found.push(measurement(8, host));
    }
    if against(TcbKind::Committed) {
        found.push(measurement(9, vec![svn()]));
    }
    if against(TcbKind::Launch) {
        found.push(measurement(10, vec![svn()]));
    }
    found
}

fn platform_flags(policy: &Policy, left_out: &mut Vec<&'static str>) -> Vec<(i64, bool)> {
    let platform = &policy.snp.platform;
    let mut flags = Vec::new();
    if platform.alias_check == Requirement::Require {
        flags.push((-54, true));
    }
    for (properties, on, field) in [
        (&platform.required, true, "snp.platform.required"),
        (&platform.forbidden, false, "snp.platform.forbidden"),
    ] {
        for property in properties {
            match property {
                PlatformProperty::Smt => flags.push((-49, on)),
                PlatformProperty::Tsme => flags.push((-50, on)),
                PlatformProperty::Ecc => flags.push((-51, on)),
                PlatformProperty::RaplDisabled => flags.push((-52, on)),
                PlatformProperty::CiphertextHiding => flags.push((-53, on)),
                PlatformProperty::Tio => left_out.push(field),
            }
        }
    }
    flags
}

/// A `flags-map`, in the order of deterministic CBOR, unless it is empty.
fn flags_value(mut flags: Vec<(i64, bool)>) -> Option<(i64, Value)> {
    flags.sort_by_key(|(flag, _)| std::cmp::Reverse(*flag));
    let flags = flags
        .into_iter()
        .map(|(flag, on)| (Value::from(flag), Value::Bool(on)))
        .collect::<Vec<_>>();
    (!flags.is_empty()).then_some((mval::FLAGS, Value::Map(flags)))
}

fn measurement(key: u64, values: Vec<(i64, Value)>) -> Value {
    map([(0, Value::from(key)), (1, map(values))])
}

fn validity(validity: &Validity) -> Value {
    let time = |time: jiff::Timestamp| tagged(tag::EPOCH_TIME, Value::from(time.as_second()));
    map([
        (0, time(validity.not_before)),
        (1, time(validity.not_after)),
    ])
}

fn map(members: impl IntoIterator<Item = (i64, Value)>) -> Value {
    Value::Map(
        members
            .into_iter()
            .map(|(key, value)| (Value::from(key), value))
            .collect(),
    )
}

fn tagged(tag: u64, value: Value) -> Value {
    Value::Tag(tag, Box::new(value))
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

fn encode(value: &Value) -> Result<Vec<u8>, DeriveError> {
    let mut bytes = Vec::new();
    coset::cbor::ser::into_writer(value, &mut bytes)
        .map_err(|error| DeriveError::Encode(error.to_string()))?;
    Ok(bytes)
}
