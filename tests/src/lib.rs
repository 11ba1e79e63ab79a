//! What the parity and end-to-end tests share.
