//! Stores of keys and values, shared by all processes of a run.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::time::Duration;

use crate::ffi::{self, RawStore};
use crate::{Error, Result};

/// A c10d store, through which processes find one another and exchange values.
#[derive(Debug)]
pub struct Store {
    raw: NonNull<RawStore>,
    port: Option<u16>,
}

// SAFETY: c10d's stores lock their own mutex around every operation, and do not belong to a thread.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Opens a store on `port` of this host and joins it; port 0 takes a free port (see [`Store::port`]). The store ends
    /// when the returned value is dropped. It listens on every address of the host, as PyTorch's store does.
    ///
    /// # Errors
    /// If the port is taken, or not allowed.
    pub fn serve(host: &str, port: u16, timeout: Duration) -> Result<Self> {
        Self::tcp(host, port, true, None, timeout)
    }

    /// Opens a store on a free port of the loopback address, which only this host can reach, and joins it.
    ///
    /// # Errors
    /// If there is no free port.
    #[cfg(unix)]
    pub fn serve_this_host(timeout: Duration) -> Result<Self> {
        let no_port = |e: std::io::Error| Error::Store {
            doing: "opening a meeting point on 127.0.0.1".to_owned(),
            reason: e.to_string(),
        };
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(no_port)?;
        let port = listener.local_addr().map_err(no_port)?.port();
        Self::tcp("127.0.0.1", port, true, Some(listener.into()), timeout)
    }

    /// Joins the store of another process, and waits until it exists.
    ///
    /// # Errors
    /// If it does not exist within `timeout`.
    pub fn join(host: &str, port: u16, timeout: Duration) -> Result<Self> {
        Self::tcp(host, port, false, None, timeout)
    }

    /// `listener` is a bound socket, for a server; the store takes ownership of it.
    fn tcp(host: &str, port: u16, server: bool, listener: Option<Socket>, timeout: Duration) -> Result<Self> {
        let doing = || match server {
            true => format!("opening the meeting point {host}:{port}"),
            false => format!("reaching the meeting point {host}:{port}"),
        };
        let name = text("host", host)?;
        let (mut bound, mut error) = (0, null_mut());
        // SAFETY: the texts and out-parameters outlive the call.
        let raw = unsafe {
            ffi::elf_c10d_tcp_store(
                name.as_ptr(),
                port,
                server,
                listener.map_or(-1, descriptor),
                milliseconds(timeout),
                &mut bound,
                &mut error,
            )
        };
        Ok(Self { raw: made(raw, error, doing)?, port: Some(bound) })
    }

    /// A store in a file that all processes can write. The caller removes the file.
    ///
    /// # Errors
    /// If `path` is not Unicode.
    pub fn file(path: &Path, timeout: Duration) -> Result<Self> {
        let name = path.to_str().ok_or_else(|| Error::Argument {
            argument: "path",
            reason: format!("{} is not Unicode", path.display()),
        })?;
        let name = text("path", name)?;
        let mut error = null_mut();
        // SAFETY: the text and the out-parameter outlive the call.
        let raw = unsafe { ffi::elf_c10d_file_store(name.as_ptr(), milliseconds(timeout), &mut error) };
        Ok(Self { raw: made(raw, error, || format!("opening {}", path.display()))?, port: None })
    }

    /// The same store with `prefix` before every key, so that several users of a store have separate keys.
    ///
    /// # Errors
    /// If `prefix` contains a NUL.
    pub fn within(&self, prefix: &str) -> Result<Self> {
        let name = text("prefix", prefix)?;
        let mut error = null_mut();
        // SAFETY: the store is alive, and the new one holds a reference to it.
        let raw = unsafe { ffi::elf_c10d_prefix_store(self.raw.as_ptr(), name.as_ptr(), &mut error) };
        Ok(Self { raw: made(raw, error, || format!("the prefix {prefix}"))?, port: self.port })
    }

    /// The port of a store on TCP.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Sets a value.
    ///
    /// # Errors
    /// If the store does not answer.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let name = text("key", key)?;
        let mut error = null_mut();
        // SAFETY: all pointers outlive the call.
        let done = unsafe {
            ffi::elf_c10d_store_set(self.raw.as_ptr(), name.as_ptr(), value.as_ptr(), value.len(), &mut error)
        };
        check(done, error, || format!("storing {key}"))
    }

    /// Sets a value if the key has none, and returns the key's value.
    ///
    /// # Errors
    /// If the store does not answer.
    pub fn set_once(&self, key: &str, value: &[u8]) -> Result<Vec<u8>> {
        let name = text("key", key)?;
        let (mut data, mut length, mut error) = (null_mut(), 0, null_mut());
        // SAFETY: all pointers outlive the call.
        let done = unsafe {
            ffi::elf_c10d_store_set_once(
                self.raw.as_ptr(),
                name.as_ptr(),
                value.as_ptr(),
                value.len(),
                &mut data,
                &mut length,
                &mut error,
            )
        };
        check(done, error, || format!("storing {key}"))?;
        // SAFETY: the call succeeded.
        Ok(unsafe { ffi::take_bytes(data, length) })
    }

    /// A value; waits for it up to the store's timeout.
    ///
    /// # Errors
    /// If the key gets no value in time, or the store does not answer.
    pub fn get(&self, key: &str) -> Result<Vec<u8>> {
        let name = text("key", key)?;
        let (mut data, mut length, mut error) = (null_mut(), 0, null_mut());
        // SAFETY: all pointers outlive the call.
        let done =
            unsafe { ffi::elf_c10d_store_get(self.raw.as_ptr(), name.as_ptr(), &mut data, &mut length, &mut error) };
        check(done, error, || format!("waiting for {key}"))?;
        // SAFETY: the call succeeded.
        Ok(unsafe { ffi::take_bytes(data, length) })
    }

    /// Adds to a counter that starts at 0, atomically, and returns the sum.
    ///
    /// # Errors
    /// If the store does not answer.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let name = text("key", key)?;
        let (mut sum, mut error) = (0, null_mut());
        // SAFETY: all pointers outlive the call.
        let done = unsafe { ffi::elf_c10d_store_add(self.raw.as_ptr(), name.as_ptr(), amount, &mut sum, &mut error) };
        check(done, error, || format!("counting {key}"))?;
        Ok(sum)
    }

    /// Whether a key has a value, without waiting.
    ///
    /// # Errors
    /// If the store does not answer.
    pub fn has(&self, key: &str) -> Result<bool> {
        let name = text("key", key)?;
        let (mut there, mut error) = (false, null_mut());
        // SAFETY: all pointers outlive the call.
        let done = unsafe { ffi::elf_c10d_store_has(self.raw.as_ptr(), name.as_ptr(), &mut there, &mut error) };
        check(done, error, || format!("looking for {key}"))?;
        Ok(there)
    }

    /// Waits until a key has a value.
    ///
    /// # Errors
    /// If it has none after `timeout`, or the store does not answer.
    pub fn wait(&self, key: &str, timeout: Duration) -> Result<()> {
        let name = text("key", key)?;
        let mut error = null_mut();
        // SAFETY: all pointers outlive the call.
        let done =
            unsafe { ffi::elf_c10d_store_wait(self.raw.as_ptr(), name.as_ptr(), milliseconds(timeout), &mut error) };
        check(done, error, || format!("waiting for {key}"))
    }

    pub(crate) fn raw(&self) -> *const RawStore {
        self.raw.as_ptr()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by a constructor, and freed only here; groups hold references to the contents.
        unsafe { ffi::elf_c10d_store_free(self.raw.as_ptr()) }
    }
}

