//! Simulated secure processor: launch commands, report signing, development PKI.
