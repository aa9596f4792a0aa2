//! Host for WebAssembly policy plugins. The policies that exist so far are built into `forethought-core`.
