//! Guest messages to the secure processor: MSG_REPORT_REQ and MSG_REPORT_RSP
//! (SEV-SNP ABI, "MSG_REPORT_REQ" and "MSG_REPORT_RSP"), the certificate table
//! of an extended request (GHCB specification, SNP Extended Guest Request), and
//! the framing of the simulated processor's port.

#![allow(
    clippy::used_underscore_binding,
    reason = "reserved fields are read to check that they are zero"
)]

use std::fmt;
use std::mem::{offset_of, size_of};

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::report::REPORT_LEN;

/// Most bytes that a frame of the simulated processor's port may announce: a
/// response with a full certificate chain has about six thousand.
pub const MAX_FRAME_LEN: usize = 64 * 1024;

/// MSG_REPORT_REQ: asks for an attestation report.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReportRequest {
    /// REPORT_DATA to include.
    pub report_data: [u8; 64],
    /// VMPL to put in the report; not below the one that asks.
    pub vmpl: U32,
    /// KEY_SEL in bits 1:0: 0 the VLEK if installed and else the VCEK, 1 the
    /// VCEK, 2 the VLEK.
    pub key_sel: U32,
    _rsvd_0x48: [u8; 24],
}

const _: () = {
    assert!(size_of::<ReportRequest>() == 0x60);
    assert!(offset_of!(ReportRequest, vmpl) == 0x40);
    assert!(offset_of!(ReportRequest, key_sel) == 0x44);
    assert!(offset_of!(ReportRequest, _rsvd_0x48) == 0x48);
};

/// The fixed part of MSG_REPORT_RSP, before the report.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReportResponseHeader {
    /// STATUS: 0 success, 0x16 invalid parameters, 0x27 invalid key selection.
    pub status: U32,
    /// REPORT_SIZE: bytes of the report that follows.
    pub report_size: U32,
    _rsvd_0x08: [u8; 24],
}

const _: () = {
    assert!(size_of::<ReportResponseHeader>() == 0x20);
    assert!(offset_of!(ReportResponseHeader, report_size) == 0x04);
};

/// STATUS of MSG_REPORT_RSP for a report that was made.
pub const STATUS_SUCCESS: u32 = 0;
/// STATUS of MSG_REPORT_RSP for invalid parameters.
pub const STATUS_INVALID_PARAMETERS: u32 = 0x16;
/// STATUS of MSG_REPORT_RSP for a key that is not installed.
pub const STATUS_INVALID_KEY_SELECTION: u32 = 0x27;

/// A guest message cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestMessageError {
    /// The message is not of the length that it must have.
    #[error("{message} must have {want} bytes, got {got}")]
    Length {
        /// Name of the message.
        message: &'static str,
        /// Bytes that it must have.
        want: usize,
        /// Bytes that were given.
        got: usize,
    },
    /// A reserved byte is not zero.
    #[error("a reserved byte of {message} is not zero")]
    Reserved {
        /// Name of the message.
        message: &'static str,
    },
    /// The processor refused the request.
    #[error("the secure processor answered with status {status:#x}")]
    Status {
        /// STATUS of MSG_REPORT_RSP.
        status: u32,
    },
    /// The response announces a report of another size.
    #[error("the response announces a report of {got} bytes, a report has {REPORT_LEN}")]
    ReportSize {
        /// REPORT_SIZE of MSG_REPORT_RSP.
        got: u32,
    },
    /// An entry of the certificate table points outside the table.
    #[error("entry {index} of the certificate table points outside the table")]
    CertificateRange {
        /// Index of the entry.
        index: usize,
    },
    /// The certificate table has no terminating entry.
    #[error("the certificate table has no terminating entry")]
    CertificateTableEnd,
    /// The certificate table has too many entries, or does not fit its offsets.
    #[error("the certificate table is too large")]
    CertificateTableSize,
    /// A frame announces more than [`MAX_FRAME_LEN`] bytes.
    #[error("a frame of {got} bytes is longer than {MAX_FRAME_LEN}")]
    FrameLength {
        /// Bytes that the frame has or announces.
        got: usize,
    },
}

impl ReportRequest {
    /// A request for `report_data` at `vmpl`, signed by the default key.
    pub fn new(report_data: [u8; 64], vmpl: u32) -> Self {
        Self {
            report_data,
            vmpl: vmpl.into(),
            key_sel: 0.into(),
            _rsvd_0x48: [0; 24],
        }
    }