#[cfg(unix)]
type Socket = std::os::fd::OwnedFd;
#[cfg(not(unix))]
type Socket = std::convert::Infallible;

/// Converts a socket to a descriptor that C++ owns.
#[cfg(unix)]
fn descriptor(socket: Socket) -> std::ffi::c_int {
    use std::os::fd::IntoRawFd;
    socket.into_raw_fd()
}
#[cfg(not(unix))]
fn descriptor(socket: Socket) -> std::ffi::c_int {
    match socket {}
}

pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2).max(1)
}

pub(crate) fn text(argument: &'static str, value: &str) -> Result<CString> {
    CString::new(value).map_err(|_| Error::Argument { argument, reason: "it contains a NUL character".to_owned() })
}

fn made(raw: *mut RawStore, error: *mut c_char, doing: impl Fn() -> String) -> Result<NonNull<RawStore>> {
    // SAFETY: the text comes from the call that just failed.
    NonNull::new(raw).ok_or_else(|| Error::Store { doing: doing(), reason: unsafe { ffi::take_text(error) } })
}

fn check(done: bool, error: *mut c_char, doing: impl Fn() -> String) -> Result<()> {
    match done {
        true => Ok(()),
        // SAFETY: the text comes from the call that just failed.
        false => Err(Error::Store { doing: doing(), reason: unsafe { ffi::take_text(error) } }),
    }
}
