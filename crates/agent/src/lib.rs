//! PID 1 of a confidential guest.
