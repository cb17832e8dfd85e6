//! Configuration: a TOML file and flags with the same names.
