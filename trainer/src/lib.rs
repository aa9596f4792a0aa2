//! Tunes the guard: R1-Act examples in, a PEFT adapter out.
