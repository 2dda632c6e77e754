//! What is in `deploy/` fits the program: metrics, keys and runbooks that are named there exist.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use quipu::config::{self, KEYS, Key};
use quipu::telemetry::Metrics;

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(deploy(path)).unwrap_or_else(|error| panic!("deploy/{path}: {error}"))
}

/// The words of a text that begin with `prefix`.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let is_separator = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    text.split(is_separator).filter(|word| word.starts_with(prefix)).collect()
}

/// The samples that a scrape of a node can have.
fn samples() -> BTreeSet<String> {
    Metrics::new().catalog().iter().flat_map(quipu::telemetry::Described::samples).collect()
}

/// The names of the alerts with their runbooks, in their order.
fn alerts() -> Vec<(String, String)> {
    let text = text("alerts.yaml");
    let values = |key: &str| -> Vec<String> {
        let value = |line: &str| Some(line.trim().strip_prefix(key)?.trim().to_owned());
        text.lines().filter_map(value).collect()
    };
    let (names, runbooks) = (values("- alert:"), values("runbook_url:"));
    assert_eq!(names.len(), runbooks.len(), "every alert has its runbook");
    assert!(names.len() > 10, "the alerts were not found");
    names.into_iter().zip(runbooks).collect()
}

#[test]
fn metrics_that_are_named_exist() {
    let samples = samples();
    let dashboard = text("dashboard.json");
    let mut texts = vec![("alerts.yaml".to_owned(), text("alerts.yaml"))];
    texts.push(("dashboard.json".to_owned(), dashboard));
    for (_, runbook) in alerts() {
        texts.push((runbook.clone(), text(&runbook)));
    }
    for (path, text) in texts {
        for word in words(&text, "quipu_") {
            assert!(samples.contains(word), "{path}: there is no metric {word}");
        }
    }
}

#[test]
fn every_alert_has_its_runbook_and_every_runbook_its_alert() {
    let mut expected = BTreeSet::new();
    for (name, runbook) in alerts() {
        assert_eq!(runbook, format!("runbooks/{name}.md"));
        let text = text(&runbook);
        assert!(text.starts_with(&format!("# {name}\n")), "{runbook}");
        for heading in ["## What it means\n", "## How to check\n", "## What to do\n"] {
            let at = text.find(heading).unwrap_or_else(|| panic!("{runbook}: no {heading}"));
            let next = text[at + heading.len()..].trim_start();
            assert!(!next.is_empty() && !next.starts_with('#'), "{runbook}: empty {heading}");
        }
        assert!(expected.insert(format!("{name}.md")), "{name} is there twice");
    }
    let found = fs::read_dir(deploy("runbooks")).unwrap();
    let found: BTreeSet<_> =
        found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, expected);
}

#[test]
fn runbooks_name_alerts_keys_and_labels_that_exist() {
    let names: BTreeSet<String> = alerts().into_iter().map(|(name, _)| name).collect();
    for (_, runbook) in alerts() {
        let text = text(&runbook);
        for word in words(&text, "Quipu").into_iter().filter(|word| *word != "Quipu") {
            assert!(names.contains(word), "{runbook}: there is no alert {word}");
        }
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_key = KEYS.iter().any(|key| key.name == quoted);
            let section = quoted.split('.').next().unwrap();
            let in_section = KEYS.iter().any(|key| key.section() == section);
            let is_plain = quoted.contains('.') && !quoted.contains(' ');
            assert!(!(in_section && is_plain) || is_key, "{runbook}: there is no key {quoted}");
        }
    }
}

#[test]
fn the_sample_configuration_is_of_this_version() {
    let expected = config::sample();
    assert_eq!(
        text("quipu.toml"),
        expected,
        "make it anew: cargo run -- config sample > deploy/quipu.toml"
    );
}

#[test]
fn variables_and_flags_that_are_set_exist() {
    let variables: BTreeSet<_> = KEYS.iter().map(Key::variable).collect();
    let flags: BTreeSet<_> = KEYS.iter().map(|key| format!("--{}", key.flag())).collect();
    for path in ["compose.yaml", "kubernetes/quipu.yaml", "Dockerfile", "quipu.service"] {
        let text = text(path);
        // What the comments say of variables that are not ours is left out.
        let is_code = |line: &&str| !line.trim_start().starts_with('#');
        let code: String = text.lines().filter(is_code).flat_map(|line| [line, "\n"]).collect();
        for word in words(&code, "QUIPU_") {
            assert!(variables.contains(word), "{path}: there is no variable {word}");
        }
        for line in text.lines().filter(|line| line.contains("serve ")) {
            for word in line.split_whitespace().filter(|word| word.starts_with("--")) {
                let is_dockers = word == "--rm";
                let is_known = word == "--config" || flags.contains(word) || is_dockers;
                assert!(is_known, "{path}: there is no flag {word}");
            }
        }
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "a panel's id is there twice");
        assert!(!panel["title"].as_str().unwrap().is_empty());
        let grid = &panel["gridPos"];
        assert!(grid["x"].as_u64().unwrap() + grid["w"].as_u64().unwrap() <= 24, "{panel}");
        if panel["type"] == "row" {
            continue;
        }
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            assert!(expr.contains("job=\"$job\""), "{expr}: all jobs at once");
            assert!(is_balanced(expr), "{expr}");
        }
    }
    assert!(panels.len() > 20);
}