    /// Reads a request; reserved bytes must be zero.
    ///
    /// # Errors
    /// On another length or a reserved byte that is not zero.
    pub fn parse(bytes: &[u8]) -> Result<Self, GuestMessageError> {
        let message = "MSG_REPORT_REQ";
        let request = Self::read_from_bytes(bytes).map_err(|_| GuestMessageError::Length {
            message,
            want: size_of::<Self>(),
            got: bytes.len(),
        })?;
        let reserved_bits = request.key_sel.get() & !0b11;
        if request._rsvd_0x48 != [0; 24] || reserved_bits != 0 {
            return Err(GuestMessageError::Reserved { message });
        }
        Ok(request)
    }

    /// The message's bytes.
    pub fn encode(&self) -> [u8; size_of::<Self>()] {
        zerocopy::transmute!(*self)
    }
}

/// MSG_REPORT_RSP with the certificate table of an extended request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportResponse {
    /// The report's bytes, as the processor signed them; not yet parsed.
    pub report: [u8; REPORT_LEN],
    /// Certificates that the host supplied; untrusted.
    pub certificates: CertificateTable,
}

impl ReportResponse {
    /// Writes MSG_REPORT_RSP and the certificate table.
    ///
    /// # Errors
    /// When the certificate table is too large.
    pub fn encode(&self) -> Result<Vec<u8>, GuestMessageError> {
        let report_size =
            u32::try_from(REPORT_LEN).map_err(|_| GuestMessageError::CertificateTableSize)?;
        let header = ReportResponseHeader {
            status: STATUS_SUCCESS.into(),
            report_size: report_size.into(),
            _rsvd_0x08: [0; 24],
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&self.report);
        bytes.extend_from_slice(&self.certificates.encode()?);
        Ok(bytes)
    }

    /// Writes a response without a report: a refusal.
    pub fn encode_refusal(status: u32) -> Vec<u8> {
        let header = ReportResponseHeader {
            status: status.into(),
            report_size: 0.into(),
            _rsvd_0x08: [0; 24],
        };
        header.as_bytes().to_vec()
    }

    /// Reads MSG_REPORT_RSP and, behind it, the certificate table if there is
    /// one.
    ///
    /// # Errors
    /// On a refusal, a wrong size, a reserved byte that is not zero, or a
    /// malformed table.
    pub fn parse(bytes: &[u8]) -> Result<Self, GuestMessageError> {
        let message = "MSG_REPORT_RSP";
        let short = GuestMessageError::Length {
            message,
            want: size_of::<ReportResponseHeader>() + REPORT_LEN,
            got: bytes.len(),
        };
        let (header, rest) = ReportResponseHeader::read_from_prefix(bytes).map_err(|_| short)?;
        if header.status.get() != STATUS_SUCCESS {
            return Err(GuestMessageError::Status {
                status: header.status.get(),
            });
        }
        if header._rsvd_0x08 != [0; 24] {
            return Err(GuestMessageError::Reserved { message });
        }
        if usize::try_from(header.report_size.get()) != Ok(REPORT_LEN) {
            return Err(GuestMessageError::ReportSize {
                got: header.report_size.get(),
            });
        }
        let (report, table) = rest.split_first_chunk::<REPORT_LEN>().ok_or(short)?;
        Ok(Self {
            report: *report,
            certificates: CertificateTable::parse(table)?,
        })
    }
}

/// Puts the length in front of a message of the simulated processor's port
/// ([`crate::guest_event::PSP_SIM_PORT`]).
///
/// # Errors
/// When the message is longer than [`MAX_FRAME_LEN`].
pub fn encode_frame(message: &[u8]) -> Result<Vec<u8>, GuestMessageError> {
    let error = GuestMessageError::FrameLength { got: message.len() };
    if message.len() > MAX_FRAME_LEN {
        return Err(error);
    }
    let length = u32::try_from(message.len()).map_err(|_| error)?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(message);
    Ok(frame)
}

/// Reads the length that stands in front of a message.
///
/// # Errors
/// When it is more than [`MAX_FRAME_LEN`].
pub fn parse_frame_length(prefix: [u8; 4]) -> Result<usize, GuestMessageError> {
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_LEN {
        return Err(GuestMessageError::FrameLength { got: length });
    }
    Ok(length)
}

/// A GUID of the certificate table, in the byte order in which it is written
/// (RFC 9562: big-endian, unlike the GUIDs of UEFI).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CertificateGuid(pub [u8; 16]);

