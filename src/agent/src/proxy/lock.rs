//! One writer of Services per network namespace: an abstract unix socket held as long as the daemon
//! lives. Such names are of the namespace whose tables are written, and the kernel frees them with the
//! process, so that a killed daemon never blocks the next. No file, nothing to clean up.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// The name all daemons agree on.
const NAME: &[u8] = b"longshore/services";

#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    #[error(
        "another longshore serves Services in this network namespace: stop it, or start this one with \
         --roles node"
    )]
    Taken,
    #[error("reserve the name @{}", String::from_utf8_lossy(NAME))]
    Io(#[source] io::Error),
}

/// Held by the one daemon that writes this network namespace's Services.
#[derive(Debug)]
pub struct WriterLock {
    _name: UnixListener,
}

impl WriterLock {
    /// Takes the name.
    ///
    /// # Errors
    /// [`WriterError::Taken`] while another process of this network namespace holds it.
    pub fn take() -> Result<Self, WriterError> {
        Self::named(NAME)
    }

    fn named(name: &[u8]) -> Result<Self, WriterError> {
        let address = SocketAddr::from_abstract_name(name).map_err(WriterError::Io)?;
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Ok(Self { _name: socket }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(WriterError::Taken),
            Err(error) => Err(WriterError::Io(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_writer_is_refused_until_the_first_is_gone() {
        let name = format!("longshore/test/{}", std::process::id());
        let first = WriterLock::named(name.as_bytes()).unwrap();
        let refused = WriterLock::named(name.as_bytes()).unwrap_err();
        assert!(matches!(refused, WriterError::Taken), "{refused}");
        drop(first);
        WriterLock::named(name.as_bytes()).unwrap();
    }
}
