//! The local terminal: its size, and raw mode that is undone however the command ends.

use std::io::{self, IsTerminal};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::spdy::session::TerminalSize;

/// Size of the terminal on stdout, else on stdin; None where neither is one.
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    // A serial line says 0 by 0.
    (size.ws_col > 0 && size.ws_row > 0).then_some(TerminalSize { width: size.ws_col, height: size.ws_row })
}

/// The terminal on stdin in raw mode; dropping it restores the mode it had.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// None where stdin is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing better can be done where this fails: `reset` mends it.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}
