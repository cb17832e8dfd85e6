//! The house rules that no compiler checks, as tests: layering, file length, unsafe in one place, words
//! that do not belong, documents that must be there. Only tests; nothing to link.
#![forbid(unsafe_code)]
