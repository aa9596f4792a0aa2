//! Fakes for the end-to-end tests.
