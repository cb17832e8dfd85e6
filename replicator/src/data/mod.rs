//! The data thread: io_uring event loop that drives store, engines and front-ends.