impl CertificateGuid {
    /// `63da758d-e664-4564-adc5-f4b93be8accd`: the VCEK.
    pub const VCEK: Self = Self(0x63da_758d_e664_4564_adc5_f4b9_3be8_accd_u128.to_be_bytes());
    /// `a8074bc2-a25a-483e-aae6-39c045a0b8a1`: the VLEK.
    pub const VLEK: Self = Self(0xa807_4bc2_a25a_483e_aae6_39c0_45a0_b8a1_u128.to_be_bytes());
    /// `4ab7b379-bbac-4fe4-a02f-05aef327c782`: the ASK, or the ASVK.
    pub const ASK: Self = Self(0x4ab7_b379_bbac_4fe4_a02f_05ae_f327_c782_u128.to_be_bytes());
    /// `c0b406a4-a803-4952-9743-3fb6014cd0ae`: the ARK.
    pub const ARK: Self = Self(0xc0b4_06a4_a803_4952_9743_3fb6_014c_d0ae_u128.to_be_bytes());
}

impl fmt::Debug for CertificateGuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::VCEK => "VCEK",
            Self::VLEK => "VLEK",
            Self::ASK => "ASK",
            Self::ARK => "ARK",
            Self(bytes) => return write!(f, "{}", hex::encode(bytes)),
        })
    }
}

/// A certificate of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateEntry {
    /// What the host says that it is. Proves nothing.
    pub guid: CertificateGuid,
    /// The certificate, DER.
    pub der: Vec<u8>,
}

/// The certificate table of an extended request: 24-byte entries of GUID,
/// offset and length, a zero entry, and the certificates. The host fills it:
/// both labels and content are untrusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateTable(pub Vec<CertificateEntry>);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    guid: [u8; 16],
    offset: U32,
    length: U32,
}

const _: () = assert!(size_of::<RawEntry>() == 24);

impl CertificateTable {
    /// Most entries of a table. A chain has three; entries may overlap, so that
    /// without a bound a small table could ask for much memory.
    pub const MAX_ENTRIES: usize = 16;

