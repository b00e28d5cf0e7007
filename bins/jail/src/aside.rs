//! aside - parsing what strangers say in a child of its own, for a program that cannot close a jail itself
#![forbid(unsafe_code)]

use crate::Jail;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use qmail::sys::process::{self, End};
use qmail::sys::{descriptor, memory};
use qmail::timed::{self, Deadline};
use qmail::trouble::Trouble;
use qmail::{exits, fd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Why a jail cannot be closed is said in so many bytes.
const REASON_MAX: usize = 500;

/// The child's exit code then, told to nobody but us.
const NO_JAIL: i32 = 112;

/// Has `work` done in a child that closes this jail first, and gives the bytes it came to. None when there are
/// more than `max`, when they are not all there at the deadline, or when the child did not end by itself and
/// well. Err when there is no child or no jail.
///
/// Of our descriptors the child has 0, 1, 2 and `keep`, and `work` must use no other. It ends when we do.
pub fn aside(
    jail: Jail<'_>,
    keep: &[BorrowedFd<'_>],
    max: usize,
    deadline: Deadline,
    work: impl FnOnce() -> Vec<u8>,
) -> Result<Option<Vec<u8>>, Trouble> {
    let (read, write) = fd::pipe().map_err(|e| Trouble::temporary("unable to open pipe").because(e))?;
    let us = nix::unistd::getpid();
    let forked = process::fork_child(|| {
        memory::die_with_parent(Signal::SIGKILL as i32);
        if nix::unistd::getppid() != us {
            return exits::TEMPORARY; // too late to be told
        }
        descriptor::close_others(&[keep, &[write.as_fd()]].concat());
        let (said, code) = match jail.close() {
            Ok(()) => (work(), exits::SUCCESS),
            Err(trouble) => (trouble.text(), NO_JAIL),
        };
        fd::write_all(&write, &said).map_or(exits::TEMPORARY, |()| code)
    });
    drop(write);
    let pid = forked.map_err(|e| Trouble::temporary("unable to fork").because(e))?;
    let said = read_to_end(&read, max.max(REASON_MAX), deadline);
    let _ = kill(pid, Signal::SIGKILL); // one that has said all and ends by itself does not notice
    match (process::wait(pid), said) {
        (Ok(End::Exit(exits::SUCCESS)), Ok(said)) if said.len() <= max => Ok(Some(said)),
        (Ok(End::Exit(NO_JAIL)), Ok(reason)) => Err(Trouble::temporary(reason)),
        _ => Ok(None),
    }
}

fn read_to_end(pipe: &OwnedFd, max: usize, deadline: Deadline) -> Result<Vec<u8>, Errno> {
    let mut said = Vec::new();
    let mut chunk = [0u8; 1024];
    loop {
        let n = timed::read(pipe, &mut chunk, deadline)?;
        if n == 0 {
            return Ok(said);
        }
        if said.len() + n > max {
            return Err(Errno::EFBIG);
        }
        said.extend_from_slice(chunk.get(..n).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::TCPSERVER_IDENT;

    /// Tests have threads, which a forked child must do without: what it calls here takes no lock of theirs.
    fn done(max: usize, deadline: Deadline, work: impl FnOnce() -> Vec<u8>) -> Option<Vec<u8>> {
        aside(Jail::of(&TCPSERVER_IDENT), &[], max, deadline, work).unwrap()
    }

    #[test]
    fn the_answer_comes_back_from_within_the_jail() {
        let answer = done(10, Deadline::seconds(30), || {
            let refused = nix::unistd::chdir("/") == Err(Errno::EPERM);
            if refused { b"in jail".to_vec() } else { b"free".to_vec() }
        });
        assert_eq!(answer, Some(b"in jail".to_vec()));
        nix::unistd::chdir(".").unwrap();
    }

    #[test]
    fn too_long_an_answer_a_late_one_and_a_bad_end_are_none() {
        assert_eq!(done(10, Deadline::seconds(30), || vec![b'x'; 10]), Some(vec![b'x'; 10]));
        assert_eq!(done(10, Deadline::seconds(30), || vec![b'x'; 11]), None);
        assert_eq!(done(10, Deadline::seconds(30), || vec![b'x'; 200_000]), None);
        let late = Deadline::after(std::time::Duration::from_millis(50));
        assert_eq!(
            done(10, late, || loop {
                std::thread::park()
            }),
            None
        );
        assert_eq!(done(10, Deadline::seconds(30), || process::exit(3)), None);
    }

    #[test]
    fn other_descriptors_are_closed() {
        let (read, write) = fd::pipe().unwrap();
        let answer = aside(Jail::of(&TCPSERVER_IDENT), &[write.as_fd()], 10, Deadline::seconds(30), || {
            let open = |fd: &OwnedFd| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).is_ok();
            vec![u8::from(open(&read)), u8::from(open(&write))]
        });
        assert_eq!(answer.unwrap(), Some(vec![0, 1]));
    }
}
