//! `forethought key`: keys for tenants. Only their hashes are kept anywhere.

use std::io::{BufRead, Write};

use anyhow::{Result, ensure};
use clap::Subcommand;

use crate::config::KeyHash;

/// What to do with a key.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key, show it once, and print the line for the tenant's `keys_file`
    New,
    /// Print the line for a key that is read from standard input
    Hash,
}

/// Runs `forethought key`.
///
/// # Errors
/// The key is empty; errors of `input` and `out`.
pub fn run(command: KeyCommand, input: &mut impl BufRead, out: &mut impl Write) -> Result<()> {
    match command {
        KeyCommand::New => {
            let key = format!("ft-{}", hex::encode(rand::random::<[u8; 32]>()));
            writeln!(out, "key, for the caller; it is not shown again:\n  {key}")?;
            writeln!(out, "line for the tenant's `keys_file`:\n  {}", KeyHash::of(&key))?;
        }
        KeyCommand::Hash => {
            let mut key = String::new();
            input.read_line(&mut key)?;
            let key = key.trim();
            ensure!(!key.is_empty(), "standard input holds no key");
            writeln!(out, "{}", KeyHash::of(key))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_and_its_line_fit() {
        let said = |command, input: &str| {
            let mut out = Vec::new();
            run(command, &mut input.as_bytes(), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let new = said(KeyCommand::New, "");
        let lines: Vec<_> = new.lines().map(str::trim).collect();
        assert!(lines[1].starts_with("ft-") && lines[3].starts_with("sha256:"), "{new}");
        assert_eq!(said(KeyCommand::Hash, &format!("{}\n", lines[1])).trim(), lines[3]);
        assert_ne!(said(KeyCommand::New, ""), new);
        assert!(run(KeyCommand::Hash, &mut "\n".as_bytes(), &mut Vec::new()).is_err());
    }
}
