//! Signals and threads.

use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// Blocks all signals in the calling thread, so that they go to the program's own threads.
pub fn block_all() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `all` is valid for writing a signal set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: sigfillset has initialised `all`, and the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), null_mut()) };
}
