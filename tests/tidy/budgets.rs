//! Budgets: how long lines, functions and files may be, and how many asserts they must hold.

use std::collections::BTreeMap;

use crate::source::{Breach, Function, Source};

const LINE_CHARS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FUNCTION_LINES_MEDIAN_MAX: usize = 8;
const FILE_LINES_MAX: usize = 500;
/// The budget of files that are test code, and the most that an allowance can grant.
const FILE_LINES_HARD_MAX: usize = 700;

/// Files over their budget, each with its exact length. An entry may shrink or go, never grow.
const FILE_ALLOWANCE: &[(&str, usize)] = &[];

/// The modules that state their invariants as asserts.
const ASSERTING_MODULES: [&str; 3] = ["storage", "raft", "partition"];
const ASSERTS_PER_THOUSAND_LINES_MIN: usize = 8;
/// Shorter modules are too young to be judged by a ratio.
const ASSERTING_LINES_MIN: usize = 300;

pub(crate) fn line_length(source: &Source) -> Vec<Breach> {
    let lines = source.text.lines().zip(1..);
    let lengths = lines.map(|(line, number)| (line.chars().count(), number));
    let too_long = lengths.filter(|(length, _)| *length > LINE_CHARS_MAX);
    let message = |length| format!("{length} characters in a line, {LINE_CHARS_MAX} at most");
    too_long.map(|(length, number)| source.breach(number, message(length))).collect()
}

pub(crate) fn function_length(source: &Source) -> Vec<Breach> {
    let functions = source.functions().into_iter();
    let too_long = functions.filter(|function| function.lines > FUNCTION_LINES_MAX);
    let breach = |function: Function| {
        let (name, lines) = (function.name, function.lines);
        let message = format!("`{name}` has {lines} lines, {FUNCTION_LINES_MAX} at most");
        source.breach(function.line, message)
    };
    too_long.map(breach).collect()
}

/// The median length of the crate's functions outside tests.
pub(crate) fn median_function_length(sources: &[Source]) -> Option<usize> {
    let sources = sources.iter().filter(|source| source.in_crate());
    let mut lengths: Vec<usize> = sources.flat_map(production_function_lengths).collect();
    lengths.sort_unstable();
    lengths.get(lengths.len() / 2).copied()
}

fn production_function_lengths(source: &Source) -> Vec<usize> {
    let functions = source.functions().into_iter();
    let production = functions.filter(|function| !source.is_test_line(function.line));
    production.map(|function| function.lines).collect()
}

pub(crate) fn median_function(sources: &[Source]) -> Vec<Breach> {
    let median = median_function_length(sources).unwrap_or(0);
    let message =
        format!("median function has {median} lines, {FUNCTION_LINES_MEDIAN_MAX} at most");
    let breach = Breach { path: "src".to_owned(), line: 1, message };
    (median > FUNCTION_LINES_MEDIAN_MAX).then_some(breach).into_iter().collect()
}

pub(crate) fn file_length(source: &Source) -> Vec<Breach> {
    file_length_with(source, FILE_ALLOWANCE)
}

fn file_length_with(source: &Source, allowance: &[(&str, usize)]) -> Vec<Breach> {
    let (lines, budget) = length_and_budget(source);
    let allowed = allowance.iter().find(|(path, _)| *path == source.path).map(|(_, lines)| *lines);
    let message = match allowed {
        None if lines > budget => format!("{lines} lines of code, {budget} at most"),
        Some(_) if lines <= budget => "needs its FILE_ALLOWANCE no more: remove it".to_owned(),
        Some(allowed) if lines < allowed => {
            format!("FILE_ALLOWANCE grants {allowed} lines, {lines} are enough")
        }
        Some(allowed) if lines > allowed => {
            format!("{lines} lines of code, FILE_ALLOWANCE grants {allowed}")
        }
        Some(_) if lines > FILE_LINES_HARD_MAX => {
            format!("{lines} lines of code, {FILE_LINES_HARD_MAX} even with an allowance")
        }
        _ => return Vec::new(),
    };
    vec![source.breach(1, message)]
}

/// Test files are measured whole, others without their test code.
fn length_and_budget(source: &Source) -> (usize, usize) {
    if source.is_test_file() {
        (source.text.lines().count(), FILE_LINES_HARD_MAX)
    } else {
        (source.production_lines(), FILE_LINES_MAX)
    }
}

pub(crate) fn allowance_for_missing_files(sources: &[Source]) -> Vec<Breach> {
    allowance_for_missing_files_with(sources, FILE_ALLOWANCE)
}

fn allowance_for_missing_files_with(
    sources: &[Source],
    allowance: &[(&str, usize)],
) -> Vec<Breach> {
    let is_missing = |path: &str| sources.iter().all(|source| source.path != path);
    let missing = allowance.iter().filter(|(path, _)| is_missing(path));
    let message = "has a FILE_ALLOWANCE, but does not exist";
    missing
        .map(|(path, _)| Breach { path: (*path).into(), line: 1, message: message.into() })
        .collect()
}

