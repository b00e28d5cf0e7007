//! table - a control file of `key:value` that may be long, and the index of it
//!
//! The file is what counts. Its index holds the same under the same keys, in lower case, and under a key that no line
//! has the state of the file that it was made of. As long as the file is in that state it is not read, only the index
//! is asked; without an index, or with one of another state, it is read whole.
#![forbid(unsafe_code)]

use crate::cdb::{self, ReplaceError, TooBig, Writer};
use crate::control::{Control, Map, entries, key_and_value};
use crate::fd;
use crate::trouble::Trouble;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat, stat};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where an index tells the state of its file: no key has a LF.
const STATE_KEY: &[u8] = b"\n";

/// Two changes of a file within a tick of the kernel's clock look alike; ticks are 1 to 10 ms.
pub const TICK: Duration = Duration::from_millis(20);

/// Which state of which file: a change of the file changes this, unless it is made within a tick of the one before.
pub fn state(found: &FileStat) -> Vec<u8> {
    format!("{} {} {}.{}", found.st_ino, found.st_size, found.st_mtime, found.st_mtime_nsec).into_bytes()
}

/// The table, as it was when it was opened.
#[derive(Debug)]
pub struct Table {
    index: &'static str,
    entries: Entries,
    /// There is an index, and it is of another state of the file.
    pub is_stale: bool,
}

#[derive(Debug)]
enum Entries {
    All(Map),
    Index(cdb::Reader),
}

impl Table {
    /// These lines, and no index.
    pub fn of(list: &[Vec<u8>]) -> Table {
        Table { index: "", entries: Entries::All(Map::of(list)), is_stale: false }
    }

    /// The file `name`, or the index of it.
    pub fn read(control: &Control, name: &str, index: &'static str) -> Result<Table, Trouble> {
        let reader = cdb::Reader::open(control.path(index)).map_err(|e| trouble(index, e.into()))?;
        let is_stale = match (reader, stat(fd::path(&control.path(name)))) {
            (Some(reader), Ok(found)) => {
                if reader.get(STATE_KEY).map_err(|e| trouble(index, e))? == Some(state(&found)) {
                    return Ok(Table { index, entries: Entries::Index(reader), is_stale: false });
                }
                true
            }
            _ => false,
        };
        Ok(Table { index, entries: Entries::All(control.map(name)?.unwrap_or_default()), is_stale })
    }

    /// The value of a key; case does not count, and the last line does.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Trouble> {
        match &self.entries {
            Entries::All(map) => Ok(map.get(key).map(<[u8]>::to_vec)),
            Entries::Index(_) if key == STATE_KEY => Ok(None),
            Entries::Index(index) => {
                index.get(&key.to_ascii_lowercase()).map_err(|error| trouble(self.index, error))
            }
        }
    }
}

fn trouble(index: &str, error: cdb::Error) -> Trouble {
    error.trouble(format!("control/{index}")).status("4.3.0")
}

/// The index of a file that has this text in this state.
pub fn index(text: &[u8], found: &FileStat) -> Result<Vec<u8>, TooBig> {
    let mut writer = Writer::new();
    writer.add(STATE_KEY, &state(found))?;
    // Readers find the first of a key, and the last line is to count.
    for line in entries(text).iter().rev() {
        if let Some((key, value)) = key_and_value(line) {
            writer.add(&key.to_ascii_lowercase(), value)?;
        }
    }
    writer.finish()
}

/// Makes the control file `target` of `name`: the new one is whole and on disk before it has that name, and after a
/// failure the old one is as it was. `make` gets the text, of at most `max` bytes, and the state of the file before it
/// was read.
pub fn compile(
    control: &Control,
    name: &str,
    target: &str,
    max: usize,
    make: impl FnOnce(&[u8], &FileStat) -> Result<Vec<u8>, TooBig>,
) -> Result<(), Trouble> {
    let source = format!("control/{name}");
    let unable = |errno| Trouble::unable("read", &source, errno);
    let opened = fd::open_read(control.path(name)).map_err(unable)?;
    let found = fstat(&opened).map_err(unable)?;
    // What is changed behind this look at the file must differ from it.
    let changed = Duration::new(
        u64::try_from(found.st_mtime).unwrap_or(0),
        u32::try_from(found.st_mtime_nsec).unwrap_or(0),
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if now.saturating_sub(changed) < TICK {
        std::thread::sleep(TICK);
    }
    let text = fd::read_to_end(opened, max).map_err(unable)?;
    let temporary = control.path(&format!("{name}.tmp"));
    let unable = |errno: Errno| Trouble::unable("write to", format!("{source}.tmp"), errno);
    let file = make(&text, &found).map_err(|TooBig| unable(Errno::EFBIG))?;
    cdb::replace(&control.path(target), &temporary, &file, 0o644).map_err(|error| match error {
        ReplaceError::Open(e) | ReplaceError::Write(e) => unable(e),
        ReplaceError::Rename(e) => Trouble::unable("move", format!("{source}.tmp to control/{target}"), e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::FILE_MAX;

    #[test]
    fn an_index_is_asked_as_long_as_it_is_of_the_file() {
        let directory = std::env::temp_dir().join(format!("table-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let control = Control::at(directory.to_str().unwrap());
        let write = |text: &str| std::fs::write(directory.join("names"), text).unwrap();
        let read = || Table::read(&control, "names", "names.cdb").unwrap();
        let get = |key: &[u8]| read().get(key).unwrap().map(|value| String::from_utf8(value).unwrap());
        assert_eq!(get(b"joe"), None);
        write("Joe:one\n# no:line\njOe:two:x\nsue: three \t\nnothing\n");
        let by_text = [get(b"JOE"), get(b"sue"), get(b"nothing"), get(b"\n")];
        assert_eq!(by_text, [Some("two:x".into()), Some(" three".into()), None, None]);
        compile(&control, "names", "names.cdb", FILE_MAX, index).unwrap();
        assert!(matches!(read().entries, Entries::Index(_)));
        assert_eq!([get(b"JOE"), get(b"sue"), get(b"nothing"), get(b"\n")], by_text);
        write("joe:later and longer\n");
        assert!(read().is_stale);
        assert_eq!(get(b"joe").as_deref(), Some("later and longer"));
        std::fs::remove_file(directory.join("names")).unwrap();
        assert_eq!((get(b"joe"), read().is_stale), (None, false));
        write("joe:again\n");
        std::fs::write(directory.join("names.cdb"), "damaged").unwrap();
        let text = Table::read(&control, "names", "names.cdb").unwrap_err().text();
        assert_eq!(text, b"unable to read control/names.cdb: damaged database (#4.3.0)");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
