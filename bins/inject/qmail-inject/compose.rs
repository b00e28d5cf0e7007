//! What becomes of a header: which fields stay, which are rewritten, which are added, and who is to get
//! the message.

use crate::identity::{Identity, Letters};
use qmail::address::{self, Completion, List, TOKENS_MAX, Wrong};
use qmail::control::Set;
use qmail::date;
use qmail::header::{self, Field, Header};
use qmail::trouble::Trouble;

/// Most addresses in all fields of one header: completing each multiplies its size, and what is larger
/// is work for a mailing list manager.
const ADDRESSES_MAX: usize = 200_000;

/// A field that is shown to a person is cut here.
const SHOWN_MAX: usize = 2000;

/// Everything besides the header that the result depends on.
pub struct Settings<'a> {
    pub completion: &'a Completion,
    pub letters: Letters,
    pub identity: Identity,
    /// The envelope sender, when the command line names one.
    pub sender: Option<Vec<u8>>,
    /// Whether the header's recipients count.
    pub header_recipients: bool,
    pub idhost: Vec<u8>,
    /// Mailing lists whose presence asks for Mail-Followup-To.
    pub lists: Set,
    pub now: u64,
    pub pid: u32,
}

/// A header ready to be queued, and its envelope.
#[derive(Debug, Default)]
pub struct Composed {
    pub header: Vec<u8>,
    pub sender: Vec<u8>,
    pub recipients: Vec<Vec<u8>>,
    /// Fields that should have named recipients but could not be parsed.
    pub unreadable: Vec<Vec<u8>>,
}

/// Completes a header.
pub fn compose(header: &Header, settings: &Settings<'_>) -> Result<Composed, Trouble> {
    let resent = header.known().any(|(field, _)| field.makes_resent());
    let mut work = Work {
        settings,
        resent,
        seen: Vec::new(),
        kept: Vec::new(),
        return_path: None,
        to_and_cc: Vec::new(),
        addresses: 0,
        composed: Composed::default(),
    };
    for (field, text) in header.known() {
        work.field(field, text)?;
    }
    work.finish()
}

/// A field without its last line break, cut if it is very long.
fn shown(field: &[u8]) -> Vec<u8> {
    let field = field.trim_ascii_end();
    match field.get(..SHOWN_MAX) {
        Some(start) if field.len() > SHOWN_MAX => [start, b"..."].concat(),
        _ => field.to_vec(),
    }
}

struct Work<'s> {
    settings: &'s Settings<'s>,
    resent: bool,
    /// The known fields that stay in the message.
    seen: Vec<Field>,
    kept: Vec<u8>,
    return_path: Option<Vec<u8>>,
    /// The addresses of each To and Cc: (envelope form, header form).
    to_and_cc: Vec<Vec<(Vec<u8>, Vec<u8>)>>,
    addresses: usize,
    composed: Composed,
}

