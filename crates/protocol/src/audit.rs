//! The audit log of a key broker: what was released and what was refused, as a
//! chain of lines that cannot be changed, removed or reordered unseen.
//!
//! A line is canonical JSON (RFC 8785) and holds the SHA-256 of the line before
//! it; the first holds that of nothing. What a chain cannot show is that its end
//! was cut off, or that somebody wrote it anew from some line on: for that, its
//! head must be compared with one that was kept elsewhere.

use std::io::{self, BufRead};

use assay_tee::Sha256Digest;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use serde::{Deserialize, Serialize};

/// What became of one request for a resource. Names, and never a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuditEntry {
    /// When it was decided (RFC 3339).
    pub time: String,
    /// The resource, `{namespace}/{deployment}/{name}`.
    pub resource: String,
    /// What became of it.
    pub outcome: AuditOutcome,
    /// Reason code of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Namespace of the guest that asked.
    pub namespace: String,
    /// Its ConfidentialDeployment.
    pub deployment: String,
    /// Its pod.
    pub pod: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// Its MeasuredImage.
    pub image: String,
    /// Root of trust of its evidence.
    pub trust_domain: String,
    /// The policy that it was accepted under, by digest.
    pub policy: String,
    /// The challenge that its evidence answered.
    pub nonce: String,
    /// Where the resource is a volume: what its keys are after the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeAudit>,
}

/// What the keys of a volume are after a request. Numbers, and never a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeAudit {
    /// What the guest asked for.
    pub operation: VolumeOperation,
    /// The generation that the guest named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presented: Option<u64>,
    /// The generation after a request that was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The current version of the key after a request that was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_version: Option<u32>,
    /// The version that was current before, where the request made a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_from: Option<u32>,
}

/// What a guest asks of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeOperation {
    /// Its keys.
    Open,
    /// To hold it no longer.
    Close,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditOutcome {
    /// The resource was released.
    Released,
    /// It was refused.
    Refused,
    /// The guest holds the volume no longer; nothing was released.
    Closed,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prev: Sha256Digest,
    entry: AuditEntry,
}

/// The chain up to some line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditChain {
    /// SHA-256 of the last line, without its line feed.
    pub head: Sha256Digest,
    /// Number of lines.
    pub lines: u64,
    /// Their length in bytes, with line feeds.
    pub length: u64,
}

impl Default for AuditChain {
    fn default() -> Self {
        Self {
            head: Sha256Digest::of(&[]),
            lines: 0,
            length: 0,
        }
    }
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum BrokenLine {
    /// It is no entry.
    #[error("not an entry of an audit log")]
    Parse(#[source] serde_json::Error),
    /// It is an entry in other bytes than were written.
    #[error("not canonical JSON")]
    NotCanonical,
    /// It does not follow the line before it.
    #[error("prev is {got}, and the line before has {expected}")]
    NotChained {
        /// Digest of the line before.
        expected: Sha256Digest,
        /// What the line says.
        got: Sha256Digest,
    },
}

/// Why a log is not verified.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// It cannot be read.
    #[error("cannot read the audit log")]
    Read(#[source] io::Error),
    /// A line was changed, or lines before it were removed or reordered.
    #[error("line {number} is broken")]
    Broken {
        /// The first such line, from 1.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: BrokenLine,
    },
    /// The last line has no end: its writer was interrupted, and has answered
    /// nothing on its account.
    #[error(
        "line {number} is incomplete: the broker was interrupted, and removes it when it starts"
    )]
    Incomplete {
        /// The line, from 1.
        number: u64,
        /// The chain before it.
        before: AuditChain,
    },
}

impl AuditChain {
    /// The line that adds `entry`, with its line feed.
    ///
    /// # Errors
    /// Never for an entry; the encoder's error is passed on.
    pub fn encode(&self, entry: AuditEntry) -> Result<Vec<u8>, EncodeCanonicalError> {
        let prev = self.head;
        let mut line = encode_canonical(&Line { prev, entry })?;
        line.push(b'\n');
        Ok(line)
    }

    /// The chain after a line of [`AuditChain::encode`].
    #[must_use]
    pub fn after(&self, line: &[u8]) -> Self {
        Self {
            head: Sha256Digest::of(line.strip_suffix(b"\n").unwrap_or(line)),
            lines: self.lines.saturating_add(1),
            length: self.length.saturating_add(line.len() as u64),
        }
    }

    fn verify_line(&self, line: &[u8]) -> Result<Self, BrokenLine> {
        let Line { prev, entry } = serde_json::from_slice(line).map_err(BrokenLine::Parse)?;
        if prev != self.head {
            return Err(BrokenLine::NotChained {
                expected: self.head,
                got: prev,
            });
        }
        if self.encode(entry).is_ok_and(|written| written == line) {
            Ok(self.after(line))
        } else {
            Err(BrokenLine::NotCanonical)
        }
    }
}

