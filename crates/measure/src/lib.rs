//! Launch digests from bytes, with a trace of every region.
