//! Whoever searches the logs of both programs needs one name for one thing. So each detail of a log line is
//! in the table of `crds/process/src/log.rs`, and each flag has its variable by one rule.

use std::collections::BTreeSet;

use clap::{Command, CommandFactory};
use proc_macro2::{TokenStream, TokenTree};
use vnetpool_process::log::DETAILS;

use super::words::{parsed, shipped};

/// The macros of tracing that make a line or a span.
const MACROS: [&str; 10] = [
    "trace",
    "debug",
    "info",
    "warn",
    "error",
    "trace_span",
    "debug_span",
    "info_span",
    "warn_span",
    "error_span",
];

#[test]
fn every_detail_of_a_log_line_is_in_the_table_and_every_row_is_of_one() {
    let table: BTreeSet<_> = DETAILS.iter().map(|key| key.name.to_owned()).collect();
    let (mut found, mut unknown) = (BTreeSet::new(), vec![]);
    shipped(&mut |path, code| {
        details_in(code, &mut |name| {
            unknown.extend((!table.contains(&name)).then(|| format!("{path}: {name}")));
            found.extend([name]);
        });
    });
    assert!(unknown.is_empty(), "{unknown:?}");
    // The plugin has no macros. Its own test compares its keys with the table.
    let of_the_plugin =
        ["address", "code", "error", "phases", "pid", "pod", "pod_uid", "sandbox", "took_seconds", "verb"];
    found.extend(of_the_plugin.map(str::to_owned));
    let unused: Vec<_> = table.difference(&found).collect();
    assert!(unused.is_empty(), "nothing writes {unused:?}");
}

#[test]
fn a_detail_is_what_stands_before_the_message_or_behind_the_name_of_a_span() {
    let mut found = vec![];
    let code = r#"fn a() { info!(one, %two, ?three, four = x(1, 2), five = %six.seven, "message {eight}", nine);
        tracing::warn!("{ten}"); let _ = info_span!("span", eleven = a); b.error(twelve); info!(target: "t", 'x') }
        #[instrument(skip_all, fields(thirteen = %id, fourteen))] fn c() {}"#;
    details_in(parsed(code), &mut |name| found.push(name));
    assert_eq!(found, ["one", "two", "three", "four", "five", "eleven", "thirteen", "fourteen"]);
}

/// Those of a subcommand, which a person types, may have none.
#[test]
fn every_flag_of_both_programs_has_the_variable_of_its_name() {
    for program in [vnetpool_operator::args::Args::command(), vnetpool_node_agent::args::Args::command()] {
        let flags = variables(&program);
        assert!(flags.len() > 10, "{flags:?}");
        let of_commands = program.get_subcommands().flat_map(variables);
        let of_commands = of_commands.filter(|(_, variable)| variable.is_some());
        for (flag, variable) in flags.into_iter().chain(of_commands) {
            let expected = format!("VNETPOOL_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(variable, Some(expected), "--{flag}");
        }
    }
}

/// Each flag of a program, with the variable that stands in for it.
fn variables(program: &Command) -> Vec<(String, Option<String>)> {
    let flags = program.get_arguments().filter_map(|one| Some((one.get_long()?, one.get_env())));
    let flags = flags.filter(|(flag, _)| !["help", "version"].contains(flag));
    flags
        .map(|(flag, name)| (flag.to_owned(), name.map(|name| name.to_string_lossy().into_owned())))
        .collect()
}

/// Shows `see` the name of each detail of a line or of a span.
fn details_in(code: TokenStream, see: &mut impl FnMut(String)) {
    let tokens: Vec<_> = code.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else { continue };
        let before = |back: usize| at.checked_sub(back).map_or(String::new(), |at| tokens[at].to_string());
        if before(1) == "!" && MACROS.contains(&before(2).as_str()) {
            let is_span = before(2).ends_with("_span");
            names_of(group.stream(), is_span, see);
        } else if before(1) == "fields" && ["", ","].contains(&before(2).as_str()) {
            names_of(group.stream(), true, see);
        } else {
            details_in(group.stream(), see);
        }
    }
}

/// The details among the arguments of a macro. They end with the message of a line.
fn names_of(arguments: TokenStream, is_span: bool, see: &mut impl FnMut(String)) {
    let tokens: Vec<_> = arguments.into_iter().collect();
    for argument in tokens.split(|token| is_mark(token, ',')) {
        let is_form = |token: &TokenTree| is_mark(token, '%') || is_mark(token, '?');
        let begin = argument.iter().position(|token| !is_form(token)).unwrap_or(argument.len());
        match &argument[begin..] {
            [TokenTree::Literal(_), ..] if !is_span => return,
            // `target: "…"`
            [TokenTree::Ident(_), mark, ..] if is_mark(mark, ':') => {}
            [TokenTree::Ident(name), ..] => see(name.to_string()),
            _ => {}
        }
    }
}

fn is_mark(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(one) if one.as_char() == mark)
}
