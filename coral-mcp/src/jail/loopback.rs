//! The one address in a network namespace of its own: a listener that the proxy in the owner's
//! process accepts from.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::AsFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, recv,
    sendmsg, sendto, socket,
};

/// Makes the namespace's own loopback work: a new one is down.
///
/// It asks by a netlink message (rtnetlink(7): `RTM_NEWLINK` with `IFF_UP` for link 1, which is
/// always the loopback) and waits for the answer.
pub(super) fn up() -> Result<(), String> {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 0x1 | 0x4;
    const IFF_UP: u32 = 1;
    let failed = |error: rustix::io::Errno| format!("bringing its loopback up: {error}");
    let mut message = Vec::with_capacity(32);
    message.extend(32_u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACKNOWLEDGE.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    // The link: no family, no type, number 1, its flags and which of them change.
    message.extend([0; 4]);
    message.extend(1_u32.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    let asks = socket(AddressFamily::NETLINK, SocketType::RAW, None).map_err(failed)?;
    sendto(&asks, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).map_err(failed)?;
    let mut answer = [0_u8; 512];
    let (n, _) = recv(&asks, &mut answer[..], RecvFlags::empty()).map_err(failed)?;
    // The answer is a header of 16 bytes and a number that is 0, or an error's negative.
    let code = answer.get(16..20).filter(|_| n >= 20).and_then(|b| <[u8; 4]>::try_from(b).ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(failed(rustix::io::Errno::from_raw_os_error(code.saturating_neg()))),
        None => Err("bringing its loopback up: the kernel's answer is not understood".to_owned()),
    }
}

/// Opens a listener on the loopback and hands it to the owner through the standard input, which is
/// a socket. Tells the listener's port.
pub(super) fn hand_out() -> Result<u16, String> {
    let failed = |error: std::io::Error| format!("opening the way to the proxy: {error}");
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let handed = [listener.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&handed));
    sendmsg(std::io::stdin(), &[IoSlice::new(b"L")], &mut ancillary, SendFlags::empty())
        .map_err(|error| failed(error.into()))?;
    Ok(port)
}