    /// Reads a table; no bytes at all are an empty table. Padding behind the
    /// last certificate is ignored, as hosts hand over whole pages.
    ///
    /// # Errors
    /// When an entry points outside the table or into the entries, the
    /// terminating entry is missing, or there are too many.
    pub fn parse(bytes: &[u8]) -> Result<Self, GuestMessageError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut raw_entries = Vec::new();
        let mut rest = bytes;
        loop {
            let (entry, tail) = RawEntry::read_from_prefix(rest)
                .map_err(|_| GuestMessageError::CertificateTableEnd)?;
            rest = tail;
            if entry.as_bytes().iter().all(|&byte| byte == 0) {
                break;
            }
            if raw_entries.len() == Self::MAX_ENTRIES {
                return Err(GuestMessageError::CertificateTableSize);
            }
            raw_entries.push(entry);
        }
        let header_len = bytes.len() - rest.len();
        let certificate = |entry: &RawEntry| {
            let start = usize::try_from(entry.offset.get()).ok()?;
            let length = usize::try_from(entry.length.get()).ok()?;
            let der = bytes.get(start..start.checked_add(length)?)?.to_vec();
            let guid = CertificateGuid(entry.guid);
            (start >= header_len).then_some(CertificateEntry { guid, der })
        };
        let mut entries = Vec::new();
        for (index, entry) in raw_entries.iter().enumerate() {
            let entry = certificate(entry).ok_or(GuestMessageError::CertificateRange { index })?;
            entries.push(entry);
        }
        Ok(Self(entries))
    }

    /// Writes the table without padding; an empty table is no bytes.
    ///
    /// # Errors
    /// When it has too many entries or does not fit 32-bit offsets.
    pub fn encode(&self) -> Result<Vec<u8>, GuestMessageError> {
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let too_large = || GuestMessageError::CertificateTableSize;
        if self.0.len() > Self::MAX_ENTRIES {
            return Err(too_large());
        }
        let header_len = (self.0.len() + 1) * size_of::<RawEntry>();
        let mut bytes = Vec::with_capacity(header_len);
        let mut offset = header_len;
        for entry in &self.0 {
            let raw = RawEntry {
                guid: entry.guid.0,
                offset: u32::try_from(offset).map_err(|_| too_large())?.into(),
                length: u32::try_from(entry.der.len())
                    .map_err(|_| too_large())?
                    .into(),
            };
            bytes.extend_from_slice(raw.as_bytes());
            offset = offset.checked_add(entry.der.len()).ok_or_else(too_large)?;
        }
        bytes.extend_from_slice(&[0; size_of::<RawEntry>()]);
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.der);
        }
        Ok(bytes)
    }

    /// The first certificate with this label.
    pub fn get(&self, guid: CertificateGuid) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|entry| entry.guid == guid)
            .map(|entry| entry.der.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> CertificateTable {
        CertificateTable(vec![
            CertificateEntry {
                guid: CertificateGuid::VCEK,
                der: vec![1, 2, 3],
            },
            CertificateEntry {
                guid: CertificateGuid::ASK,
                der: vec![4],
            },
            CertificateEntry {
                guid: CertificateGuid::ARK,
                der: vec![5, 6],
            },
        ])
    }

    #[test]
    fn guids_are_written_big_endian() {
        assert_eq!(CertificateGuid::VCEK.0[..4], [0x63, 0xda, 0x75, 0x8d]);
        assert_eq!(CertificateGuid::ARK.0[14..], [0xd0, 0xae]);
    }

    #[test]
    fn requests_round_trip_and_reserved_bytes_are_refused() {
        let request = ReportRequest::new([7; 64], 3);
        let bytes = request.encode();
        assert_eq!(ReportRequest::parse(&bytes), Ok(request));
        for offset in [0x44, 0x45, 0x48, 0x5f] {
            let mut bytes = bytes;
            bytes[offset] |= 4;
            let error = GuestMessageError::Reserved {
                message: "MSG_REPORT_REQ",
            };
            assert_eq!(ReportRequest::parse(&bytes), Err(error));
        }
        assert!(ReportRequest::parse(&bytes[1..]).is_err());
    }

    #[test]
    fn responses_round_trip() {
        for certificates in [table(), CertificateTable::default()] {
            let response = ReportResponse {
                report: [9; REPORT_LEN],
                certificates,
            };
            let bytes = response.encode().unwrap();
            assert_eq!(ReportResponse::parse(&bytes), Ok(response));
            assert!(ReportResponse::parse(&bytes[..0x20 + REPORT_LEN - 1]).is_err());
        }
        let refusal = ReportResponse::encode_refusal(STATUS_INVALID_PARAMETERS);
        assert_eq!(
            ReportResponse::parse(&refusal),
            Err(GuestMessageError::Status { status: 0x16 })
        );
    }

    #[test]
    fn tables_are_read_with_padding_and_refused_when_malformed() {
        let mut bytes = table().encode().unwrap();
        assert_eq!(table().get(CertificateGuid::ASK), Some(&[4][..]));
        assert_eq!(bytes.len(), 4 * 24 + 6);
        bytes.resize(4096, 0);
        assert_eq!(CertificateTable::parse(&bytes), Ok(table()));

        assert_eq!(
            CertificateTable::parse(&bytes[..3 * 24]),
            Err(GuestMessageError::CertificateTableEnd)
        );
        // Offsets into the entries, beyond the end, and overflowing.
        for (offset, length) in [(0u32, 4u32), (4095, 2), (u32::MAX, u32::MAX)] {
            let mut bytes = bytes.clone();
            bytes[24 + 16..24 + 20].copy_from_slice(&offset.to_le_bytes());
            bytes[24 + 20..24 + 24].copy_from_slice(&length.to_le_bytes());
            assert_eq!(
                CertificateTable::parse(&bytes),
                Err(GuestMessageError::CertificateRange { index: 1 })
            );
        }
    }

    #[test]
    fn no_changed_or_missing_byte_brings_a_parser_down() {
        let response = ReportResponse {
            report: [9; REPORT_LEN],
            certificates: table(),
        };
        let bytes = response.encode().unwrap();
        for offset in 0..bytes.len() {
            let _ = ReportResponse::parse(&bytes[..offset]);
            for value in [0, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[offset] = value;
                let _ = ReportResponse::parse(&bytes);
            }
        }
    }

    #[test]
    fn a_table_of_too_many_entries_is_refused() {
        let entry = CertificateEntry {
            guid: CertificateGuid::VCEK,
            der: vec![],
        };
        let mut many = CertificateTable(vec![entry; CertificateTable::MAX_ENTRIES]);
        let mut bytes = many.encode().unwrap();
        assert_eq!(CertificateTable::parse(&bytes), Ok(many.clone()));
        many.0.push(many.0[0].clone());
        assert_eq!(many.encode(), Err(GuestMessageError::CertificateTableSize));
        let entry = bytes[..24].to_vec();
        bytes.splice(0..0, entry);
        assert_eq!(
            CertificateTable::parse(&bytes),
            Err(GuestMessageError::CertificateTableSize)
        );
    }

    #[test]
    fn frames_are_bounded() {
        let frame = encode_frame(b"abc").unwrap();
        let (prefix, message) = frame.split_first_chunk().unwrap();
        assert_eq!(parse_frame_length(*prefix), Ok(message.len()));
        assert!(encode_frame(&vec![0; MAX_FRAME_LEN + 1]).is_err());
        assert!(parse_frame_length([0xff; 4]).is_err());
    }
}
