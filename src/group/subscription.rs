//! Subscriptions: which topics a group reads. Pure.

use crate::cluster::State;
use crate::cluster::command::Topic;
use crate::cluster::group::Group;

/// Stands for any characters in a pattern, or none.
const WILDCARD: char = '*';

/// True if it is a pattern and not a name.
pub fn is_pattern(text: &str) -> bool {
    text.contains(WILDCARD)
}

/// True if the name matches the pattern.
///
/// It takes at most the product of their lengths: after a mismatch only the last wildcard is
/// stretched, because what an earlier one could gain, the last one can, too.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut stretched: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&(WILDCARD as u8)) {
            stretched = Some((p, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((wildcard, from)) = stretched {
            stretched = Some((wildcard, from + 1));
            (p, n) = (wildcard + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == WILDCARD as u8)
}

/// True if the group reads the topic of this name.
pub fn reads(group: &Group, topic: &str) -> bool {
    group.topics.iter().any(|pattern| matches(pattern, topic))
}

/// The topics that a group reads, by id.
pub fn topics<'a>(state: &'a State, group: &'a Group) -> impl Iterator<Item = &'a Topic> {
    state.topics().filter(|topic| reads(group, &topic.name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What it means, in the plainest way.
    fn matches_plainly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => matches_plainly(rest, name),
            (Some((b'*', rest)), Some((_, shorter))) => {
                matches_plainly(rest, name) || matches_plainly(pattern, shorter)
            }
            (Some((p, rest)), Some((n, shorter))) => p == n && matches_plainly(rest, shorter),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    #[test]
    fn a_name_matches_itself_and_a_wildcard_matches_anything_or_nothing() {
        for (pattern, name, expected) in [
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("orders*", "orders", true),
            ("*.eu", "orders.eu", true),
            ("o*r*s", "orders", true),
            ("o*x*s", "orders", false),
            ("*", "anything", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn many_wildcards_do_not_take_long() {
        assert!(!matches(&"*a".repeat(120), &"a".repeat(100)));
    }

    proptest! {
        #[test]
        fn matching_is_what_it_plainly_means(pattern in "[ab*]{0,8}", name in "[ab]{0,8}") {
            let plainly = matches_plainly(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(matches(&pattern, &name), plainly);
        }
    }
}
