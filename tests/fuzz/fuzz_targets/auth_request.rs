//! Requests to qmail-authd, and its list: what was parsed is within its limits and is sent again as the same bytes;
//! nothing in it could end a variable, an argument or a line early.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::auth::door::{FIELDS_MAX, Request, VALUE_MAX, WORD_MAX, WORDS_MAX, names};
use qmail::auth::services;

fuzz_target!(|bytes: &[u8]| {
    if let Some(request) = Request::parse(bytes) {
        assert_eq!(request.encode().as_deref(), Some(bytes));
        assert!(request.fields.len() <= FIELDS_MAX && (1..=WORDS_MAX).contains(&request.words.len()));
        assert!(request.words.iter().all(|word| word.len() <= WORD_MAX && !word.contains(&0)));
        assert!(request.environ.len() <= names().count());
        for (name, value) in &request.environ {
            assert!(names().any(|known| known.as_bytes() == name));
            assert!(value.len() <= VALUE_MAX && !value.contains(&0));
        }
        assert_eq!(Request::parse(&[bytes, b"x"].concat()), None);
    }
    if let Ok(list) = services::parse(bytes) {
        for service in &list {
            assert!(service.words.len() >= 2 && service.words.iter().all(|word| !word.is_empty()));
            assert_eq!(services::select(&list, &service.words).map(|s| &s.words), Some(&service.words));
            let one = std::slice::from_ref(&service.name);
            assert_eq!(services::select(&list, one).map(|s| &s.name), Some(&service.name));
        }
    }
});
