//! Evidence: attestation reports from whatever makes them here.
//!
//! A real processor always wins. The simulated one is asked only in a guest
//! that no SNP processor protects; whoever appraises the report sees by its
//! certificates what signed it.

mod sev_guest;
mod simulated;
mod tsm;

use std::io;
use std::path::Path;

use assay_tee::guest_message::{CertificateTable, GuestMessageError};
use assay_tee::report::{AttestationReport, ParseReportError, REPORT_LEN};
use assay_tee::{InstanceData, Sha256Digest};

use crate::devices::DeviceError;

/// Present in guests that SNP protects, whatever else their kernel offers
/// (Linux, `Documentation/ABI/testing/sysfs-devices-system-cpu`).
const SNP_GUEST: &str = "/sys/devices/system/cpu/sev";

/// An attestation report and what the host says are its certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The report, byte for byte.
    pub report: [u8; REPORT_LEN],
    /// Certificates from the host; untrusted.
    pub certificates: CertificateTable,
}

/// Evidence could not be had.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The guest is protected by SNP, but its kernel offers no way to ask for a
    /// report.
    #[error("an SNP guest without configfs-tsm and /dev/sev-guest")]
    NoInterface,
    /// configfs-tsm speaks for another kind of processor.
    #[error("reports of {provider:?} are not supported")]
    Provider {
        /// What configfs-tsm calls it.
        provider: String,
    },
    /// Neither a real nor a simulated processor is there.
    #[error("there is no secure processor")]
    NoProcessor(#[source] DeviceError),
    /// A request failed.
    #[error("{interface}: cannot {action}")]
    Request {
        /// The interface used.
        interface: &'static str,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The answer is not a report.
    #[error("{interface}: malformed answer")]
    Answer {
        /// The interface used.
        interface: &'static str,
        /// The cause.
        #[source]
        source: GuestMessageError,
    },
    /// The report is not one that this agent reads.
    #[error("the report cannot be read")]
    Report(#[source] ParseReportError),
    /// Somebody else requested reports at the same time, again and again.
    #[error("configfs-tsm: the report kept changing")]
    Unstable,
    /// The report is not the answer to the request.
    #[error("the report has other report data than was asked for")]
    ReportData,
    /// The host handed over other instance data than it launched the guest with.
    #[error("the report's HOST_DATA is {reported}, the instance data has {document}")]
    HostData {
        /// HOST_DATA of the report.
        reported: Sha256Digest,
        /// Digest of the document received.
        document: Sha256Digest,
    },
}

/// The processor that makes this guest's evidence.
#[derive(Debug)]
pub enum Provider {
    /// configfs-tsm (Linux 6.7 and later).
    Tsm,
    /// `/dev/sev-guest`.
    SevGuest,
    /// The simulated processor. It proves the logic and protects nothing.
    Simulated(simulated::Processor),
}

impl Provider {
    /// Finds the processor.
    ///
    /// # Errors
    /// When there is none, or a real one that cannot be asked.
    pub fn detect() -> Result<Self, EvidenceError> {
        match tsm::provider()? {
            Some(name) if name == tsm::SNP => return Ok(Self::Tsm),
            Some(provider) => return Err(EvidenceError::Provider { provider }),
            None => {}
        }
        if Path::new(sev_guest::DEVICE).exists() {
            return Ok(Self::SevGuest);
        }
        if Path::new(SNP_GUEST).exists() {
            return Err(EvidenceError::NoInterface);
        }
        simulated::Processor::detect().map(Self::Simulated)
    }

    /// Whether reports come from real hardware.
    pub fn is_hardware(&self) -> bool {
        !matches!(self, Self::Simulated(_))
    }

    /// Requests a report over `report_data`.
    ///
    /// # Errors
    /// When the request fails or the answer is not a report over it.
    pub fn request(&mut self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        let evidence = match self {
            Self::Tsm => tsm::request(report_data),
            Self::SevGuest => sev_guest::request(report_data),
            Self::Simulated(processor) => processor.request(report_data),
        }?;
        let report =
            AttestationReport::read_layout(&evidence.report).map_err(EvidenceError::Report)?;
        if report.report_data != *report_data {
            return Err(EvidenceError::ReportData);
        }
        Ok(evidence)
    }
}

/// Checks that the processor binds the instance document to this guest.
///
/// # Errors
/// When HOST_DATA is the digest of another document.
pub fn check_host_data(evidence: &Evidence, document: &[u8]) -> Result<(), EvidenceError> {
    let report = AttestationReport::read_layout(&evidence.report).map_err(EvidenceError::Report)?;
    let reported = Sha256Digest::new(report.host_data);
    let document = InstanceData::host_data(document);
    if reported == document {
        Ok(())
    } else {
        Err(EvidenceError::HostData { reported, document })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(host_data: [u8; 32]) -> Evidence {
        let mut report = AttestationReport::zeroed();
        report.host_data = host_data;
        Evidence {
            report: report.encode(),
            certificates: CertificateTable::default(),
        }
    }

    #[test]
    fn the_document_must_be_the_one_in_host_data() {
        let document = b"{\"version\":1}";
        let good = evidence(*InstanceData::host_data(document).as_bytes());
        assert!(check_host_data(&good, document).is_ok());
        for (evidence, document) in [
            (&good, b"{\"version\":1} ".as_slice()),
            (&good, b""),
            (&evidence([0; 32]), document),
        ] {
            assert!(matches!(
                check_host_data(evidence, document),
                Err(EvidenceError::HostData { .. })
            ));
        }
    }
}
