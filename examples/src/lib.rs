//! Examples: configurations, data and programs to copy.
