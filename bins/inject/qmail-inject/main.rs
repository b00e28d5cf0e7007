//! qmail-inject - put a message from a person or a script into the queue, its header made complete
//!
//! called by  people, scripts, mail readers, sendmail      runs as  the caller; in an own home root becomes its owner
//! fd 0       the message
//! fd 1       with -n, the message as it would be queued
//! jail       rlimits only: it may run $QMAILQUEUE, and can no more than its caller
//! exit       0 queued (or printed), 100 wrong use, bad address or refused for good, 111 temporary trouble
//! touches    control/defaulthost defaultdomain plusdomain idhost me, $QMAILMFTFILE, the queue
//!
//! The header is held and rewritten, the body passes through.
#![forbid(unsafe_code)]

use inject::compose::{self, Composed, Settings};
use inject::identity::{Identity, Letters, unparsable};
use jail::{Jail, programs};
use nix::errno::Errno;
use qmail::address::{self, Completion};
use qmail::control::{self, Control};
use qmail::header::{self, Header};
use qmail::home::Home;
use qmail::program::{Args, Program, Voice};
use qmail::queue::client::{Outcome, Submission};
use qmail::timed::{Reader, Writer};
use qmail::trouble::Trouble;
use qmail::{date, environ, exits, fd};

const NAME: &str = "qmail-inject";
const USAGE: &str = "qmail-inject [-nNaAhH] [-f sender] [recipient ...]";

/// Names longer than this fit into no envelope (addresses end at 1,002 bytes).
const HOST_MAX: usize = 1000;

/// A file of mailing lists is read whole; a megabyte holds tens of thousands.
const FOLLOWUP_MAX: usize = 1024 * 1024;

fn main() -> ! {
    Program::new(NAME, USAGE).voice(Voice::Bare).run(|args| run(&args).map_err(spoken))
}

/// Wrong use is answered by the option parser's line alone, everything else is fatal.
fn spoken(trouble: Trouble) -> Trouble {
    let text = trouble.text();
    let voice = if trouble.is_usage() { "qmail-inject: " } else { "qmail-inject: fatal: " };
    match trouble.exit_code() {
        exits::SUCCESS => trouble,
        code => Trouble::exit(code, [voice.as_bytes(), text.as_slice()].concat()),
    }
}

