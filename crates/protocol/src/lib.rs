//! Guest and broker messages, the session machine and JWE.
