//! The vendor's extensions of a certificate, as they can be shown.

use serde::Serialize;

/// The vendor's extensions (AMD 57230).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VendorExtensions {
    /// structVersion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub struct_version: Option<u8>,
    /// productName.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product_name: Option<String>,
    /// hwID, hexadecimal: the chip's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hw_id: Option<String>,
    /// CSP_ID: the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csp_id: Option<String>,
    /// The TCB that the key was issued for.
    pub tcb: TcbExtensions,
}

impl VendorExtensions {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The TCB components that a certificate names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TcbExtensions {
    /// fmcSPL; Turin only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fmc: Option<u8>,
    /// blSPL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootloader: Option<u8>,
    /// teeSPL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tee: Option<u8>,
    /// snpSPL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snp: Option<u8>,
    /// ucodeSPL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microcode: Option<u8>,
}
