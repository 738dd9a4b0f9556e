//! The kernel's messages that devices come and go (netlink, NETLINK_KOBJECT_UEVENT), and udev's, that it
//! has set up their nodes.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The multicast groups of the kernel and of udev.
const GROUPS: u32 = 1 | 2;

/// Begins to listen.
///
/// # Errors
/// Those of socket(2) and bind(2): a network namespace of one's own has none of these messages.
pub(crate) fn open() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket)
}

/// Reads all messages that there are. Gives whether any can be about a device of VFIO.
pub(crate) fn concern_vfio(socket: &OwnedFd) -> bool {
    let mut concern = false;
    let mut message = [0u8; 8192];
    loop {
        match recv(socket, &mut message[..], RecvFlags::empty()) {
            Ok((length, _)) => concern |= concerns_vfio(&message[..length]),
            // Some were lost.
            Err(Errno::NOBUFS) => concern = true,
            Err(_) => return concern,
        }
    }
}

fn concerns_vfio(message: &[u8]) -> bool {
    let fields = || message.split(|byte| *byte == 0);
    fields().any(|field| field == b"SUBSYSTEM=vfio" || field == b"SUBSYSTEM=vfio-dev")
        || fields().any(|field| field == b"ACTION=bind" || field == b"ACTION=unbind")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding_a_driver_concerns_us_and_a_disk_does_not() {
        let bind = b"bind@/devices/pci0000:00/0000:00:10.0\0ACTION=bind\0SUBSYSTEM=pci\0";
        let group = b"add@/devices/virtual/vfio/4\0ACTION=add\0SUBSYSTEM=vfio\0";
        let disk = b"change@/devices/vda\0ACTION=change\0SUBSYSTEM=block\0";
        assert!(concerns_vfio(bind) && concerns_vfio(group) && !concerns_vfio(disk));
    }
}
