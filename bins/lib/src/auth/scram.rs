//! scram - what everybody may know of each account's keys for SCRAM: `control/scramparams.cdb`, `control/scramsecret`
#![forbid(unsafe_code)]

use crate::cdb;
use crate::control::Control;
use crate::sasl::scram::Params;
use crate::trouble::Trouble;

/// Public parameters by account, made by who sets passwords.
const PARAMS: &str = "scramparams.cdb";

/// What the parameters of nobody's name are made of.
const SECRET: &str = "scramsecret";

/// Both, as they were when they were opened.
#[derive(Debug)]
pub struct Scram {
    params: cdb::Reader,
    secret: Vec<u8>,
}

impl Scram {
    /// SCRAM is to be had where both files are. Without a secret unknown names could be told from known ones.
    pub fn read(control: &Control) -> Result<Option<Scram>, Trouble> {
        let Some(params) = cdb::Reader::open(control.path(PARAMS)).map_err(|e| trouble(e.into()))? else {
            return Ok(None);
        };
        let secret = control.line(SECRET)?.filter(|secret| !secret.is_empty());
        Ok(secret.map(|secret| Scram { params, secret }))
    }

    /// The parameters of a name: those of its keys, or those of nobody.
    pub fn params(&self, name: &[u8]) -> Result<Params, Trouble> {
        match self.params.get(name).map_err(trouble)? {
            Some(text) => Params::parse(&text).ok_or_else(|| trouble(cdb::Error::Corrupt)),
            None => Ok(Params::invented(&self.secret, name)),
        }
    }
}

fn trouble(error: cdb::Error) -> Trouble {
    error.trouble(format!("control/{PARAMS}")).status("4.3.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_parameters_and_nobody_has_too() {
        let directory = std::env::temp_dir().join(format!("scram-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let control = Control::at(directory.to_str().unwrap());
        let mut writer = cdb::Writer::new();
        writer.add(b"joe", b"4096,W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        writer.add(b"bad", b"1,AAAA").unwrap();
        assert!(Scram::read(&control).unwrap().is_none());
        std::fs::write(directory.join(PARAMS), writer.finish().unwrap()).unwrap();
        assert!(Scram::read(&control).unwrap().is_none());
        std::fs::write(directory.join(SECRET), "\n").unwrap();
        assert!(Scram::read(&control).unwrap().is_none());
        std::fs::write(directory.join(SECRET), "never told\n").unwrap();
        let scram = Scram::read(&control).unwrap().unwrap();
        assert_eq!(scram.params(b"joe").unwrap().count, 4096);
        assert_eq!(scram.params(b"amy").unwrap(), Params::invented(b"never told", b"amy"));
        let text = scram.params(b"bad").unwrap_err().text();
        assert_eq!(text, b"unable to read control/scramparams.cdb: damaged database (#4.3.0)");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