impl Work<'_> {
    fn has(&self, field: Field) -> bool {
        self.seen.contains(&field)
    }

    fn field(&mut self, field: Field, text: &[u8]) -> Result<(), Trouble> {
        if self.is_dropped(field) {
            return Ok(());
        }
        if field != Field::Other && !self.has(field) {
            self.seen.push(field);
        }
        let (name, value) = header::split(text).unwrap_or_default();
        let too_many = || Trouble::permanent(format!("more than {TOKENS_MAX} words in a header field"));
        if field.is_sender() {
            let unable = |wrong| match wrong {
                Wrong::TooMany => too_many(),
                _ => Trouble::permanent([b"unable to parse this line:\n".as_slice(), &shown(text)].concat()),
            };
            let list = address::parse(value).map_err(unable)?;
            if field == Field::ReturnPath {
                self.note_return_path(&list);
            }
            self.rewrite(field, name, &list)
        } else if field.is_recipient() || field.is_resent_recipient() {
            match address::parse(value) {
                Ok(list) => {
                    self.note_recipients(field, &list);
                    self.rewrite(field, name, &list)
                }
                Err(Wrong::TooMany) => Err(too_many()),
                Err(_) => {
                    if self.counts(field) {
                        self.composed.unreadable.push(shown(text));
                    }
                    self.keep(field, text);
                    Ok(())
                }
            }
        } else {
            self.keep(field, text);
            Ok(())
        }
    }

    /// A resent message keeps its author and its id whatever the letters say: no others would be added.
    fn is_dropped(&self, field: Field) -> bool {
        let letters = self.settings.letters;
        match field {
            Field::From => letters.no_from && !self.resent,
            Field::MessageId => letters.no_message_id && !self.resent,
            Field::ReturnPath => letters.no_return_path,
            _ => false,
        }
    }

    /// Whether the message goes to the addresses of this field.
    fn counts(&self, field: Field) -> bool {
        let recipient = if self.resent { field.is_resent_recipient() } else { field.is_recipient() };
        recipient && self.settings.header_recipients
    }

    fn keep(&mut self, field: Field, text: &[u8]) {
        if !field.is_private() {
            self.kept.extend_from_slice(text);
        }
    }

    fn rewrite(&mut self, field: Field, name: &[u8], list: &List<'_>) -> Result<(), Trouble> {
        self.addresses += list.addresses(&Completion::default()).count();
        if self.addresses > ADDRESSES_MAX {
            return Err(Trouble::permanent(format!("more than {ADDRESSES_MAX} addresses in the header")));
        }
        if field.is_private() {
            return Ok(());
        }
        self.kept.extend_from_slice(name);
        self.kept.push(b':');
        let text = list.text(self.settings.completion, name.len() + 2);
        if !text.is_empty() {
            self.kept.push(b' ');
            self.kept.extend_from_slice(&text);
        }
        self.kept.push(b'\n');
        Ok(())
    }

    fn note_return_path(&mut self, list: &List<'_>) {
        if self.return_path.is_none() {
            self.return_path =
                list.addresses(self.settings.completion).next().map(|address| address.envelope());
        }
    }

    fn note_recipients(&mut self, field: Field, list: &List<'_>) {
        let follow =
            matches!(field, Field::To | Field::Cc) && !self.resent && !self.settings.lists.is_empty();
        if follow {
            self.to_and_cc.push(Vec::new());
        }
        if !follow && !self.counts(field) {
            return;
        }
        for address in list.addresses(self.settings.completion).take(ADDRESSES_MAX) {
            if let Some(group) = self.to_and_cc.last_mut().filter(|_| follow) {
                group.push((address.envelope(), address.text()));
            }
            if self.counts(field) {
                self.composed.recipients.push(address.envelope());
            }
        }
    }

    fn finish(mut self) -> Result<Composed, Trouble> {
        self.composed.sender = self.sender()?;
        let mut header = Vec::new();
        let s = self.settings;
        let prefix = if self.resent { "Resent-" } else { "" };
        let [date, id, from] = if self.resent {
            [Field::ResentDate, Field::ResentMessageId, Field::ResentFrom]
        } else {
            [Field::Date, Field::MessageId, Field::From]
        };
        let mut add = |name: &str, value: &[u8]| {
            header.extend_from_slice(prefix.as_bytes());
            header.extend_from_slice(name.as_bytes());
            header.extend_from_slice(value);
            header.push(b'\n');
        };
        if !self.has(date) {
            add("Date: ", date::rfc822(s.now).as_bytes());
        }
        if !self.has(id) {
            let left = format!("<{}.{}.qmail@", date::stamp(s.now), s.pid);
            add("Message-ID: ", &[left.as_bytes(), &s.idhost, b">"].concat());
        }
        if !self.has(from) {
            add("From: ", &s.identity.from(s.letters.comment, s.completion)?);
        }
        let (to, cc) = if self.resent { (Field::ResentTo, Field::ResentCc) } else { (Field::To, Field::Cc) };
        if !self.has(to) && !self.has(cc) {
            add("Cc: ", b"recipient list not shown: ;");
        }
        if self.wants_followup() {
            add("Mail-Followup-To: ", &self.followup());
        }
        header.append(&mut self.kept);
        self.composed.header = header;
        Ok(self.composed)
    }

    fn sender(&self) -> Result<Vec<u8>, Trouble> {
        let s = self.settings;
        if let Some(sender) = &s.sender {
            return Ok(sender.clone());
        }
        match &self.return_path {
            // The empty sender gets no bounces, one for each recipient or otherwise.
            Some(path) if s.letters.per_recipient && !path.is_empty() => {
                Ok([path.as_slice(), b"-@[]"].concat())
            }
            Some(path) => Ok(path.clone()),
            None => s.identity.sender(s.letters, s.now, s.pid, s.completion),
        }
    }

    fn wants_followup(&self) -> bool {
        let mut all = self.to_and_cc.iter().flatten();
        !self.has(Field::MailFollowupTo) && all.any(|(envelope, _)| self.settings.lists.contains(envelope))
    }

    fn followup(&self) -> Vec<u8> {
        let all: Vec<&[u8]> =
            self.to_and_cc.iter().rev().flatten().map(|(_, text)| text.as_slice()).collect();
        all.join(b",\n  ".as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        letters: &'static str,
        sender: Option<&'static str>,
        lists: &'static str,
        header_recipients: bool,
    }

    const PLAIN: Case = Case { letters: "", sender: None, lists: "", header_recipients: true };

    impl Case {
        fn run(&self, text: &str) -> Result<Composed, Trouble> {
            let mut completion = Completion::default();
            completion.set_default_host(b"dh").unwrap();
            completion.set_default_domain(b"def.dom").unwrap();
            let mut reader = header::Reader::new();
            assert_eq!(reader.feed(text.as_bytes()), Ok(None));
            let header = reader.finish();
            let identity =
                Identity { user: b"joe".to_vec(), sender_user: b"joes".to_vec(), ..Identity::default() };
            let settings = Settings {
                completion: &completion,
                letters: Letters::of(self.letters.as_bytes()),
                identity,
                sender: self.sender.map(|s| s.as_bytes().to_vec()),
                header_recipients: self.header_recipients,
                idhost: b"id.host".to_vec(),
                lists: Set::of(&qmail::control::entries(self.lists.as_bytes())),
                now: 1_700_000_000,
                pid: 77,
            };
            compose(&header, &settings)
        }

        /// The header, the sender, and the recipients with blanks between.
        fn done(&self, text: &str) -> (String, String, String) {
            let composed = self.run(text).unwrap();
            let string = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let recipients = composed.recipients.join(b" ".as_slice());
            (string(&composed.header), string(&composed.sender), string(&recipients))
        }
    }

    const ADDED: &str = "Date: 14 Nov 2023 22:13:20 -0000\nMessage-ID: <20231114221320.77.qmail@id.host>\n\
                         From: joe@dh.def.dom\n";

    #[test]
    fn what_is_missing_is_added_in_front() {
        let (header, sender, recipients) = PLAIN.done("Subject: x\nTo: bob@host\n");
        assert_eq!(header, format!("{ADDED}Subject: x\nTo: bob@host.def.dom\n"));
        assert_eq!(sender, "joes@dh.def.dom");
        assert_eq!(recipients, "bob@host.def.dom");
        let (header, _, _) = PLAIN.done("");
        assert_eq!(header, format!("{ADDED}Cc: recipient list not shown: ;\n"));
    }

    #[test]
    fn what_is_there_stays_in_its_order_and_spelling() {
        let text = "X-A : 1\n 2\nDATE: now\nmessage-id: <x>\nfrom: a@b.c\ncc: d@e.f\nReceived: by z\n";
        assert_eq!(PLAIN.done(text).0, text);
    }

    #[test]
    fn private_fields_leave_the_message_but_count() {
        let text = "Bcc: a@x.y\nReturn-Path: <r@x.y>\nContent-Length: 3\nTo : b@x.y\nApparently-To: c\n";
        let (header, sender, recipients) = PLAIN.done(text);
        assert_eq!(header, format!("{ADDED}To: b@x.y\nApparently-To: c@dh.def.dom\n"));
        assert_eq!(sender, "r@x.y");
        assert_eq!(recipients, "a@x.y b@x.y c@dh.def.dom");
    }

    #[test]
    fn letters_drop_what_came_in() {
        let text = "From: x@y.z\nMessage-ID: <1>\nReturn-Path: <r@x.y>\nTo: a@b.c\n";
        let case = |letters| Case { letters, ..PLAIN }.done(text);
        assert!(case("f").0.contains("From: joe@dh.def.dom\n") && !case("f").0.contains("x@y.z"));
        assert!(case("i").0.contains(".77.qmail@") && !case("i").0.contains("<1>"));
        assert_eq!(case("s").1, "joes@dh.def.dom");
        assert_eq!(case("r").1, "r@x.y-@[]");
        assert_eq!(case("sr").1, "joes-@dh.def.dom-@[]");
    }

    #[test]
    fn the_sender_of_the_command_line_wins_and_the_first_return_path_comes_next() {
        let text = "Return-Path: <>\nReturn-Path: <b@x.y>\n";
        assert_eq!(PLAIN.done(text).1, "");
        assert_eq!(Case { letters: "r", ..PLAIN }.done(text).1, "");
        assert_eq!(Case { sender: Some("f@x.y"), letters: "r", ..PLAIN }.done(text).1, "f@x.y");
    }

    #[test]
    fn a_resent_message_has_fields_of_its_own() {
        let text = "From: a@x\nTo: b@x\nDate: d\nResent-To: c@x\nResent-Bcc: e\n";
        let (header, _, recipients) = Case { letters: "fi", ..PLAIN }.done(text);
        let added = ADDED.split_inclusive('\n').map(|line| format!("Resent-{line}")).collect::<String>();
        assert_eq!(
            header,
            format!("{added}From: a@x.def.dom\nTo: b@x.def.dom\nDate: d\nResent-To: c@x.def.dom\n")
        );
        assert_eq!(recipients, "c@x.def.dom e@dh.def.dom");
        let (header, _, recipients) = PLAIN.done("To: b@x.y\nResent-Date: d\n");
        assert!(
            header.contains("Resent-Cc: recipient list not shown: ;\n")
                && !header.contains("Resent-Date: 14")
        );
        assert_eq!(recipients, "");
    }

    #[test]
    fn an_unreadable_recipient_field_is_kept_and_names_nobody() {
        let composed = PLAIN.run("To: a@x.y, b@x.y > c@x.y\nCc: \"d\nBcc: (e\n").unwrap();
        assert!(composed.header.ends_with(b"To: a@x.y, b@x.y > c@x.y\nCc: \"d\n"));
        assert!(composed.recipients.is_empty());
        assert_eq!(composed.unreadable.len(), 3);
        let quiet = Case { header_recipients: false, ..PLAIN }.run("To: (a\n").unwrap();
        assert!(quiet.unreadable.is_empty());
    }

    #[test]
    fn an_unreadable_sender_field_is_refused() {
        for field in ["From: a >", "Reply-To: (", "return-path: \"\n x", "Resent-Sender: a: b"] {
            let trouble = PLAIN.run(&format!("{field}\nTo: x\n")).unwrap_err();
            assert_eq!(trouble.exit_code(), 100);
            assert_eq!(trouble.text(), format!("unable to parse this line:\n{field}").as_bytes());
        }
        assert!(Case { letters: "fs", ..PLAIN }.run("From: a >\nReturn-Path: (\n").is_ok(), "dropped anyway");
    }

    #[test]
    fn a_long_field_is_not_shown_whole() {
        let composed = PLAIN.run(&format!("To: ({}\n", "x".repeat(100_000))).unwrap();
        let lengths: Vec<usize> = composed.unreadable.iter().map(Vec::len).collect();
        assert_eq!(lengths, [SHOWN_MAX + 3]);
    }

    #[test]
    fn followups_go_to_all_when_a_list_is_among_them() {
        let case = Case { lists: "LIST@dh.DEF.dom\n", ..PLAIN };
        let text = "To: a@x.y, List\nCc: \"b c\"@x.y, d@x.y\nTo: e@x.y\n";
        let expected = "Mail-Followup-To: e@x.y,\n  \"b c\"@x.y,\n  d@x.y,\n  a@x.y,\n  List@dh.def.dom\n";
        assert!(case.done(text).0.contains(&format!("From: joe@dh.def.dom\n{expected}To: a@x.y")));
        assert!(!case.done(&format!("{text}mail-followup-to: x\n")).0.contains("Mail-Followup-To"));
        assert!(!case.done(&format!("{text}Resent-To: x@y.z\n")).0.contains("Mail-Followup-To"));
        assert!(!case.done("To: a@x.y\nBcc: list\n").0.contains("Mail-Followup-To"));
        assert!(!PLAIN.done(text).0.contains("Mail-Followup-To"));
    }

    #[test]
    fn too_many_addresses_are_refused() {
        let trouble = PLAIN.run(&format!("To: {}\n", ",".repeat(TOKENS_MAX + 1))).unwrap_err();
        assert_eq!(
            (trouble.exit_code(), trouble.text()),
            (100, b"more than 2000000 words in a header field".to_vec())
        );
        let trouble = PLAIN.run(&format!("To: {}\n", "a,".repeat(ADDRESSES_MAX + 1))).unwrap_err();
        assert_eq!(trouble.text(), b"more than 200000 addresses in the header");
        let many = format!("To: {}\n", "a, ".repeat(ADDRESSES_MAX));
        assert_eq!(PLAIN.run(&many).unwrap().recipients.len(), ADDRESSES_MAX);
    }
}