/// Verifies a log from its first line to its last.
///
/// # Errors
/// The first line that is not as it was written.
pub fn verify_log(mut log: impl BufRead) -> Result<AuditChain, AuditError> {
    let mut chain = AuditChain::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        log.read_until(b'\n', &mut line).map_err(AuditError::Read)?;
        if line.is_empty() {
            return Ok(chain);
        }
        let number = chain.lines.saturating_add(1);
        if !line.ends_with(b"\n") {
            let before = chain;
            return Err(AuditError::Incomplete { number, before });
        }
        chain = chain
            .verify_line(&line)
            .map_err(|source| AuditError::Broken { number, source })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(resource: &str) -> AuditEntry {
        AuditEntry {
            time: "2027-01-15T08:00:00Z".to_owned(),
            resource: resource.to_owned(),
            outcome: AuditOutcome::Refused,
            reason: Some("SecretMissing".to_owned()),
            namespace: "shop".to_owned(),
            deployment: "web".to_owned(),
            pod: "web-abc".to_owned(),
            pod_uid: "uid".to_owned(),
            image: "web-1".to_owned(),
            trust_domain: "AMD".to_owned(),
            policy: "sha256:00".to_owned(),
            nonce: "bm9uY2U=".to_owned(),
            volume: None,
        }
    }

    fn log() -> Vec<Vec<u8>> {
        let mut chain = AuditChain::default();
        ["shop/web/a", "shop/web/b", "shop/web/c", "shop/web/d"]
            .into_iter()
            .map(|resource| {
                let line = chain.encode(entry(resource)).unwrap();
                chain = chain.after(&line);
                line
            })
            .collect()
    }

    #[test]
    fn a_log_is_verified_line_by_line() {
        let log = log().concat();
        let chain = verify_log(&log[..]).unwrap();
        assert_eq!(chain.lines, 4);
        assert_eq!(chain.length, log.len() as u64);
        assert_eq!(verify_log(&b""[..]).unwrap(), AuditChain::default());
    }

    /// The bytes of a line, for whoever verifies with other tools.
    #[test]
    fn a_line_has_one_spelling() {
        let text = String::from_utf8(log().remove(0)).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"entry":{"deployment":"web","image":"web-1","namespace":"shop","#,
                r#""nonce":"bm9uY2U=","outcome":"Refused","pod":"web-abc","podUid":"uid","#,
                r#""policy":"sha256:00","reason":"SecretMissing","resource":"shop/web/a","#,
                r#""time":"2027-01-15T08:00:00Z","trustDomain":"AMD"},"#,
                r#""prev":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn the_first_broken_line_is_named() {
        type Change = fn(&mut Vec<Vec<u8>>);
        let rows: [(Change, u64); 8] = [
            (|log| drop(log.remove(0)), 1),
            (|log| drop(log.remove(1)), 2),
            (|log| log.swap(1, 2), 2),
            (|log| log.insert(2, log[1].clone()), 3),
            (|log| log[2].insert(1, b' '), 3),
            (|log| log[1] = b"\n".to_vec(), 2),
            (|log| log[3] = b"{}\n".to_vec(), 4),
            // The line itself still parses; the next one tells.
            (
                |log| {
                    let text = String::from_utf8(log[1].clone()).unwrap();
                    log[1] = text.replace("Refused", "Released").into_bytes();
                },
                3,
            ),
        ];
        for (index, (change, broken)) in rows.into_iter().enumerate() {
            let mut log = log();
            change(&mut log);
            match verify_log(&log.concat()[..]) {
                Err(AuditError::Broken { number, .. }) => assert_eq!(number, broken, "row {index}"),
                other => panic!("row {index}: {other:?}"),
            }
        }
    }

    #[test]
    fn every_changed_byte_but_of_the_last_line_is_found() {
        let log = log().concat();
        let last = log.len()
            - log[..log.len() - 1]
                .iter()
                .rev()
                .position(|b| *b == b'\n')
                .unwrap();
        for index in 0..last - 1 {
            let mut changed = log.clone();
            changed[index] ^= 1;
            assert!(verify_log(&changed[..]).is_err(), "byte {index}");
        }
    }

    #[test]
    fn an_interrupted_line_is_told_from_a_broken_one() {
        let log = log();
        let whole = log[..2].concat();
        let torn = [&whole, &log[2][..9]].concat();
        match verify_log(&torn[..]) {
            Err(AuditError::Incomplete { number: 3, before }) => {
                assert_eq!(before, verify_log(&whole[..]).unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
}
