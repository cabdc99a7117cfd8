//! Reports from configfs-tsm (Linux, `Documentation/ABI/testing/configfs-tsm-report`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use assay_tee::guest_message::{CertificateTable, GuestMessageError};

use super::{Evidence, EvidenceError};
use crate::plan::CONFIGFS;

/// What configfs-tsm calls an SNP processor.
pub(super) const SNP: &str = "sev_guest";

const INTERFACE: &str = "configfs-tsm";
/// Tries before a report that somebody else keeps changing is given up.
const TRIES: u32 = 5;

/// A report entry, which goes away with the value.
struct Entry(PathBuf);

impl Entry {
    /// `None` when no processor is registered.
    fn create() -> Result<Option<Self>, EvidenceError> {
        let reports = Path::new(CONFIGFS).join("tsm/report");
        if !reports.is_dir() {
            return Ok(None);
        }
        let entry = reports.join("assay");
        match fs::create_dir(&entry) {
            Ok(()) => Ok(Some(Self(entry))),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(source) => Err(failed("create a report entry")(source)),
        }
    }

    fn read(&self, attribute: &'static str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(attribute))
    }

    fn text(&self, attribute: &'static str) -> Result<String, EvidenceError> {
        let bytes = self
            .read(attribute)
            .map_err(failed("read a report attribute"))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> EvidenceError {
    move |source| EvidenceError::Request {
        interface: INTERFACE,
        action,
        source,
    }
}

/// The name of the registered processor, if there is one.
pub(super) fn provider() -> Result<Option<String>, EvidenceError> {
    Entry::create()?
        .map(|entry| entry.text("provider"))
        .transpose()
}

pub(super) fn request(report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
    let missing = || failed("create a report entry")(io::ErrorKind::NotFound.into());
    for _ in 0..TRIES {
        let entry = Entry::create()?.ok_or_else(missing)?;
        fs::write(entry.0.join("inblob"), report_data).map_err(failed("write report data"))?;
        let before = entry.text("generation")?;
        let report = entry.read("outblob").map_err(failed("read the report"))?;
        // A host that provides no certificates leaves the attribute empty or
        // unreadable; the verifier has its own.
        let table = entry.read("auxblob").unwrap_or_default();
        if entry.text("generation")? != before {
            continue;
        }
        let got = report.len();
        let report = report.try_into().map_err(|_| EvidenceError::Answer {
            interface: INTERFACE,
            source: GuestMessageError::Length {
                message: "ATTESTATION_REPORT",
                want: assay_tee::report::REPORT_LEN,
                got,
            },
        })?;
        let certificates =
            CertificateTable::parse(&table).map_err(|source| EvidenceError::Answer {
                interface: INTERFACE,
                source,
            })?;
        return Ok(Evidence {
            report,
            certificates,
        });
    }
    Err(EvidenceError::Unstable)
}
