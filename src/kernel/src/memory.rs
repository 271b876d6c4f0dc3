//! Memory of this process: what its allocator keeps of what was freed. Nothing about other processes.

/// Give memory that nothing uses any more back to the kernel. glibc keeps freed pages in the middle of its
/// heaps for as long as something lives behind them: after a first list of ten thousand Services that is more
/// than what is left of it. Takes some milliseconds, in which other threads may wait for memory; with another
/// C library nothing is done.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    // SAFETY: takes no pointers, and locks the heaps itself (malloc_trim(3), MT-Safe).
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::give_back;

    /// Kilobytes of memory that belong to no file.
    fn anonymous() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn freed_memory_below_what_lives_goes_back() {
        // On the first heap and on that of another thread.
        let tried = || {
            let many: Vec<Box<[u8; 1024]>> = (0..40_000).map(|_| Box::new([1; 1024])).collect();
            let last = Box::new([1_u8; 1024]);
            let full = anonymous();
            drop(many);
            give_back();
            assert!(anonymous() + 20_000 < full, "{} of {full} kB are still there", anonymous());
            drop(last);
        };
        std::thread::spawn(tried).join().unwrap();
        tried();
    }
}
