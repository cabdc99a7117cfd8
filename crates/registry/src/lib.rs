//! Pulls and pushes OCI images by digest.
