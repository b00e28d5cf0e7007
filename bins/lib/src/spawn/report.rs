//! report - from how a delivery ended to what qmail-send is told
//!
//! Pure functions: the tables are the contract. Where the original takes the unknown for permanent, ours
//! is temporary: an unknown exit code, 101, 126, 127, a signal, a report that is not whole.
#![forbid(unsafe_code)]

use super::slot::Slot;
use crate::sys::process::End;

/// A report of qmail-local is cut to stay below this many bytes.
const LOCAL_MAX: usize = 3000;
const TOO_LONG: &[u8] = b"\nError report too long, sorry.\n";

/// Bytes of qmail-local's output worth keeping: one more shows that it was too long.
pub const LOCAL_KEEP: usize = LOCAL_MAX + 1;
/// Bytes of qmail-remote's output worth keeping for one recipient: qmail-send drops what is beyond
/// 10,000 in a report, and the verdict stands behind the recipient's report and one server's words.
const REMOTE_KEEP: usize = 64 * 1024;
/// And for each further one: qmail-remote passes on at most 5000 bytes of what a server said to it.
const REMOTE_KEEP_EACH: usize = 6000;

/// Bytes of qmail-remote's output worth keeping. Where more is said its end is lost, and with it the
/// verdict: that is temporary.
pub fn remote_keep(recipients: usize) -> usize {
    REMOTE_KEEP + REMOTE_KEEP_EACH * recipients.saturating_sub(1)
}

/// Exit codes of qmail-lspawn's child before it becomes qmail-local, and of qmail-getpw.
pub mod local {
    pub const BUG: i32 = 112;
    pub const ROOT: i32 = 113;
    pub const CDB: i32 = 117;
    pub const SYSTEM: i32 = 118;
    pub const EXEC: i32 = 120;
    pub const EXEC_GETPW: i32 = 121;
}

/// The bytes of one report: slot, letter and text, NUL. A NUL inside the text would end it there.
pub fn encode(slot: Slot, report: &[u8]) -> Vec<u8> {
    let mut out = slot.encode();
    out.extend_from_slice(up_to_nul(report));
    out.push(0);
    out
}

fn up_to_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// qmail-local's end and output as letter and text.
pub fn of_local(end: End, output: &[u8]) -> Vec<u8> {
    let fixed: &[u8] = match end {
        End::Crash(_) => b"Zqmail-local crashed.\n",
        End::Exit(112) => b"ZInternal qmail-lspawn bug.\n",
        End::Exit(113) => b"ZNot allowed to perform deliveries as root.\n",
        End::Exit(115) => b"ZNFS failure in qmail-local.\n",
        End::Exit(116) => b"ZUnable to find alias user!\n",
        End::Exit(117) => b"ZTrouble reading users/cdb in qmail-lspawn.\n",
        End::Exit(118) => b"ZTemporary failure in qmail-lspawn.\n",
        End::Exit(119) => b"ZOut of memory in qmail-lspawn.\n",
        End::Exit(120 | 126) => b"ZUnable to run qmail-local.\n",
        End::Exit(121) => b"ZUnable to run qmail-getpw.\n",
        End::Exit(0) => return with_output(b'K', output),
        End::Exit(100) => return with_output(b'D', output),
        // 111, 71, 74, 75, and everything nobody has told us about.
        End::Exit(_) => return with_output(b'Z', output),
    };
    fixed.to_vec()
}

fn with_output(letter: u8, output: &[u8]) -> Vec<u8> {
    let text = up_to_nul(output);
    let mut report = vec![letter];
    if text.len() > LOCAL_MAX {
        report.extend_from_slice(text.get(..LOCAL_MAX - 1 - TOO_LONG.len()).unwrap_or_default());
        report.extend_from_slice(TOO_LONG);
    } else {
        report.extend_from_slice(text);
    }
    report
}

/// qmail-remote's end and output as letters and texts, one for each of `recipients` deliveries that
/// travelled together. With one recipient this is the translation of the specification; with several
/// each gets the verdict of its own recipient report.
pub fn of_remote(end: End, output: &[u8], recipients: usize) -> Vec<Vec<u8>> {
    let fixed: &[u8] = match end {
        End::Crash(_) => b"Zqmail-remote crashed.\n",
        End::Exit(0) if output.is_empty() => b"Zqmail-remote produced no output.\n",
        End::Exit(0) => {
            let said = Said::of(output);
            return match recipients {
                0 | 1 => vec![said.to_only_one()],
                several => (0..several).map(|at| said.to_one_of_several(at)).collect(),
            };
        }
        End::Exit(_) => b"ZUnable to run qmail-remote.\n",
    };
    vec![fixed.to_vec(); recipients.max(1)]
}

/// The reports of qmail-remote.
struct Said<'a> {
    reports: Vec<&'a [u8]>,
    /// Which of them is the report on the message.
    message: Option<usize>,
}

