//! Lines of code, tests, comments and nothing.

use std::ops::{AddAssign, RangeInclusive};

use proc_macro2::{TokenStream, TokenTree};
use serde::Serialize;
use syn::spanned::Spanned;
use syn::visit::Visit;

use super::{Role, SourceFile, is_for_tests};

/// Lines by what they hold. A line with code and a comment is a line of code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Lines {
    /// Code of libraries, programs and build scripts.
    pub source: usize,
    /// Code of tests, benches and examples.
    pub tests: usize,
    /// Comments and documentation.
    pub comments: usize,
    /// Empty lines.
    pub blank: usize,
}

impl AddAssign for Lines {
    fn add_assign(&mut self, other: Self) {
        self.source += other.source;
        self.tests += other.tests;
        self.comments += other.comments;
        self.blank += other.blank;
    }
}

/// Counts the lines of a file.
pub fn count(file: &SourceFile) -> Lines {
    let lines: Vec<&str> = file.text.lines().collect();
    let mut holds_code = vec![false; lines.len() + 1];
    if let Ok(tokens) = file.text.parse::<TokenStream>() {
        mark(tokens, &lines, &mut holds_code);
    }
    let mut for_tests = TestItems::default();
    for_tests.visit_file(&file.syntax);
    let mut counted = Lines::default();
    for (number, line) in (1..).zip(&lines) {
        if holds_code[number] {
            if file.role == Role::Test || for_tests.0.iter().any(|range| range.contains(&number)) {
                counted.tests += 1;
            } else {
                counted.source += 1;
            }
        } else if line.trim().is_empty() {
            counted.blank += 1;
        } else {
            counted.comments += 1;
        }
    }
    counted
}

/// Marks the lines of tokens. Documentation is made of tokens as well, whose place in the file begins with a slash twice.
fn mark(tokens: TokenStream, lines: &[&str], holds_code: &mut [bool]) {
    for token in tokens {
        let (start, end) = (token.span().start(), token.span().end());
        let text: String = lines[start.line - 1].chars().skip(start.column).take(2).collect();
        if text == "//" || text == "/*" {
            continue;
        }
        match token {
            TokenTree::Group(group) => {
                // The braces; lines between them belong to what they hold.
                holds_code[start.line] = true;
                holds_code[end.line] = true;
                mark(group.stream(), lines, holds_code);
            }
            _ => holds_code[start.line..=end.line].fill(true),
        }
    }
}

/// The lines of items that are built for tests alone.
#[derive(Default)]
struct TestItems(Vec<RangeInclusive<usize>>);

impl Visit<'_> for TestItems {
    fn visit_item(&mut self, item: &syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return,
        };
        if is_for_tests(attributes) {
            self.0.push(item.span().start().line..=item.span().end().line);
        } else {
            syn::visit::visit_item(self, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parsed;

    #[test]
    fn lines_are_told_apart() {
        let text = "//! A file.\n\n/* of\ncomments */ /// Doc.\npub fn f() { // code\n    // comment\n    g(\"//\n\nstring\");\n}\n\n\
                    #[cfg(test)]\nmod tests {\n    fn h() {}\n}\n";
        let lines = count(&parsed("a.rs", &[], text));
        assert_eq!(lines, Lines { source: 5, tests: 4, comments: 4, blank: 2 });
        let all_tests = SourceFile { role: Role::Test, ..parsed("a.rs", &[], text) };
        assert_eq!(count(&all_tests).tests, 9);
    }
}
