//! libFuzzer, which makes bytes that take the program new ways. `instrument.sh` links it.

#![allow(unsafe_code)] // it is C++

use std::{
    env,
    ffi::{CString, c_char, c_int},
    fs,
    path::Path,
    ptr, slice,
    sync::OnceLock,
};

/// libFuzzer's own arguments, separated by blanks. Without them the test only reads the cases that are kept.
const ARGUMENTS: &str = "FUZZ";
/// Where it keeps what it finds.
const FOUND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/fuzz");

static TARGET: OnceLock<fn(&[u8]) -> bool> = OnceLock::new();

unsafe extern "C" {
    fn LLVMFuzzerRunDriver(
        count: *mut c_int,
        arguments: *mut *mut *mut c_char,
        one: extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

/// If the process was started for that, searches until libFuzzer's arguments have it end, and ends the
/// process. `kept` is the folder of the cases that it begins with.
pub fn run_if_wanted(name: &str, kept: &Path, target: fn(&[u8]) -> bool) {
    if let Ok(words) = env::var(ARGUMENTS) {
        TARGET.get_or_init(|| target);
        let found = Path::new(FOUND).join(name);
        fs::create_dir_all(&found).unwrap();
        let prefix = format!("-artifact_prefix={}/", found.display());
        let folders = [&found, kept].map(|folder: &Path| folder.to_str().unwrap().to_owned());
        let words = env::args().take(1).chain(words.split_whitespace().map(str::to_owned));
        let words = words.chain([prefix]).chain(folders);
        let words: Vec<CString> = words.map(|word| CString::new(word).unwrap()).collect();
        let mut pointers: Vec<*mut c_char> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
        let mut count = pointers.len().try_into().unwrap();
        pointers.push(ptr::null_mut());
        let mut arguments = pointers.as_mut_ptr();
        // SAFETY: these are a program's arguments as C has them, and live as long as the call.
        let code = unsafe { LLVMFuzzerRunDriver(&raw mut count, &raw mut arguments, one) };
        std::process::exit(code);
    }
}

/// Where the target panics, the process aborts, and libFuzzer writes the bytes to a file.
extern "C" fn one(bytes: *const u8, length: usize) -> c_int {
    let bytes = match length {
        0 => &[],
        // SAFETY: libFuzzer gives that many bytes, which last until this returns.
        _ => unsafe { slice::from_raw_parts(bytes, length) },
    };
    TARGET.get().map(|target| target(bytes));
    0
}
