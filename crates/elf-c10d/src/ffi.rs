//! The C interface of `cpp/c10d.cpp`.

use std::ffi::{CStr, c_char, c_int, c_void};

#[repr(C)]
pub struct RawStore {
    _private: [u8; 0],
}

#[repr(C)]
pub struct RawGroup {
    _private: [u8; 0],
}

#[repr(C)]
pub struct RawWork {
    _private: [u8; 0],
}

// Long lists of arguments are those of the C functions.
unsafe extern "C" {
    pub fn elf_c10d_free(pointer: *mut c_void);
    pub fn elf_c10d_hush();

    pub fn elf_c10d_tcp_store(
        host: *const c_char,
        port: u16,
        server: bool,
        listener: c_int,
        timeout_ms: i64,
        bound_port: *mut u16,
        error: *mut *mut c_char,
    ) -> *mut RawStore;
    pub fn elf_c10d_file_store(path: *const c_char, timeout_ms: i64, error: *mut *mut c_char) -> *mut RawStore;
    pub fn elf_c10d_prefix_store(
        store: *const RawStore,
        prefix: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut RawStore;
    pub fn elf_c10d_store_free(store: *mut RawStore);
    pub fn elf_c10d_store_set(
        store: *mut RawStore,
        key: *const c_char,
        data: *const u8,
        length: usize,
        error: *mut *mut c_char,
    ) -> bool;
    pub fn elf_c10d_store_get(
        store: *mut RawStore,
        key: *const c_char,
        data: *mut *mut u8,
        length: *mut usize,
        error: *mut *mut c_char,
    ) -> bool;
    pub fn elf_c10d_store_set_once(
        store: *mut RawStore,
        key: *const c_char,
        wanted: *const u8,
        wanted_length: usize,
        data: *mut *mut u8,
        length: *mut usize,
        error: *mut *mut c_char,
    ) -> bool;
    pub fn elf_c10d_store_add(
        store: *mut RawStore,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
        error: *mut *mut c_char,
    ) -> bool;
    pub fn elf_c10d_store_has(
        store: *mut RawStore,
        key: *const c_char,
        there: *mut bool,
        error: *mut *mut c_char,
    ) -> bool;
    pub fn elf_c10d_store_wait(
        store: *mut RawStore,
        key: *const c_char,
        timeout_ms: i64,
        error: *mut *mut c_char,
    ) -> bool;

    pub fn elf_c10d_gloo(
        store: *const RawStore,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
        interface: *const c_char,
        host: *const c_char,
        threads: c_int,
        error: *mut *mut c_char,
    ) -> *mut RawGroup;
    pub fn elf_c10d_group_free(group: *mut RawGroup);
    pub fn elf_c10d_broadcast(
        group: *mut RawGroup,
        value: *mut c_void,
        root: c_int,
        error: *mut *mut c_char,
    ) -> *mut RawWork;
    pub fn elf_c10d_all_reduce_sum(group: *mut RawGroup, value: *mut c_void, error: *mut *mut c_char) -> *mut RawWork;
    pub fn elf_c10d_all_gather(
        group: *mut RawGroup,
        all: *mut c_void,
        own: *mut c_void,
        error: *mut *mut c_char,
    ) -> *mut RawWork;
    pub fn elf_c10d_reduce_scatter_sum(
        group: *mut RawGroup,
        own: *mut c_void,
        all: *mut c_void,
        error: *mut *mut c_char,
    ) -> *mut RawWork;
    pub fn elf_c10d_barrier(group: *mut RawGroup, error: *mut *mut c_char) -> *mut RawWork;
    pub fn elf_c10d_work_wait(work: *mut RawWork, error: *mut *mut c_char) -> bool;
    pub fn elf_c10d_work_done(work: *mut RawWork) -> bool;
    pub fn elf_c10d_work_free(work: *mut RawWork);

    pub fn elf_c10d_watch_gradient(
        leaf: *mut c_void,
        index: usize,
        call: extern "C" fn(*mut c_void, usize),
        context: *mut c_void,
        error: *mut *mut c_char,
    ) -> bool;
    pub fn elf_c10d_unwatch_gradient(leaf: *mut c_void);
}

/// Takes ownership of an error's text. Its first line is the message.
///
/// # Safety
/// `text` is null, or was set by an `error` parameter above and not taken before.
pub unsafe fn take_text(text: *mut c_char) -> String {
    if text.is_null() {
        return "no reason was given".to_owned();
    }
    // SAFETY: by contract a NUL-terminated text of `elf_text`, which has no other owner.
    let line = unsafe { CStr::from_ptr(text) }.to_string_lossy().lines().next().unwrap_or_default().trim().to_owned();
    // SAFETY: as above.
    unsafe { elf_c10d_free(text.cast()) };
    line
}

/// Takes ownership of bytes.
///
/// # Safety
/// `data` and `length` were filled in by a successful call above and not taken before.
pub unsafe fn take_bytes(data: *mut u8, length: usize) -> Vec<u8> {
    // SAFETY: by contract `length` initialised bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data, length) }.to_vec();
    // SAFETY: by contract they have no other owner.
    unsafe { elf_c10d_free(data.cast()) };
    bytes
}
