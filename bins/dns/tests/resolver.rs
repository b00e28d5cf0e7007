//! The resolver's own interface against a server of the test's own on loopback. What qmail-remote makes of
//! answers is in tests/test_dns.py.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a test that fails may panic

use dns::{Failure, Resolver};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

const A: u8 = 1;
const PTR: u8 = 12;
const TXT: u8 = 16;
const AAAA: u8 = 28;

/// Answers every question of a type with these data, NOERROR and the AD bit, until the test ends; an
/// empty list is "no such record".
fn serve(answers: Vec<(u8, bool, Vec<Vec<u8>>)>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..n];
            let end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 5;
            let kind = query[end - 3];
            let Some((_, signed, data)) = answers.iter().find(|(k, _, _)| *k == kind) else { continue };
            let mut answer = query[..2].to_vec();
            answer.extend([
                0x81,
                if *signed { 0xa0 } else { 0x80 },
                0,
                1,
                0,
                u8::try_from(data.len()).unwrap(),
                0,
                0,
                0,
                0,
            ]);
            answer.extend(&query[12..end]);
            for bytes in data {
                answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, u8::try_from(bytes.len()).unwrap()]);
                answer.extend(bytes);
            }
            socket.send_to(&answer, peer).unwrap();
        }
    });
    address
}

fn resolver(answers: Vec<(u8, bool, Vec<Vec<u8>>)>) -> Resolver {
    Resolver::at(vec![serve(answers)])
}

#[test]
fn addresses_of_both_families_come_together_ipv4_first() {
    let r = resolver(vec![(A, true, vec![vec![192, 0, 2, 1]]), (AAAA, true, vec![vec![0; 16]])]);
    let answer = r.ip(b"h.test").unwrap();
    assert_eq!(answer.records, ["192.0.2.1".parse::<IpAddr>().unwrap(), "::".parse().unwrap()]);
    assert!(answer.authentic);
}

#[test]
fn an_answer_is_authentic_only_if_all_of_it_is() {
    let r = resolver(vec![(A, true, vec![vec![192, 0, 2, 1]]), (AAAA, false, vec![vec![0; 16]])]);
    assert!(!r.ip(b"h.test").unwrap().authentic);
    assert!(r.a(b"h.test").unwrap().authentic);
    assert!(!r.aaaa(b"h.test").unwrap().authentic);
}

#[test]
fn one_family_is_enough() {
    let r = resolver(vec![(A, false, vec![]), (AAAA, false, vec![vec![0; 16]])]);
    assert_eq!(r.ip(b"h.test").unwrap().records, ["::".parse::<IpAddr>().unwrap()]);
    assert_eq!(r.a(b"h.test"), Err(Failure::NoData));
    let r = resolver(vec![(A, false, vec![]), (AAAA, false, vec![])]);
    assert_eq!(r.ip(b"h.test"), Err(Failure::NoData));
}

#[test]
fn names_of_addresses_and_texts_are_found() {
    let r = resolver(vec![
        (PTR, false, vec![b"\x04MAIL\x04test\0".to_vec(), b"\0".to_vec()]),
        (TXT, false, vec![b"\x03one\x03two".to_vec(), b"\0".to_vec()]),
    ]);
    assert_eq!(r.ptr("192.0.2.1".parse().unwrap()).unwrap().records, [b"MAIL.test"]);
    assert_eq!(r.txt(b"t.test").unwrap().records, [b"onetwo".to_vec(), b"".to_vec()]);
}

#[test]
fn a_silent_server_is_waited_for_no_longer_than_asked() {
    let r = resolver(vec![]).within(Duration::from_millis(100));
    assert_eq!(r.mx(b"h.test"), Err(Failure::Temporary));
}

#[test]
fn without_servers_every_question_is_open() {
    assert_eq!(Resolver::at(vec![]).a(b"h.test"), Err(Failure::Temporary));
}