#[test]
fn expressions_of_alerts_are_balanced() {
    let text = text("alerts.yaml");
    let expressions: Vec<_> = text.split("expr: >-\n").skip(1).collect();
    assert_eq!(expressions.len(), alerts().len());
    for expression in expressions {
        let expression = expression.split(" for: ").next().unwrap();
        assert!(is_balanced(expression), "{expression}");
    }
}

fn is_balanced(text: &str) -> bool {
    let mut open = Vec::new();
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => open.push(c),
            ')' | ']' | '}' => {
                let pair = open.pop().map(|opened| (opened, c));
                if !matches!(pair, Some(('(', ')') | ('[', ']') | ('{', '}'))) {
                    return false;
                }
            }
            _ => {}
        }
    }
    open.is_empty()
}

#[test]
fn yaml_files_have_the_structure_of_yaml() {
    for path in ["alerts.yaml", "compose.yaml", "kubernetes/quipu.yaml"] {
        check_yaml(&text(path)).unwrap_or_else(|error| panic!("deploy/{path}:{error}"));
    }
}

#[test]
fn the_check_of_yaml_can_fail() {
    for bad in ["a:\n\tb: 1\n", "a: 1\na: 2\n", "a:\n  b: 1\n c: 2\n", "a: \"x\nb: 1\n", "a\n"] {
        assert!(check_yaml(bad).is_err(), "{bad:?}");
    }
    check_yaml("a:\n  - b: 1\n    c: >-\n      x: x: x\n  - b: [1, 2]\n---\na: \"#: x\" # y\n")
        .unwrap();
}

/// A check of the block structure of YAML as far as these files use it: indentation, unique keys of
/// a mapping, quotes and brackets that close. It is no parser.
fn check_yaml(text: &str) -> Result<(), String> {
    // The open mappings: their indentation and keys.
    let mut open: Vec<(usize, BTreeMap<String, usize>)> = Vec::new();
    let mut block_scalar_above: Option<usize> = None;
    for (line, number) in text.lines().zip(1..) {
        let mut indent = line.len() - line.trim_start_matches(' ').len();
        let mut rest = line.trim();
        if block_scalar_above.is_some_and(|above| indent > above) || rest.is_empty() {
            continue;
        }
        block_scalar_above = None;
        if rest.starts_with('#') {
            continue;
        }
        if rest == "---" {
            open.clear();
            continue;
        }
        if line.contains('\t') {
            return Err(format!("{number}: a tab"));
        }
        let mut is_item = false;
        while let Some(item) = rest.strip_prefix("- ") {
            (indent, rest, is_item) = (indent + 2, item, true);
            open.retain(|(other, _)| *other < indent);
        }
        let Some((key, value)) =
            rest.split_once(':').filter(|(_, v)| v.is_empty() || v.starts_with(' '))
        else {
            if is_item && is_closed(rest) {
                continue;
            }
            return Err(format!("{number}: neither a key nor an item: {rest}"));
        };
        if !is_closed(value) {
            return Err(format!("{number}: a quote or bracket stays open"));
        }
        open.retain(|(other, _)| *other <= indent);
        if open.last().is_none_or(|(last, _)| *last < indent) {
            if !is_item && !open.is_empty() && !indent.is_multiple_of(2) {
                return Err(format!("{number}: an odd indentation"));
            }
            open.push((indent, BTreeMap::new()));
        }
        let keys = &mut open.last_mut().unwrap().1;
        if let Some(earlier) = keys.insert(key.to_owned(), number) {
            return Err(format!("{number}: {key} stands in line {earlier} already"));
        }
        if matches!(value.trim(), ">-" | "|" | ">" | "|-") {
            block_scalar_above = Some(indent);
        }
    }
    Ok(())
}

fn is_closed(value: &str) -> bool {
    let plain: String = value.split('"').step_by(2).collect();
    value.matches('"').count().is_multiple_of(2) && is_balanced(&plain)
}
