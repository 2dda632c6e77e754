//! The rules of the house: budgets, layers and words, checked on every Rust file of the project.
//!
//! Each rule is a function in one of the modules below, proven there to fail on a bad snippet. Here
//! it runs over the whole tree; a failure lists every breach as `path:line: message`. The rules
//! read tokens, not meaning: what a macro makes up escapes them.

#[path = "tidy/budgets.rs"]
mod budgets;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/paths.rs"]
mod paths;
#[path = "tidy/scan.rs"]
mod scan;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use source::{Breach, Source, read_project};

/// Applies a rule to each file.
#[track_caller]
fn expect_each(rule: impl Fn(&Source) -> Vec<Breach>) {
    expect_all(|sources| sources.iter().flat_map(&rule).collect());
}

/// Applies a rule to the tree as a whole.
#[track_caller]
fn expect_all(rule: impl Fn(&[Source]) -> Vec<Breach>) {
    let sources = read_project();
    assert!(sources.len() > 1, "the project's files were not found");
    let breaches: Vec<String> = rule(&sources).iter().map(Breach::to_string).collect();
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn lines_are_at_most_100_characters_long() {
    expect_each(budgets::line_length);
}

#[test]
fn files_keep_their_budget_of_lines() {
    expect_each(budgets::file_length);
}

#[test]
fn file_allowances_are_for_files_that_exist() {
    expect_all(budgets::allowance_for_missing_files);
}

#[test]
fn functions_are_at_most_70_lines_long() {
    expect_each(budgets::function_length);
}

#[test]
fn the_median_function_is_at_most_8_lines_long() {
    let median = budgets::median_function_length(&read_project()).unwrap_or(0);
    println!("the median function has {median} lines");
    expect_all(budgets::median_function);
}

#[test]
fn storage_raft_and_partition_assert_their_invariants() {
    expect_all(budgets::assert_density);
}

#[test]
fn every_module_has_its_layer() {
    expect_each(layers::every_module_has_a_layer);
}

#[test]
fn dependencies_point_down_the_layers() {
    expect_each(layers::dependencies_point_down);
}

#[test]
fn modules_of_one_layer_depend_one_way() {
    expect_all(layers::neighbors_depend_one_way);
}

#[test]
fn crates_are_named_by_their_owners_only() {
    expect_each(layers::crates_have_owners);
}

#[test]
fn storage_is_synchronous_and_knows_no_network() {
    expect_each(layers::storage_is_synchronous);
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    expect_each(words::unwrap_outside_tests);
}

#[test]
fn no_code_is_left_unfinished() {
    expect_each(words::unfinished_code);
}

#[test]
fn no_comment_puts_work_off() {
    expect_each(words::unfinished_comments);
}

#[test]
fn names_say_what_they_name() {
    expect_each(words::vague_names);
}

#[test]
fn epochs_say_whose_they_are() {
    expect_each(words::bare_epoch);
}

#[test]
fn channels_are_bounded() {
    expect_each(words::unbounded_channels);
}

#[test]
fn unsafe_code_stays_in_its_file_with_its_argument() {
    expect_each(words::unsafe_code);
}

#[test]
fn ignored_tests_give_a_reason() {
    expect_each(words::ignored_tests);
}

#[test]
fn every_file_begins_with_its_doc() {
    expect_each(words::module_docs);
}
