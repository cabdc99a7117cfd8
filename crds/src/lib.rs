//! The API types of assay.dev.
