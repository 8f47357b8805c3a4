//! The lines of many logs about one address, in the order of their times, however each log writes these.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// So much of a line is shown: some carry whole documents.
const LENGTH: usize = 400;

/// The lines about this address in logs, each with its name; oldest first. A line without a time is of the
/// time of the line before it in its log. A line that stands in two copies of a log is shown once. klog
/// leaves the year out, which is `year`.
pub fn about(address: Ipv4Addr, logs: &[(String, String)], year: i16) -> Vec<String> {
    let address = address.to_string();
    let mut lines: BTreeMap<(Option<Timestamp>, &str), &str> = BTreeMap::new();
    for (name, text) in logs {
        let all: Vec<&str> = text.lines().collect();
        for (number, line) in all.iter().enumerate().filter(|(_, line)| names(line, &address)) {
            // Of no other line: the logs of hours have millions.
            let time = all[..=number].iter().rev().find_map(|line| time_of(line, year));
            lines.entry((time, line)).or_insert(name);
        }
    }
    let shown = |((at, line), name): (&(Option<Timestamp>, &str), &&str)| {
        let at = at.map_or("no time".to_owned(), |at| at.to_string());
        let line: String = line.chars().take(LENGTH).collect();
        format!("{at} {name}: {line}")
    };
    lines.iter().map(shown).collect()
}

/// Whether the address stands in the line, and not only as a part of another: `10.0.0.1` isn't in
/// `10.0.0.17`.
fn names(line: &str, address: &str) -> bool {
    line.match_indices(address).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let behind = line[at + address.len()..].chars().next();
        !before.is_some_and(|one| one.is_ascii_digit() || one == '.')
            && !behind.is_some_and(|one| one.is_ascii_digit())
    })
}

/// When a line was written.
fn time_of(line: &str, year: i16) -> Option<Timestamp> {
    if line.starts_with('{') {
        return time_of_object(&serde_json::from_str(line).ok()?);
    }
    if let Some(rest) = line.strip_prefix("time=\"") {
        return rest.split('"').next()?.parse().ok();
    }
    let mut words = line.split_ascii_whitespace();
    let (first, second) = (words.next()?, words.next().unwrap_or_default());
    if let Ok(time) = first.parse() {
        return Some(time);
    }
    match first.strip_prefix(['I', 'W', 'E', 'F']) {
        Some(day) => local("%Y%m%d %H:%M:%S%.f", &format!("{year}{day} {second}")),
        None => local("%Y/%m/%d %H:%M:%S", &format!("{first} {second}")),
    }
}

/// Programs write the time out under one of these names.
fn time_of_object(line: &Value) -> Option<Timestamp> {
    ["timestamp", "ts", "time"].iter().find_map(|name| line[*name].as_str()?.parse().ok())
}

/// A time that names no zone is this machine's.
fn local(format: &str, time: &str) -> Option<Timestamp> {
    let time = DateTime::strptime(format, time).ok()?;
    Some(time.to_zoned(TimeZone::system()).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const YEAR: i16 = 2026;
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    /// 17:53:01 and so much more, by the machine's zone.
    fn at(nanoseconds: i32) -> Timestamp {
        let time = jiff::civil::date(YEAR, 11, 29).at(17, 53, 1, nanoseconds);
        time.to_zoned(TimeZone::system()).unwrap().timestamp()
    }

    #[test]
    fn the_time_of_each_kind_of_log_is_read() {
        let (whole, millis, micros) = (at(0), at(123_000_000), at(123_456_000));
        for (line, time) in [
            ("I1129 17:53:01.123456   12345 kubelet.go:12] \"pod\" podIP=\"10.0.0.1\"".to_owned(), micros),
            ("2026/11/29 17:53:01 kubelet ended with status 0x9; starting it again".to_owned(), whole),
            (format!("{micros} stdout F {{\"timestamp\": \"2020-01-01T00:00:00Z\"}}"), micros),
            (format!("{micros}  INFO azure_sim: listens"), micros),
            (format!("time=\"{millis}\" level=info msg=\"RunPodSandbox\""), millis),
            (format!("{{\"timestamp\":\"{micros}\",\"verb\":\"ADD\"}}"), micros),
            (format!("{{\"timestamp\":\"{micros}\",\"level\":\"INFO\"}}"), micros),
            (format!("{{\"level\":\"warn\",\"ts\":\"{micros}\"}}"), micros),
            (format!("{{\"method\":\"PUT\",\"time\":\"{millis}\"}}"), millis),
        ] {
            assert_eq!(time_of(&line, YEAR), Some(time), "{line}");
        }
        let zoned = "2026-11-29T18:53:01.123456+01:00 stdout F x";
        assert_eq!(time_of(zoned, YEAR), Some("2026-11-29T17:53:01.123456Z".parse().unwrap()));
        for line in
            ["", "goroutine 1 [running]:", "{\"verb\":\"ADD\"}", "{", "Error 17:53:01", "time=\"soon\""]
        {
            assert_eq!(time_of(line, YEAR), None, "{line}");
        }
    }

    #[test]
    fn lines_of_all_logs_come_in_the_order_of_their_times_and_copies_once() {
        let line = |nanoseconds: i32, text: &str| format!("{} {text}\n", at(nanoseconds));
        let klog = "I1129 17:53:01.000002 1 a.go:1] 10.0.0.1 second\n\tat 10.0.0.1, too\n".to_owned();
        let plugin = line(3000, "10.0.0.1 third");
        let logs = [
            ("kubelet".to_owned(), klog),
            ("plugin.1".to_owned(), plugin.clone()),
            ("plugin.2".to_owned(), format!("{plugin}{}", line(4000, "10.0.0.17"))),
            ("agent".to_owned(), line(1000, "10.0.0.1/32 first")),
        ];
        let (first, second, third) = (at(1000), at(2000), at(3000));
        let expected = [
            format!("{first} agent: {first} 10.0.0.1/32 first"),
            format!("{second} kubelet: \tat 10.0.0.1, too"),
            format!("{second} kubelet: I1129 17:53:01.000002 1 a.go:1] 10.0.0.1 second"),
            format!("{third} plugin.1: {third} 10.0.0.1 third"),
        ];
        assert_eq!(about(ADDRESS, &logs, YEAR), expected);
    }

    #[test]
    fn an_address_is_not_found_in_a_longer_one() {
        for (line, is_named) in [
            ("10.0.0.1", true),
            ("\"10.0.0.1/32\"", true),
            ("10.0.0.1.", true),
            ("10.0.0.11 and 10.0.0.1", true),
            ("10.0.0.11", false),
            ("110.0.0.1", false),
            ("1.10.0.0.1", false),
        ] {
            assert_eq!(names(line, "10.0.0.1"), is_named, "{line}");
        }
    }
}
