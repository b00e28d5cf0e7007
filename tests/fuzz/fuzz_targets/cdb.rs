//! Any file as a cdb: a lookup ends, without panic and without a large buffer, whatever the bytes say.
//! And what the writer makes, the reader finds.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::cdb::{Reader, Writer};

fuzz_target!(|input: (&[u8], Vec<(Vec<u8>, Vec<u8>)>)| {
    let (file, records) = input;
    let Ok(reader) = Reader::new(file) else { return };
    let _ = reader.get(b"");
    for (key, _) in &records {
        let _ = reader.get(key);
    }
    let mut writer = Writer::new();
    for (key, data) in &records {
        writer.add(key, data).expect("small records fit");
    }
    let made = writer.finish().expect("small files fit");
    let reader = Reader::new(made.as_slice()).expect("a slice has a size");
    for (key, _) in &records {
        let first = records.iter().find(|(k, _)| k == key).map(|(_, d)| d.clone());
        assert_eq!(reader.get(key), Ok(first));
    }
});
