//! What Linux says of memory. Not here: how much of it something needs.

/// What Linux's account of this process says in that line, in bytes; `None` on other systems.
pub(super) fn memory(key: &str) -> Option<u64> {
    account("/proc/self/status", key)
}

/// Memory that is free, in bytes; `None` where the system does not say.
pub(super) fn available() -> Option<u64> {
    account("/proc/meminfo", "MemAvailable:")
}

/// A line `KEY N kB` of such a file, in bytes.
fn account(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
