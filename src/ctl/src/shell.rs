//! What a shell and `man` need: completion scripts and man pages, made from the grammar itself.

use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::{Shell, generate};

/// Writes the completion script of a shell to stdout.
pub fn completion(command: &mut Command, shell: Shell) {
    generate(shell, command, "longshore", &mut io::stdout());
}

/// Writes a man page for every command into a folder.
///
/// # Errors
/// The folder cannot be made or written.
pub fn man_pages(command: Command, folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