pub(crate) fn assert_density(sources: &[Source]) -> Vec<Breach> {
    let mut totals: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.in_crate()) {
        let module = ASSERTING_MODULES.into_iter().find(|module| source.is_within(module));
        let (asserts, lines) = totals.entry(module.unwrap_or_default()).or_default();
        *asserts += count_asserts(source);
        *lines += source.production_lines();
    }
    totals.remove("");
    let judged = totals.into_iter().filter(|(_, (_, lines))| *lines > ASSERTING_LINES_MIN);
    let too_few = judged
        .filter(|(_, (asserts, lines))| asserts * 1000 < lines * ASSERTS_PER_THOUSAND_LINES_MIN);
    too_few.map(|(module, (asserts, lines))| sparse_module(module, asserts, lines)).collect()
}

fn sparse_module(module: &str, asserts: usize, lines: usize) -> Breach {
    let needed = (lines * ASSERTS_PER_THOUSAND_LINES_MIN).div_ceil(1000);
    let message = format!("{asserts} asserts in {lines} lines, {needed} at least");
    Breach { path: format!("src/{module}"), line: 1, message }
}

fn count_asserts(source: &Source) -> usize {
    let is_assert = |at: usize| {
        let name = source.tokens[at].text.trim_start_matches("debug_");
        matches!(name, "assert" | "assert_eq" | "assert_ne") && source.reads(at + 1, &["!"])
    };
    let is_production = |at: usize| !source.is_test_line(source.tokens[at].line);
    (0..source.tokens.len()).filter(|at| is_assert(*at) && is_production(*at)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function_of(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "x();\n".repeat(lines - 2))
    }

    #[test]
    fn a_line_is_measured_in_characters() {
        let of = |length| Source::new("src/a.rs", &format!("// ok\n{}", "é".repeat(length)));
        assert!(line_length(&of(100)).is_empty());
        assert_eq!(line_length(&of(101))[0].line, 2);
    }

    #[test]
    fn a_function_over_its_budget_is_found_in_tests_too() {
        assert!(function_length(&Source::new("src/a.rs", &function_of(70))).is_empty());
        assert_eq!(function_length(&Source::new("src/a.rs", &function_of(71))).len(), 1);
        assert_eq!(function_length(&Source::new("tests/a.rs", &function_of(71))).len(), 1);
    }

    #[test]
    fn the_median_leaves_tests_out() {
        let tests = format!("#[cfg(test)] mod tests {{ {} }}", function_of(60).repeat(9));
        let of = |lines| [Source::new("src/a.rs", &format!("{}{tests}", function_of(lines)))];
        assert_eq!(median_function_length(&of(8)), Some(8));
        assert!(median_function(&of(8)).is_empty());
        assert_eq!(median_function(&of(9)).len(), 1);
        assert!(median_function(&[]).is_empty());
    }

    #[test]
    fn a_file_is_measured_without_its_tests() {
        let code = "x();\n".repeat(500);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{code}}}");
        assert!(file_length(&Source::new("src/a.rs", &format!("{code}{tests}"))).is_empty());
        assert_eq!(file_length(&Source::new("src/a.rs", &format!("{code}y();"))).len(), 1);
    }

    #[test]
    fn a_test_file_has_a_budget_of_its_own() {
        let of = |lines| Source::new("src/a/tests.rs", &"x();\n".repeat(lines));
        assert!(file_length(&of(700)).is_empty());
        assert_eq!(file_length(&of(701)).len(), 1);
    }

    #[test]
    fn an_allowance_only_tightens() {
        let of = |lines| Source::new("src/a.rs", &"x();\n".repeat(lines));
        let breaks =
            |lines, allowed| !file_length_with(&of(lines), &[("src/a.rs", allowed)]).is_empty();
        assert!(!breaks(600, 600), "an exact allowance is granted");
        assert!(breaks(601, 600), "an allowance is a limit");
        assert!(breaks(599, 600), "an allowance too large must shrink");
        assert!(breaks(500, 500), "an allowance not needed must go");
        assert!(breaks(701, 701), "no allowance passes the hard stop");
        assert_eq!(allowance_for_missing_files_with(&[of(1)], &[("src/b.rs", 600)]).len(), 1);
        assert!(allowance_for_missing_files_with(&[of(1)], &[("src/a.rs", 600)]).is_empty());
    }

    #[test]
    fn asserts_are_counted_per_module_outside_tests() {
        let tests = "#[cfg(test)] mod tests { fn t() { assert!(true); assert!(true); } }";
        let with =
            |asserts| "debug_assert_eq!(a, b);\n".repeat(asserts) + &"x();\n".repeat(500 - asserts);
        let of = |path, asserts| [Source::new(path, &format!("{}{tests}", with(asserts)))];
        assert!(assert_density(&of("src/storage/log.rs", 4)).is_empty());
        assert_eq!(assert_density(&of("src/storage/log.rs", 3)).len(), 1);
        assert!(assert_density(&of("src/cli/log.rs", 0)).is_empty());
        let short = Source::new("src/raft/a.rs", &"x();\n".repeat(300));
        assert!(assert_density(&[short]).is_empty());
    }
}
