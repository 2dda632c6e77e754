//! Stands between a process and the system's library: a clock that jumps, a boot id of its own,
//! syncs and reads that are slow or fail. Compiled by the test itself, and loaded into the servers
//! with `LD_PRELOAD`.
//!
//! `CHAOS_CONTROL` names a file of [`Control`], which the test writes and this reads at every call;
//! `CHAOS_BOOT` a file that is opened in place of the kernel's boot id.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, Ordering};

/// What the test wants; in the byte order of the machine.
#[repr(C)]
struct Control {
    clock_offset_ns: AtomicI64,
    /// Of a million calls, how many fail.
    failing_syncs: AtomicU32,
    failing_reads: AtomicU32,
    sync_delay_us: AtomicU32,
}

#[repr(C)]
pub struct Time {
    seconds: i64,
    nanoseconds: i64,
}

const BOOT_ID: &[u8] = b"/proc/sys/kernel/random/boot_id";
const EIO: c_int = 5;
const AT_FDCWD: c_int = -100;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const PREAD: i64 = 17;
    pub const FSYNC: i64 = 74;
    pub const FDATASYNC: i64 = 75;
    pub const CLOCK_GETTIME: i64 = 228;
    pub const OPENAT: i64 = 257;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const PREAD: i64 = 67;
    pub const FSYNC: i64 = 82;
    pub const FDATASYNC: i64 = 83;
    pub const CLOCK_GETTIME: i64 = 113;
    pub const OPENAT: i64 = 56;
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn mmap(at: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, from: i64)
    -> *mut c_void;
    fn usleep(microseconds: c_uint) -> c_int;
    fn __errno_location() -> *mut c_int;
}

static CONTROL: AtomicPtr<Control> = AtomicPtr::new(std::ptr::null_mut());
static DRAWS: AtomicU32 = AtomicU32::new(1);

fn control() -> Option<&'static Control> {
    let mut control = CONTROL.load(Ordering::Acquire);
    if control.is_null() {
        unsafe {
            let path = getenv(c"CHAOS_CONTROL".as_ptr());
            if path.is_null() {
                return None;
            }
            let fd = syscall(number::OPENAT, AT_FDCWD, path, 0, 0) as c_int;
            let mapped = mmap(std::ptr::null_mut(), size_of::<Control>(), 1, 1, fd, 0);
            if fd < 0 || mapped as isize == -1 {
                return None;
            }
            control = mapped.cast();
            CONTROL.store(control, Ordering::Release);
        }
    }
    unsafe { Some(&*control) }
}

fn is_drawn(of_a_million: u32) -> bool {
    let draw = DRAWS.fetch_add(0x9E37_79B9, Ordering::Relaxed);
    let spread = (draw ^ (draw >> 15)).wrapping_mul(0x85EB_CA6B);
    of_a_million > 0 && (spread ^ (spread >> 13)) % 1_000_000 < of_a_million
}

fn fail() -> c_int {
    unsafe { *__errno_location() = EIO };
    -1
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, to: *mut Time) -> c_int {
    let done = unsafe { syscall(number::CLOCK_GETTIME, clock, to) } as c_int;
    // The wall clock, exact and coarse.
    if done == 0 && (clock == 0 || clock == 5) {
        let offset = control().map_or(0, |c| c.clock_offset_ns.load(Ordering::Relaxed));
        let time = unsafe { &mut *to };
        let total = time.seconds as i128 * 1_000_000_000 + i128::from(time.nanoseconds);
        let total = total + i128::from(offset);
        time.seconds = total.div_euclid(1_000_000_000) as i64;
        time.nanoseconds = total.rem_euclid(1_000_000_000) as i64;
    }
    done
}

fn sync(number: i64, fd: c_int) -> c_int {
    if let Some(control) = control() {
        if is_drawn(control.failing_syncs.load(Ordering::Relaxed)) {
            return fail();
        }
        let delay = control.sync_delay_us.load(Ordering::Relaxed);
        if delay > 0 {
            unsafe { usleep(delay) };
        }
    }
    unsafe { syscall(number, fd) as c_int }
}

#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(number::FDATASYNC, fd)
}

#[unsafe(no_mangle)]
pub extern "C" fn fsync(fd: c_int) -> c_int {
    sync(number::FSYNC, fd)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread64(fd: c_int, to: *mut c_void, len: usize, from: i64) -> isize {
    let failing = control().map_or(0, |control| control.failing_reads.load(Ordering::Relaxed));
    if is_drawn(failing) {
        return fail() as isize;
    }
    unsafe { syscall(number::PREAD, fd, to, len, from) as isize }
}

/// The third parameter is there if the flags ask for it, and is passed in the same place.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    let mut path = path;
    if unsafe { CStr::from_ptr(path) }.to_bytes() == BOOT_ID {
        let own = unsafe { getenv(c"CHAOS_BOOT".as_ptr()) };
        path = if own.is_null() { path } else { own };
    }
    unsafe { syscall(number::OPENAT, AT_FDCWD, path, flags, mode) as c_int }
}