fn run(args: &Args) -> Result<(), Trouble> {
    let request = Request::of(args)?;
    Jail::of(&programs::QMAIL_INJECT).close()?;
    let home = Home::find()?;
    let control = home.control();
    let completion = completion(&control)?;
    let one = |text: &Vec<u8>| address::one(text, &completion).map_err(|_| unparsable(text));
    let sender = match &request.sender {
        Some(sender) if sender.is_empty() => Some(Vec::new()),
        Some(sender) => Some(one(sender)?.envelope()),
        None => None,
    };
    let mut recipients = Vec::new();
    for argument in request.arguments() {
        recipients.push(one(argument)?.envelope());
    }
    let settings = Settings {
        completion: &completion,
        letters: Letters::of(&environ::get("QMAILINJECT").unwrap_or_default()),
        identity: Identity::from_environment(),
        sender,
        header_recipients: request.wants_header(),
        idhost: name_of(&control, "idhost", "QMAILIDHOST")?,
        lists: followup_lists()?,
        now: date::now(),
        pid: std::process::id(),
    };

    let mut input = Reader::new(fd::IN);
    let (header, body) = read_header(&mut input)?;
    let composed = compose::compose(&header, &settings)?;
    warn(&composed);
    if request.print {
        print(&composed, &body, input)
    } else {
        queue(&home, &composed, recipients, &body, input)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Arguments,
    Header,
    ArgumentsElseHeader,
    Both,
}

/// What the command line asks for.
struct Request {
    source: Source,
    print: bool,
    sender: Option<Vec<u8>>,
    given: Vec<Vec<u8>>,
}

impl Request {
    fn of(args: &Args) -> Result<Request, Trouble> {
        let parsed = args.options("aAhHnNf:")?;
        let mut request =
            Request { source: Source::ArgumentsElseHeader, print: false, sender: None, given: parsed.rest };
        for (letter, value) in parsed.options {
            match letter {
                'a' => request.source = Source::Arguments,
                'A' => request.source = Source::ArgumentsElseHeader,
                'h' => request.source = Source::Header,
                'H' => request.source = Source::Both,
                'f' => request.sender = Some(value),
                letter => request.print = letter == 'n',
            }
        }
        Ok(request)
    }

    fn arguments(&self) -> &[Vec<u8>] {
        if self.source == Source::Header { &[] } else { &self.given }
    }

    fn wants_header(&self) -> bool {
        match self.source {
            Source::Arguments => false,
            Source::Header | Source::Both => true,
            Source::ArgumentsElseHeader => self.given.is_empty(),
        }
    }
}

/// A name from the environment, else from control, else `me`, else the name of the file itself.
fn name_of(control: &Control, file: &str, variable: &str) -> Result<Vec<u8>, Trouble> {
    match environ::get(variable) {
        Some(name) => Ok(name),
        None => Ok(control.line_or_me(file)?.unwrap_or_else(|| file.into())),
    }
}

fn completion(control: &Control) -> Result<Completion, Trouble> {
    let mut completion = Completion::default();
    let mut set =
        |file: &str, variable: &str, put: fn(&mut Completion, &[u8]) -> Result<(), address::Wrong>| {
            let name = name_of(control, file, variable)?;
            match put(&mut completion, &name) {
                Ok(()) if name.len() <= HOST_MAX => Ok(()),
                _ => Err(Trouble::temporary(format!("control/{file} or {variable} is not a host name"))),
            }
        };
    set("defaulthost", "QMAILDEFAULTHOST", Completion::set_default_host)?;
    set("defaultdomain", "QMAILDEFAULTDOMAIN", Completion::set_default_domain)?;
    set("plusdomain", "QMAILPLUSDOMAIN", Completion::set_plus_domain)?;
    Ok(completion)
}

/// The mailing lists of which the user says that they see the answers.
fn followup_lists() -> Result<control::Set, Trouble> {
    let Some(name) = environ::get("QMAILMFTFILE") else { return Ok(control::Set::default()) };
    let text = fd::read_file(&name, FOLLOWUP_MAX).map_err(|e| Trouble::unable("read", &name, e))?;
    Ok(control::Set::of(&control::entries(&text.unwrap_or_default())))
}

fn read_error(errno: Errno) -> Trouble {
    Trouble::temporary("read error").because(errno)
}

/// Reads up to the end of the header; what was read beyond it comes back as the body's beginning.
fn read_header(input: &mut Reader<fd::Standard>) -> Result<(Header, Vec<u8>), Trouble> {
    let refuse = |wrong| match wrong {
        header::Wrong::Invalid(line) => {
            Trouble::permanent([b"invalid header field: ", line.as_slice()].concat())
        }
        header::Wrong::TooLong => {
            Trouble::permanent(format!("the header is longer than {} bytes", header::HEADER_MAX))
        }
    };
    let mut reader = header::Reader::new();
    loop {
        let piece = input.fill().map_err(read_error)?;
        let length = piece.len();
        let found = if length == 0 {
            Some(reader.end().map_err(refuse)?)
        } else {
            reader.feed(piece).map_err(refuse)?
        };
        input.consume(length);
        if let Some(body) = found {
            return Ok((reader.finish(), body));
        }
    }
}

/// A field of recipients nobody can read stays as it is, but whoever sends should know that it counted
/// for nothing.
fn warn(composed: &Composed) {
    for field in &composed.unreadable {
        let line = [
            b"qmail-inject: warning: no recipients in this line, unable to parse it:\n",
            field.as_slice(),
            b"\n",
        ];
        let _ = fd::write_all(fd::ERR, &line.concat());
    }
}

/// Gives the rest of the input to `put`, piece by piece, until that says it has enough.
fn pour(
    mut input: Reader<fd::Standard>,
    mut put: impl FnMut(&[u8]) -> Result<bool, Trouble>,
) -> Result<(), Trouble> {
    loop {
        let piece = input.fill().map_err(read_error)?;
        let length = piece.len();
        if length == 0 || !put(piece)? {
            return Ok(());
        }
        input.consume(length);
    }
}

fn print(composed: &Composed, body: &[u8], input: Reader<fd::Standard>) -> Result<(), Trouble> {
    let unable = |errno| Trouble::temporary("unable to write").because(errno);
    let mut out = Writer::new(fd::OUT);
    let sender = qmail::quote::address(&composed.sender);
    out.put([b"Return-Path: <".as_slice(), &sender, b">\n"].concat()).map_err(unable)?;
    out.put(&composed.header).and_then(|()| out.put(body)).map_err(unable)?;
    pour(input, |piece| out.put(piece).map(|()| true).map_err(unable))?;
    out.flush().map_err(unable)
}

fn queue(
    home: &Home,
    composed: &Composed,
    arguments: Vec<Vec<u8>>,
    body: &[u8],
    input: Reader<fd::Standard>,
) -> Result<(), Trouble> {
    let mut submission = match Submission::open(home) {
        Ok(submission) => submission,
        Err(outcome) => return verdict(outcome),
    };
    submission.put(&composed.header);
    submission.put(body);
    let poured = pour(input, |piece| {
        submission.put(piece);
        Ok(!submission.is_broken())
    });
    if poured.is_err() {
        submission.abort();
    }
    let recipients = arguments.iter().chain(&composed.recipients).map(Vec::as_slice);
    let outcome = submission.close_with(&composed.sender, recipients);
    poured?;
    verdict(outcome)
}

/// What users are told, unless it is queued.
fn verdict(outcome: Outcome) -> Result<(), Trouble> {
    match outcome {
        Outcome::Queued { .. } => Ok(()),
        Outcome::Permanent(text) => Err(Trouble::permanent(text)),
        Outcome::Temporary(text) => Err(Trouble::temporary(text)),
    }
}
