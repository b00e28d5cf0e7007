//! users - who each daemon runs as
//!
//! In an own home nobody changes: one account runs all. In a system home the ids come from users/ids;
//! only the further groups of qmailr, an administrator's gift to qmail-remote, are looked up by name.
#![forbid(unsafe_code)]

use nix::unistd::{Gid, Uid, getgrouplist};
use qmail::home::{Account, Home};
use qmail::sys::process::Command;
use qmail::trouble::Trouble;

/// uid, gid and supplementary groups; None stays as it is.
#[derive(Debug, Clone)]
pub struct User(Option<(Uid, Gid, Vec<Gid>)>);

impl User {
    /// The command, run as this user.
    pub fn runs<'a>(&self, command: Command<'a>) -> Command<'a> {
        match &self.0 {
            Some((uid, gid, groups)) => command.user(*uid, *gid, groups),
            None => command,
        }
    }

    /// This process becomes the user.
    pub fn become_now(&self) -> Result<(), nix::errno::Errno> {
        match &self.0 {
            Some((uid, gid, groups)) => qmail::sys::process::become_user(*uid, *gid, groups),
            None => Ok(()),
        }
    }
}

pub struct Users<'a> {
    home: &'a Home,
}

impl<'a> Users<'a> {
    pub fn of(home: &'a Home) -> Result<Users<'a>, Trouble> {
        if !home.ids().is_own() && !Uid::effective().is_root() {
            return Err(Trouble::temporary("only root can start a system of several users"));
        }
        Ok(Users { home })
    }

    /// Whether the home names everybody who will be needed.
    pub fn check(&self, logged: bool) -> Result<(), Trouble> {
        for name in ["qmailq", "qmailr", "qmails"] {
            self.account(name)?;
        }
        if logged { self.account("qmaill").map(drop) } else { Ok(()) }
    }

    fn account(&self, name: &str) -> Result<Account, Trouble> {
        self.home.ids().role(name).ok_or_else(|| Trouble::temporary(format!("unable to find user {name}")))
    }

    /// The account `name` with this group and no other; None in an own home.
    fn user(&self, name: &str, group: Gid) -> Result<User, Trouble> {
        if self.home.ids().is_own() {
            return Ok(User(None));
        }
        Ok(User(Some((self.account(name)?.uid, group, vec![group]))))
    }

    /// Group qmail: that of qmailq.
    fn qmail(&self) -> Result<Gid, Trouble> {
        Ok(self.account("qmailq")?.gid)
    }

    pub fn logger(&self) -> Result<User, Trouble> {
        self.user("qmaill", self.account("qmaill")?.gid)
    }

    /// Root, to become every recipient in turn, with one group.
    pub fn lspawn(&self) -> Result<User, Trouble> {
        if self.home.ids().is_own() {
            return Ok(User(None));
        }
        let qmail = self.qmail()?;
        Ok(User(Some((Uid::from_raw(0), qmail, vec![qmail]))))
    }

    pub fn rspawn(&self) -> Result<User, Trouble> {
        let mut user = self.user("qmailr", self.qmail()?)?;
        if let Some((_, gid, groups)) = &mut user.0 {
            *groups = getgrouplist(c"qmailr", *gid).unwrap_or_else(|_| vec![*gid]);
        }
        Ok(user)
    }

    /// qmail-clean, and the keeper with qmail-queued.
    pub fn queue(&self) -> Result<User, Trouble> {
        self.user("qmailq", self.qmail()?)
    }

    pub fn send(&self) -> Result<User, Trouble> {
        self.user("qmails", self.qmail()?)
    }
}
