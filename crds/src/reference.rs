//! Texts made from the tables of condition types and reasons: for `kubectl explain`, and the reference page.

use std::fmt::Write;

use crate::condition::{On, Polarity, Row, TYPES, Type, Writer};
use crate::reason::{Loudness, TABLE};

/// The condition types of a kind, a line each.
pub fn types_on(on: On) -> String {
    let lines = rows(on).map(|row| format!("{} ({}): {}", row.name, normal(row), row.meaning));
    lines.collect::<Vec<_>>().join("\n")
}

/// The page `docs/reference/conditions.md`.
pub fn page() -> String {
    let mut page = String::from(
        "# Conditions, reasons and Events\n\n\
         This page is generated from `crds/src/condition.rs` and `crds/src/reason.rs` by `make manifests`.\n\n\
         The reason of a condition is the cause of its status. Its message names the object, the cause and the remedy.\n\
         A reason below that has a line `Event` is published as one, too: once for each time a condition turns.\n\
         `kubectl describe` shows both.\n",
    );
    for on in [On::NodeIPAllocation, On::NodeIPPool] {
        let kind = on.kinds()[0];
        let _ = write!(page, "\n## Conditions of a {kind}\n\n");
        page += "| type | normal | written by | part of `Ready` | meaning |\n|---|---|---|---|---|\n";
        for row in rows(on) {
            let Row { name, meaning, .. } = row;
            let writer = match row.writer {
                Writer::Operator => "operator",
                Writer::Agent => "agent",
            };
            let part = match (row.in_ready.contains(&on), row.writer) {
                (false, _) => "",
                (true, Writer::Operator) => "yes",
                (true, Writer::Agent) => "through `AgentReporting`",
            };
            let _ = writeln!(page, "| `{name}` | {} | {writer} | {part} | {meaning} |", normal(row));
        }
    }
    page += "\n## Reasons\n\n\
             `Ready` and `AgentReporting` repeat the reason of the part that fails. A reason without conditions is that\n\
             of an Event only.\n";
    for row in TABLE {
        let _ = write!(page, "\n### {}\n\n{}\n", row.name, wrapped("", "", row.meaning));
        let types: Vec<String> = row.conditions.iter().map(|one: &Type| format!("`{one}`")).collect();
        if !types.is_empty() {
            page += &wrapped("- ", "  ", &format!("Conditions: {}.", types.join(", ")));
        }
        match row.event {
            Some(Loudness::Normal) => page += "- Event: Normal.\n",
            Some(Loudness::Warning) => page += "- Event: Warning.\n",
            None => {}
        }
        let _ = writeln!(page, "- Who acts: {}.", row.actor.name());
        if !row.remedy.is_empty() {
            page += &wrapped("- ", "  ", &format!("What to do: {}", row.remedy));
        }
    }
    page
}

/// The text in lines of at most 110 columns, the first behind `first` and the others behind `next`.
pub fn wrapped(first: &str, next: &str, text: &str) -> String {
    let (mut lines, mut line) = (String::new(), first.to_owned());
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > 110 {
            lines += line.trim_end();
            lines.push('\n');
            next.clone_into(&mut line);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line += word;
        is_empty = false;
    }
    lines + line.trim_end() + "\n"
}

fn rows(on: On) -> impl Iterator<Item = &'static Row> {
    TYPES.iter().filter(move |row| row.on == on || row.on == On::Both)
}

fn normal(row: &Row) -> &'static str {
    match row.polarity {
        Polarity::True => "True",
        Polarity::False => "False",
        Polarity::Either => "either",
    }
}
