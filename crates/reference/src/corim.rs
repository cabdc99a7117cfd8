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

use std::collections::BTreeMap;

use assay_crds::v1alpha1::attestation_policy::{
    GuestRestriction, Permission, PlatformProperty, Product, Requirement, SigningKeyType, TcbKind,
};
use assay_tee::{LaunchDigest, Sha256Digest};
use coset::cbor::value::Value;
use coset::{
    CoseSign1, CoseSign1Builder, HeaderBuilder, ProtectedHeader, TaggedCborSerializable as _, iana,
};

use crate::derived::DerivedValues;
use crate::key::{Curve, PublicKey, SignatureError, SigningKey};
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
    let unsigned = to_sign(unsigned, until, signer, &key.public_key())?;
    let signature = key.sign_fixed(&unsigned.tbs_data(b""));
    tagged_sign1(unsigned, signature)
}

/// The bytes that the holder of `key` must sign elsewhere: COSE's `Sig_structure`
/// (RFC 9052, 4.4), which holds the CoRIM and the header.
///
/// # Errors
/// When the header cannot be encoded.
pub fn to_be_signed(
    unsigned: Vec<u8>,
    until: &Validity,
    signer: &str,
    key: &PublicKey,
) -> Result<Vec<u8>, DeriveError> {
    Ok(to_sign(unsigned, until, signer, key)?.tbs_data(b""))
}

/// Puts a signature that was made elsewhere to the CoRIM in the bytes of
/// [`to_be_signed`]. `signature` is DER or `r || s`.
///
/// # Errors
/// When the bytes are none of [`to_be_signed`], or the signature is not of them by
/// `key`.
pub fn assemble(
    to_be_signed: &[u8],
    key: &PublicKey,
    signature: &[u8],
) -> Result<Vec<u8>, AssembleError> {
    let unsigned = read_to_be_signed(to_be_signed).ok_or(AssembleError::Malformed)?;
    let header = &unsigned.protected.header;
    if header.key_id != key.key_id() || header.alg != Some(algorithm(key).into()) {
        return Err(AssembleError::Key);
    }
    let signature = key.accept_fixed_signature(to_be_signed, signature)?;
    tagged_sign1(unsigned, signature).map_err(AssembleError::Encode)
}

/// Why there is no signed CoRIM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// The bytes hold no CoRIM that is to be signed.
    #[error("not what `export --format corim --unsigned --to-be-signed` wrote")]
    Malformed,
    /// The header names another key.
    #[error("the header names another key; give the one of `export --public-key`")]
    Key,
    /// The signature is refused.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The result cannot be encoded.
    #[error("cannot encode the signed CoRIM")]
    Encode(#[source] DeriveError),
}

fn algorithm(key: &PublicKey) -> iana::Algorithm {
    match key.curve() {
        Curve::P256 => iana::Algorithm::ES256,
        Curve::P384 => iana::Algorithm::ES384,
    }
}

fn to_sign(
    unsigned: Vec<u8>,
    until: &Validity,
    signer: &str,
    key: &PublicKey,
) -> Result<CoseSign1, DeriveError> {
    let meta = map([(0, map([(0, text(signer))])), (1, validity(until))]);
    let header = HeaderBuilder::new()
        .algorithm(algorithm(key))
        .content_type(CONTENT_TYPE.to_owned())
        .key_id(key.key_id())
        .value(CORIM_META, Value::Bytes(encode(&meta)?))
        .build();
    Ok(CoseSign1Builder::new()
        .protected(header)
        .payload(unsigned)
        .build())
}

/// The message whose `Sig_structure` the bytes are, in the one encoding that it has.
fn read_to_be_signed(bytes: &[u8]) -> Option<CoseSign1> {
    let value: Value = coset::cbor::de::from_reader(bytes).ok()?;
    let parts = value.into_array().ok()?;
    let [_, protected, _, payload] = <[Value; 4]>::try_from(parts).ok()?;
    let message = CoseSign1 {
        protected: ProtectedHeader::from_cbor_bstr(protected).ok()?,
        payload: Some(payload.into_bytes().ok()?),
        ..CoseSign1::default()
    };
    (message.tbs_data(b"") == bytes).then_some(message)
}

