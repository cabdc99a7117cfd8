//! Verifier and key broker service.
