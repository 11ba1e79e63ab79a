//! Patterns of file paths: `*`, `?`, `[...]` within a name, and `**` over folders.

use regex::Regex;

/// A pattern of relative paths with `/`.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(Regex);

impl Pattern {
    /// The pattern of a text; `None` if a bracket is not closed.
    pub(super) fn new(text: &str) -> Option<Self> {
        let text = text.trim_start_matches("./");
        let mut regex = String::from("^(?s)");
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let (part, length) = match c {
                _ if rest.starts_with("**/") => ("(?:.*/)?".to_owned(), 3),
                _ if rest.starts_with("**") => (".*".to_owned(), 2),
                '*' => ("[^/]*".to_owned(), 1),
                '?' => ("[^/]".to_owned(), 1),
                '[' => {
                    let end = rest.find(']')?;
                    let (negated, members) = match rest[1..end].strip_prefix('!') {
                        Some(members) => ("^", members),
                        None => ("", &rest[1..end]),
                    };
                    (format!("[{negated}{}]", members.replace('\\', "\\\\").replace('[', "\\[")), end + 1)
                }
                c => (regex::escape(&c.to_string()), c.len_utf8()),
            };
            regex.push_str(&part);
            rest = &rest[length..];
        }
        regex.push('$');
        Regex::new(&regex).ok().map(Self)
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        self.0.is_match(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_within_a_name_and_over_folders() {
        for (pattern, path, expected) in [
            ("data/*.csv", "data/a.csv", true),
            ("data/*.csv", "data/b/a.csv", false),
            ("data/**", "data/b/a.csv", true),
            ("**/a.csv", "a.csv", true),
            ("**/a.csv", "x/y/a.csv", true),
            ("train-[0-9]*.csv", "train-1x.csv", true),
            ("train-[!0-9]*.csv", "train-1x.csv", false),
            ("./a?.csv", "ab.csv", true),
            ("a+b(1).csv", "a+b(1).csv", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
        assert!(Pattern::new("a[b").is_none());
    }
}