fn tagged_sign1(message: CoseSign1, signature: Vec<u8>) -> Result<Vec<u8>, DeriveError> {
    CoseSign1 {
        signature,
        ..message
    }
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

/// Name of the value that says when a CoRIM holds.
pub(crate) const VALIDITY: &str = "validity";

/// Why a CoRIM cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadCorimError {
    /// The bytes are no CBOR.
    #[error("not CBOR")]
    Cbor,
    /// A part is not where the profile has it.
    #[error("no {0} where AMD's profile has it")]
    Part(&'static str),
}

/// Whether the bytes begin as a CoRIM does, signed or not.
pub fn is_corim(bytes: &[u8]) -> bool {
    // Tags 501 (unsigned CoRIM) and 18 (COSE_Sign1), then an array of four.
    bytes.starts_with(&[0xd9, 0x01, 0xf5]) || bytes.starts_with(&[0xd2, 0x84])
}

/// What a CoRIM of AMD's profile says. No signature is verified.
pub(crate) fn read(bytes: &[u8]) -> Result<DerivedValues, ReadCorimError> {
    let mut read = DerivedValues::default();
    let corim = match untagged(parse(bytes)?) {
        Value::Array(sign1) => {
            let payload = sign1.into_iter().nth(2).and_then(|p| p.into_bytes().ok());
            untagged(parse(&payload.ok_or(ReadCorimError::Part("payload"))?)?)
        }
        corim => corim,
    };
    if let Some(validity) = member(&corim, 4) {
        read.values.insert(VALIDITY.to_owned(), shown(validity));
    }
    let mut demands: BTreeMap<String, Vec<serde_json::Value>> = BTreeMap::new();
    for comid in array(&corim, 1, "tags")? {
        let comid = untagged(comid.clone()).into_bytes();
        let comid = untagged(parse(&comid.map_err(|_| ReadCorimError::Part("CoMID"))?)?);
        let triples = member(&comid, 4).ok_or(ReadCorimError::Part("triples"))?;
        for triple in array(triples, 0, "reference triples")? {
            let Some([environment, measurements]) = triple.as_array().map(Vec::as_slice) else {
                return Err(ReadCorimError::Part("triple"));
            };
            let class = class_name(environment)?;
            let measurements = measurements.as_array();
            let measurements = measurements.ok_or(ReadCorimError::Part("measurements"))?;
            for measurement in measurements {
                read_measurement(measurement, &class, &mut read, &mut demands)?;
            }
        }
    }
    for (name, mut values) in demands {
        values.sort_by_key(ToString::to_string);
        values.dedup();
        let value = match values.as_slice() {
            [one] => one.clone(),
            _ => values.into(),
        };
        read.values.insert(name, value);
    }
    Ok(read)
}

fn read_measurement(
    measurement: &Value,
    class: &str,
    read: &mut DerivedValues,
    demands: &mut BTreeMap<String, Vec<serde_json::Value>>,
) -> Result<(), ReadCorimError> {
    let key = member(measurement, 0).map(shown);
    let key = key.ok_or(ReadCorimError::Part("measurement's key"))?;
    let values = member(measurement, 1).and_then(Value::as_map);
    for (name, value) in values.ok_or(ReadCorimError::Part("measurement's values"))? {
        let name = name.as_integer().and_then(|name| i64::try_from(name).ok());
        let name = name.ok_or(ReadCorimError::Part("name of a value"))?;
        if name == mval::DIGESTS {
            let digests = value.as_array().ok_or(ReadCorimError::Part("digests"))?;
            for digest in digests {
                let digest = digest.as_array().and_then(|digest| digest.last());
                let digest = digest.and_then(Value::as_bytes).map(Vec::as_slice);
                let digest = digest.and_then(|digest| digest.try_into().ok());
                let digest: [u8; 48] = digest.ok_or(ReadCorimError::Part("SHA-384"))?;
                let digest = LaunchDigest::new(digest);
                read.digests.insert((digest, class.to_owned()));
            }
            continue;
        }
        let name = match name {
            mval::VERSION => "version".to_owned(),
            mval::SVN => "svn".to_owned(),
            mval::FLAGS => "flags".to_owned(),
            mval::RAW => "raw".to_owned(),
            other => other.to_string(),
        };
        let name = format!("measurement {key}.{name}");
        demands.entry(name).or_default().push(shown(value));
    }
    Ok(())
}

/// The kind of key that signs the reports of an environment.
fn class_name(environment: &Value) -> Result<String, ReadCorimError> {
    let class = member(environment, 0).and_then(|class| member(class, 0));
    let class = class.cloned().map(untagged);
    let class = class.and_then(|class| class.into_bytes().ok());
    let class = class.ok_or(ReadCorimError::Part("class"))?;
    Ok(match class.as_slice() {
        class if class == BY_CHIP => "VCEK".to_owned(),
        class if class == BY_CSP => "VLEK".to_owned(),
        other => hex::encode(other),
    })
}

fn parse(bytes: &[u8]) -> Result<Value, ReadCorimError> {
    coset::cbor::de::from_reader(bytes).map_err(|_| ReadCorimError::Cbor)
}

fn untagged(value: Value) -> Value {
    match value {
        Value::Tag(_, value) => *value,
        value => value,
    }
}

fn member(value: &Value, key: i64) -> Option<&Value> {
    let key = Value::from(key);
    let mut members = value.as_map()?.iter();
    members
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

fn array<'a>(
    value: &'a Value,
    key: i64,
    part: &'static str,
) -> Result<&'a [Value], ReadCorimError> {
    let found = member(value, key).and_then(Value::as_array);
    found.map(Vec::as_slice).ok_or(ReadCorimError::Part(part))
}

/// A value for people: bytes in hexadecimal, tags by their number.
fn shown(value: &Value) -> serde_json::Value {
    match value {
        Value::Integer(number) => i64::try_from(*number)
            .map_or_else(|_| i128::from(*number).to_string().into(), Into::into),
        Value::Bytes(bytes) => hex::encode(bytes).into(),
        Value::Text(text) => text.clone().into(),
        Value::Bool(on) => (*on).into(),
        Value::Tag(tag::MINIMUM_SVN, value) => format!("at least {}", shown(value)).into(),
        Value::Tag(tag::SVN | tag::BYTES | tag::EPOCH_TIME, value) => shown(value),
        Value::Tag(other, value) => format!("{other}({})", shown(value)).into(),
        Value::Array(items) => items.iter().map(shown).collect(),
        Value::Map(members) => {
            let members = members.iter().map(|(name, value)| {
                let name = match shown(name) {
                    serde_json::Value::String(name) => name,
                    other => other.to_string(),
                };
                (name, shown(value))
            });
            members.collect::<serde_json::Map<_, _>>().into()
        }
        _ => serde_json::Value::Null,
    }
}
