//! What a process takes, as proc(5) tells it.

use std::path::Path;

/// Resident memory, in MB.
pub fn resident_mb(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok())
        .map_or(0, |kb| kb / 1000)
}

/// Name and processor seconds (user and system) out of the stat file of a process or a thread.
pub fn stat(path: &Path) -> Option<(String, f64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let (before, after) = text.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_whitespace().skip(11);
    let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    // Linux has counted 100 ticks a second for programs on every machine it runs on.
    Some((
        name.trim_end_matches(char::is_numeric)
            .trim_end_matches('-')
            .to_owned(),
        ticks / 100.0,
    ))
}

/// Processor seconds of a whole process.
pub fn cpu_s(pid: u32) -> f64 {
    let path = format!("/proc/{pid}/stat");
    stat(Path::new(&path)).map_or(0.0, |(_, seconds)| seconds)
}