impl<'a> Said<'a> {
    fn of(output: &'a [u8]) -> Said<'a> {
        // Only a report with its NUL is whole: what a dying program left unfinished says nothing.
        let reports: Vec<&[u8]> =
            output.split_inclusive(|b| *b == 0).filter_map(|r| r.strip_suffix(b"\0")).collect();
        let message = reports.iter().position(|report| verdict(report).is_some());
        Said { reports, message }
    }

    fn report(&self, at: usize) -> &'a [u8] {
        self.reports.get(at).copied().unwrap_or_default()
    }

    /// The letter of the message report; without one, another try.
    fn result(&self) -> u8 {
        self.message.and_then(|at| verdict(self.report(at))).unwrap_or(b'Z')
    }

    fn to_only_one(&self) -> Vec<u8> {
        let result = self.result();
        let last = refusal(self.report(0)).unwrap_or(result);
        let more = Some(self.report(1)).filter(|report| verdict(report).is_some());
        compose(last, self.report(0), result, more)
    }

    /// Report number `at` is this recipient's. Whoever has none because the message report came first shares
    /// that one's failure; success needs a word of its own.
    fn to_one_of_several(&self, at: usize) -> Vec<u8> {
        let result = self.result();
        let Some(message) = self.message.filter(|message| *message <= at) else {
            let mine = self.report(at);
            return match (refusal(mine), mine.first()) {
                (Some(last), _) => compose(last, mine, result, self.message.map(|at| self.report(at))),
                (None, Some(b'r')) => compose(result, mine, result, self.message.map(|at| self.report(at))),
                (None, _) => vec![b'Z'],
            };
        };
        compose(if result == b'K' { b'Z' } else { result }, self.report(message), result, None)
    }
}

/// The letter, the text of a report, and that of the message's unless that is better news.
fn compose(letter: u8, mine: &[u8], result: u8, message: Option<&[u8]>) -> Vec<u8> {
    let mut report = vec![letter];
    report.extend_from_slice(mine.get(1..).unwrap_or_default());
    if let Some(more) = message.filter(|_| rank(result) <= rank(letter)) {
        report.extend_from_slice(more.get(1..).unwrap_or_default());
    }
    report
}

/// The letter of a report on the message.
fn verdict(report: &[u8]) -> Option<u8> {
    report.first().copied().filter(|letter| b"KZD".contains(letter))
}

/// What a recipient report makes of the delivery whatever happens to the message.
fn refusal(report: &[u8]) -> Option<u8> {
    match report.first() {
        Some(b's') => Some(b'Z'),
        Some(b'h') => Some(b'D'),
        _ => None,
    }
}

