use std::sync::Arc;

use super::{
    super::{line::Line, reader},
    *,
};
use crate::ledger::{Assignment, Sandbox, State, Tenant};

const LINES: [&str; 9] = [
    "free vnp-1 10.1.2.3 - -\n",
    "free vnp-00c1 10.1.2.3 - 81023\n",
    "withdrawn vnp-00c3 10.1.2.5 - -\n",
    "withdrawn vnp-00c3 255.0.19.100 - 18446744073709551\n",
    "assigned vnp-00c2 10.1.2.4 - 90511 vnp0123456789a 4f1c eth0 uid-0 default web-0 -\n",
    "assigned vnp-00c2 10.1.2.4 - 90511 vnp0123456789a 4f1c eth0 uid-0 default web-0 - vnetpool\n",
    "assigned vnp-00c2 10.1.2.4 - 90511 vnp0123456789a 4f1c eth0 - - - vanished\n",
    "assigned vnp-00c2 10.1.2.4 - 90511 vnp0123456789a - 10.1.2.4 - - - vanished vnetpool later words\n",
    "assigned vnp-00c2 10.1.2.4 - 0 /run/netns/cni-1#4026532001 4f1c eth0 uid-0 default web-0 - vnetpool\n",
];

/// Whether a usual line begins here. It has what the reader finds in it.
pub(in crate::ledger::format) fn is_usual(text: &[u8]) -> bool {
    let Some(Usual { address, usage, name, sandbox, end }) = Usual::at(0, text) else { return false };
    assert_eq!(text.iter().position(|byte| *byte == b'\n').map(|at| at + 1), Some(end));
    let (entry, state) = reader::record(&text[..end]).unwrap();
    assert_eq!(
        (entry.address, entry.name.as_bytes(), entry.attached_to),
        (address, &text[name.clone()], None)
    );
    assert_eq!(Usage::of(&state), usage);
    let line = Line::usual(&Arc::new(text.to_vec()), 0..end, name, sandbox);
    assert_eq!(line.as_bytes(), &text[..end]);
    if let State::Assigned(Assignment { tenant: Tenant { sandbox, .. }, .. }) = state {
        let Sandbox { container_id: id, ifname } = &sandbox;
        let other = |id: String, ifname: String| Sandbox { container_id: id, ifname };
        let others = [
            other(format!("{id}x"), ifname.clone()),
            other(id.clone(), format!("{ifname}x")),
            other(format!("{id} {ifname}"), String::new()),
            other("-".to_owned(), ifname.clone()),
            other(id.clone(), "-".to_owned()),
        ];
        assert!(line.is_of(&sandbox));
        assert!(others.iter().all(|other| !line.is_of(other)));
    }
    true
}

#[test]
fn the_lines_of_most_records_are_usual() {
    for line in LINES {
        let behind = [line, "end\nfurther lines\n"].concat();
        assert!(is_usual(behind.as_bytes()), "{line}");
    }
    for other in
        ["", "-", "%41", "caf\u{e9}", "a%41"].map(|name| format!("free {name} 10.1.2.3 - -\nend\n   "))
    {
        assert!(!is_usual(other.as_bytes()), "{other}");
    }
}

/// One byte more, less or other makes most of them malformed: what is still taken for usual, the reader reads
/// as the same.
#[test]
fn a_line_that_differs_from_a_usual_one_in_a_byte_is_usual_only_if_the_reader_reads_it_so() {
    let (mut usual, mut other) = (0, 0);
    for line in LINES.map(|line| [line, "end\n    "].concat()) {
        let line = line.as_bytes();
        for at in 0..line.len() {
            let (before, behind) = line.split_at(at);
            let further = (0..=u8::MAX).map(|byte| [before, &[byte], behind].concat());
            let changed = (0..=u8::MAX).map(|byte| [before, &[byte], &behind[1..]].concat());
            for text in further.chain(changed).chain([[before, &behind[1..]].concat()]) {
                *if is_usual(&text) { &mut usual } else { &mut other } += 1;
            }
        }
    }
    assert!(usual > 100_000 && other > 100_000, "{usual} and {other}");
}

#[test]
fn a_line_that_is_cut_off_is_not_usual() {
    for line in LINES.map(str::as_bytes) {
        assert!((0..line.len()).all(|end| !is_usual(&line[..end])));
    }
}

#[test]
fn a_line_ends_at_its_first_newline_or_with_the_text() {
    for length in 0..40 {
        for other in ["a", "\u{b}", "\t", "\0", "\u{7f}", "%", " ", "é"] {
            let before = other.repeat(length);
            for behind in ["", "\n", "\n\n", "\nabcdefghijklmnop"] {
                let text = format!("{before}{behind}");
                assert_eq!(super::length(text.as_bytes()), before.len(), "{text:?}");
            }
        }
    }
}

#[test]
fn a_reader_of_words_stops_at_each_byte_that_may_end_or_encode_one_wherever_it_is() {
    for at in 0..24 {
        for neighbour in [b'a', b'~', b'&', 0x7f, b' ', 0, 0xff] {
            for byte in 0..=u8::MAX {
                let mut text = [neighbour; 24];
                text[at] = byte;
                let is_stop = |(_, byte): &(usize, u8)| !matches!(byte, b'&'..=0x7f);
                let stops: Vec<_> = text.into_iter().enumerate().filter(is_stop).collect();
                assert_eq!(Stops::of(&text).collect::<Vec<_>>(), stops, "{text:?}");
            }
        }
    }
}

#[test]
fn an_address_is_read_in_no_other_form_than_the_standard_librarys() {
    let words = [
        "10.1.2.3",
        "0.0.0.0",
        "255.255.255.255",
        "1.2.3",
        "1.2.3.4.5",
        "01.2.3.4",
        "00.2.3.4",
        "1.2.3.256",
        "1.2.3.1000",
        "1.2.3.4294967297",
        "1.2.3.",
        ".1.2.3",
        "1..2.3",
        "1.2.3.a",
        "1.2.3.-4",
        "+1.2.3.4",
        "",
        "-",
    ];
    for word in words {
        let text = format!("{word} ");
        let whole = Rest(text.as_bytes()).address().filter(|(_, rest)| rest.0 == b" ");
        assert_eq!(whole.map(|(address, _)| address), word.parse().ok(), "{word:?}");
    }
}

#[test]
fn a_time_is_read_if_it_can_not_be_too_large() {
    let time = |word: &str| Rest(format!("{word} ").as_bytes()).time().map(|(time, _)| time);
    assert_eq!(time("-"), Some(None));
    for word in ["0", "007", "90511", "9999999999999999999"] {
        assert_eq!(time(word), Some(word.parse().ok()), "{word}");
    }
    // The reader decides these.
    for word in ["", "+7", "x", "18446744073709551615", "18446744073709551616"] {
        assert_eq!(time(word), None, "{word}");
    }
}
