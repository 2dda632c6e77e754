//! System calls that no safe interface offers.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

/// `TUNSETIFF`, `_IOW('T', 202, int)`.
const SET_INTERFACE: u64 = 0x4004_54CA;
const NAME_BYTES: usize = 16;

/// `struct ifreq`, as far as it is read here.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: libc::c_short,
    _rest: [u8; 22],
}

/// Makes a network interface whose packets are read from the file and written to it, one a call.
/// It goes when the file is closed.
pub(super) fn open_tun(name: &str) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
    assert!(name.len() < NAME_BYTES, "{name} is too long for an interface");
    let mut bytes = [0; NAME_BYTES];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let request = InterfaceRequest { name: bytes, flags, _rest: [0; 22] };
    // SAFETY: the call reads one `ifreq` behind the pointer, which outlives it, and keeps nothing.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), SET_INTERFACE as _, &raw const request) };
    if done == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

/// Waits until one of the files can be read, for `timeout_ms` at most.
pub(super) fn wait_for_any(files: &[File], timeout_ms: i32) -> io::Result<Vec<bool>> {
    let (events, revents) = (libc::POLLIN, 0);
    let poll = |file: &File| libc::pollfd { fd: file.as_raw_fd(), events, revents };
    let mut polls: Vec<_> = files.iter().map(poll).collect();
    // SAFETY: the pointer is to as many entries as the call is told, and they outlive it.
    let found = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout_ms) };
    match io::Error::last_os_error() {
        error if found < 0 && error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(polls.iter().map(|poll| poll.revents != 0).collect()),
    }
}
