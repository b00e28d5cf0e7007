//! Numbers nobody can guess.
#![allow(unsafe_code)]

use nix::errno::Errno;

/// Fills `buffer` from the kernel's generator, waiting for it in the first moments of a boot.
pub fn fill(buffer: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: pointer and length are those of a slice we hold exclusively.
        match Errno::result(unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) }) {
            Ok(n) => done += usize::try_from(n).unwrap_or(0),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Two random bytes as a number.
pub fn number16() -> Result<u16, Errno> {
    let mut bytes = [0; 2];
    fill(&mut bytes)?;
    Ok(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_buffer_is_not_what_it_was() {
        let mut buffer = [0u8; 32];
        fill(&mut buffer).unwrap();
        assert_ne!(buffer, [0u8; 32]);
    }
}