/// How good a letter is.
fn rank(letter: u8) -> u8 {
    match letter {
        b'K' => 2,
        b'Z' => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(code: i32, output: &[u8]) -> Vec<u8> {
        of_local(End::Exit(code), output)
    }

    fn remote(output: &[u8]) -> Vec<u8> {
        of_remote(End::Exit(0), output, 1).remove(0)
    }

    #[test]
    fn a_report_ends_at_the_first_nul_and_slot_zero_is_a_byte_like_any_other() {
        assert_eq!(encode(0.into(), b"Kdid 1+0+0\n"), b"\0Kdid 1+0+0\n\0");
        assert_eq!(encode(3.into(), b"Ka\0b"), b"\x03Ka\0");
    }

    #[test]
    fn documented_codes_of_qmail_local_mean_what_they_say() {
        assert_eq!(local(0, b"did 1+0+0\n"), b"Kdid 1+0+0\n");
        for code in [111, 71, 74, 75] {
            assert_eq!(local(code, b"later\n"), b"Zlater\n");
        }
        assert_eq!(local(100, b"never\n"), b"Dnever\n");
        assert_eq!(local(113, b"x"), b"ZNot allowed to perform deliveries as root.\n");
        assert_eq!(local(120, b"x"), b"ZUnable to run qmail-local.\n");
    }

    #[test]
    fn only_100_is_permanent_of_all_exit_codes_and_signals() {
        for code in 0..256 {
            let letter = local(code, b"text")[0];
            assert_eq!(letter == b'D', code == 100, "code {code}");
            assert_eq!(letter == b'K', code == 0, "code {code}");
        }
        for signal in 1..65 {
            assert_eq!(of_local(End::Crash(signal), b"text"), b"Zqmail-local crashed.\n");
        }
    }

    #[test]
    fn local_output_is_cut_at_a_nul_and_below_3000_bytes() {
        assert_eq!(local(0, b"a\0b"), b"Ka");
        assert_eq!(local(0, &[b'x'; 3000]).len(), 3001);
        let cut = local(111, &[b'x'; 3001]);
        assert!(cut.len() <= 3000 && cut.ends_with(b"x\nError report too long, sorry.\n"));
    }

    #[test]
    fn remote_reports_translate_as_in_the_specification() {
        assert_eq!(remote(b"r\0Kaccepted\n\0"), b"Kaccepted\n");
        assert_eq!(remote(b"hno such\n\0Dgiving up\n\0"), b"Dno such\ngiving up\n");
        assert_eq!(remote(b"slater\n\0Dgiving up\n\0"), b"Zlater\ngiving up\n");
        assert_eq!(remote(b"hno\n\0Kyes\n\0"), b"Dno\n");
        assert_eq!(remote(b"r\0Zlost\n\0"), b"Zlost\n");
        assert_eq!(remote(b"Zno host\n\0"), b"Zno host\n");
        assert_eq!(remote(b"Dno\n\0"), b"Dno\n");
    }

    #[test]
    fn a_report_that_is_not_whole_is_temporary() {
        assert_eq!(remote(b"r\0"), b"Z");
        assert_eq!(remote(b"hno such"), b"Z");
        assert_eq!(remote(b"r\0Kaccep"), b"Z");
        assert_eq!(remote(b"Dno"), b"Z");
        assert_eq!(remote(b"xyz\0"), b"Zyz");
    }

    #[test]
    fn every_exit_of_qmail_remote_but_zero_and_every_signal_is_temporary() {
        for code in 1..256 {
            assert_eq!(
                of_remote(End::Exit(code), b"r\0Kyes\0", 1),
                [b"ZUnable to run qmail-remote.\n".to_vec()]
            );
        }
        assert_eq!(of_remote(End::Crash(9), b"r\0Kyes\0", 1), [b"Zqmail-remote crashed.\n".to_vec()]);
        assert_eq!(of_remote(End::Exit(0), b"", 1), [b"Zqmail-remote produced no output.\n".to_vec()]);
    }

    fn together(output: &[u8], recipients: usize) -> Vec<Vec<u8>> {
        of_remote(End::Exit(0), output, recipients)
    }

    #[test]
    fn recipients_that_travel_together_each_get_their_own_verdict() {
        assert_eq!(
            together(b"r\0hno\n\0slater\n\0Kdone\n\0", 3),
            [b"Kdone\n".to_vec(), b"Dno\n".to_vec(), b"Zlater\n".to_vec()]
        );
        assert_eq!(
            together(b"hno\n\0hnever\n\0Dgiving up\n\0", 2),
            [b"Dno\ngiving up\n".to_vec(), b"Dnever\ngiving up\n".to_vec()]
        );
        assert_eq!(together(b"r\0hno\n\0Zlost\n\0", 2), [b"Zlost\n".to_vec(), b"Dno\n".to_vec()]);
        assert_eq!(
            together(b"r\0slater\n\0Dfailed\n\0", 2),
            [b"Dfailed\n".to_vec(), b"Zlater\nfailed\n".to_vec()]
        );
    }

    #[test]
    fn what_ends_early_ends_for_everybody_who_was_not_refused() {
        for letter in [b'Z', b'D'] {
            let report = [&[letter], b"no connection\n".as_slice()].concat();
            assert_eq!(together(&[&report, b"\0".as_slice()].concat(), 2), vec![report; 2]);
        }
        assert_eq!(
            together(b"hno\n\0Zconnection died\n\0", 3),
            [b"Dno\n".to_vec(), b"Zconnection died\n".to_vec(), b"Zconnection died\n".to_vec()]
        );
    }

    #[test]
    fn nobody_of_several_is_done_without_a_word_of_its_own() {
        assert_eq!(together(b"r\0Kdone\n\0", 2), [b"Kdone\n".to_vec(), b"Zdone\n".to_vec()]);
        assert_eq!(together(b"Kdone\n\0", 2), vec![b"Zdone\n".to_vec(); 2]);
        assert_eq!(together(b"r\0xwhat\0Kdone\n\0", 2), [b"Kdone\n".to_vec(), b"Z".to_vec()]);
        assert_eq!(together(b"r\0r\0Kdon", 2), vec![b"Z".to_vec(); 2]);
        assert_eq!(together(b"r\0hno\n\0r\0", 3), [b"Z".to_vec(), b"Dno\n".to_vec(), b"Z".to_vec()]);
    }

    #[test]
    fn whatever_is_said_success_needs_a_word_on_the_recipient_and_then_one_on_the_message() {
        let words: [&[u8]; 7] = [b"r", b"hno", b"slater", b"Kdone", b"Zlost", b"Dfailed", b"xwhat"];
        for code in 0..7usize.pow(4) {
            let said: Vec<&[u8]> = (0..4).map(|at| words[code / 7usize.pow(at) % 7]).collect();
            let output: Vec<u8> = said.iter().flat_map(|word| [*word, b"\0"].concat()).collect();
            let message = said.iter().position(|word| b"KZD".contains(&word[0]));
            for (at, report) in together(&output, 3).iter().enumerate() {
                let delivered = said[at] == b"r" && message.is_some_and(|m| m > at && said[m] == b"Kdone");
                assert_eq!(report[0] == b'K', delivered, "{said:?} {at}");
                let refused = said[at] == b"hno" && message.is_none_or(|m| m > at);
                let failed = message.is_some_and(|m| said[m] == b"Dfailed" && (m <= at || said[at] == b"r"));
                assert_eq!(report[0] == b'D', refused || failed, "{said:?} {at}");
            }
        }
    }

    #[test]
    fn what_many_servers_words_take_is_kept() {
        assert_eq!(remote_keep(1), 65_536);
        assert!(remote_keep(100) > 100 * (5000 + 100) + 5100);
    }
}
