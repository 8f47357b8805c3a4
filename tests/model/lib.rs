//! Nothing: all of this package is its test, `main.rs`.
