//! The machine and its processes: CPU time, resident memory, cores, free disk space.
#![allow(
    unsafe_code,
    reason = "these system calls have no safe wrapper among our dependencies; each call is explained"
)]

use std::ffi::CString;
use std::mem;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Holds the calling process, its threads to come and its children to one core.
///
/// # Errors
/// The core does not exist or is not ours to use.
pub fn pin_to(core: usize) -> Result<()> {
    // SAFETY: `cpu_set_t` is plain data for which all zeroes is the empty set; the call reads it.
    let done = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), &set)
    };
    if done != 0 {
        bail!(
            "cannot use core {core} alone: {}",
            std::io::Error::last_os_error()
        );
    }
    Ok(())
}

/// CPU time of a process since its start, user and system, to the nanosecond.
///
/// # Errors
/// There is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls only write to the places that they are given.
    let done = unsafe {
        libc::clock_getcpuclockid(pid.cast_signed(), &mut clock) == 0
            && libc::clock_gettime(clock, &mut time) == 0
    };
    if !done {
        bail!("process {pid} has ended");
    }
    Ok(Duration::new(
        time.tv_sec.try_into().unwrap_or_default(),
        time.tv_nsec.try_into().unwrap_or_default(),
    ))
}

/// Resident memory of a process in MiB.
///
/// # Errors
/// There is no such process, or `/proc` is not to be had.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .context("/proc/PID/status has no VmRSS")?;
    Ok(kib / 1024.0)
}

/// Asks a process to stop (SIGTERM). One that has ended already is no error.
pub fn terminate(pid: u32) {
    // SAFETY: sends a signal; touches no memory.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGTERM) };
}

/// Bytes that may still be written to the file system of `path`.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: `statvfs` is plain data for which all zeroes is valid; the call writes it and reads
    // a string that ends in a zero byte.
    let stat = unsafe {
        let mut stat: libc::statvfs = mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut stat) == 0).then_some(stat)?
    };
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_used_cpu_and_memory() {
        let pid = std::process::id();
        assert!(cpu_time(pid).unwrap() > Duration::ZERO);
        assert!(resident_mib(pid).unwrap() > 0.5);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(cpu_time(4_000_000).is_err());
    }
}
