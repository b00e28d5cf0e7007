//! A problem: a line for the administrator.
#![forbid(unsafe_code)]

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mend {
    /// By `-r`: what that does.
    Fix(String),
    /// By somebody else.
    Hand(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    what: String,
    pub mend: Mend,
}

impl Problem {
    pub fn new(path: impl AsRef<str>, what: impl AsRef<str>, mend: Mend) -> Problem {
        Problem { what: format!("{}: {}", path.as_ref(), what.as_ref()), mend }
    }

    pub fn line(&self) -> String {
        match &self.mend {
            Mend::Fix(how) => format!("{}; -r {how}\n", self.what),
            Mend::Hand(how) => format!("{}; {how}\n", self.what),
        }
    }

    /// The same when it is no longer there.
    pub fn mended(&self) -> String {
        format!("{}; mended\n", self.what)
    }
}
