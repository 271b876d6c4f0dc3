//! Generic netlink: the family header and the look-up of a family's number by name
//! (`linux/genetlink.h`). What a family's messages hold is in its own module.

use nix::errno::Errno;

use super::wire::{Attributes, NLM_F_ACK};
use super::{NetlinkError, NetlinkSocket};

/// `NETLINK_GENERIC`.
pub const NETLINK_GENERIC: isize = 16;
/// Length of `struct genlmsghdr`.
pub const HEADER_LEN: usize = 4;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The family header of a command.
pub const fn header(command: u8, version: u8) -> [u8; HEADER_LEN] {
    [command, version, 0, 0]
}

/// The number of a family. The kernel loads the family's module when it can; without it the answer is
/// [`NetlinkError::NoFamily`].
pub fn resolve_family(socket: &mut NetlinkSocket, name: &'static str) -> Result<u16, NetlinkError> {
    let mut id = None;
    let outcome = socket.request(
        |builder, seq| {
            builder.begin(GENL_ID_CTRL, NLM_F_ACK, seq, &header(CTRL_CMD_GETFAMILY, 1));
            builder.str(CTRL_ATTR_FAMILY_NAME, name);
            builder.end();
        },
        |message| {
            let attributes = Attributes::behind(message.payload, HEADER_LEN)?;
            if let Some(attribute) = attributes.find(CTRL_ATTR_FAMILY_ID)? {
                id = Some(attribute.u16()?);
            }
            Ok(())
        },
    );
    match outcome {
        Ok(()) => id.ok_or(NetlinkError::Malformed("family answer without its number")),
        Err(NetlinkError::Refused(refusal)) if refusal.errno == Errno::ENOENT => {
            Err(NetlinkError::NoFamily(name))
        }
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_resolved_and_missing_ones_named() {
        let mut socket = NetlinkSocket::open(NETLINK_GENERIC).unwrap();
        assert_eq!(resolve_family(&mut socket, "nlctrl"), Ok(GENL_ID_CTRL));
        let err = resolve_family(&mut socket, "NO_SUCH_FAMILY").unwrap_err();
        assert_eq!(err.to_string(), "the kernel has no generic netlink family NO_SUCH_FAMILY");
        assert!(!err.is_retryable());
    }
}
