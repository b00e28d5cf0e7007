//! Any bytes as a certificate: what is found lies in it, names are names, and a subject is one clean line.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;

/// By its file: the family links a library of cryptography, which has nothing to do with it.
#[allow(dead_code)]
#[path = "../../../bins/tls/certificate.rs"]
mod certificate;

use certificate::{Certificate, content, fingerprint};

fuzz_target!(|input: &[u8]| {
    assert_eq!(fingerprint(input).len(), 64);
    if let Some(inside) = content(input) {
        assert!(inside.len() + 2 <= input.len());
    }
    let Some(found) = Certificate::parse(input) else { return };
    for piece in [found.issuer, found.subject, found.spki] {
        assert!(input.windows(piece.len().max(1)).any(|window| window == piece) || piece.is_empty());
    }
    assert!(content(found.spki).is_some(), "a key is one sequence");
    for name in [found.email(), found.dns()].into_iter().flatten() {
        assert!(!name.is_empty() && name.iter().all(|b| (33..=126).contains(b)));
    }
    assert!(!found.subject_text().iter().any(u8::is_ascii_control));
    if let Some(hash) = found.end_point(input) {
        assert!(matches!(hash.len(), 32 | 48 | 64));
    }
    // A certificate that is cut is none.
    let cut = input.len().saturating_sub(1);
    if Certificate::parse(&input[..cut]).is_some() {
        assert!(Certificate::parse(&[input, b"more"].concat()).is_some(), "what follows does not count");
    }
});
