//! Sanitising text of any origin for a page.

/// The text without characters that HTML and XML forbid (controls other than tabulator and line end, and two
/// non-characters), and without marks of writing direction, which would affect neighbouring texts.
pub fn clean(text: &str) -> String {
    let fit = |c: &char| match c {
        '\t' | '\n' => true,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => false,
        c => !c.is_control(),
    };
    text.chars().filter(fit).collect()
}

/// A name as part of an address or a file's name: small letters, digits and hyphens.
pub fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        match c {
            c if c.is_ascii_alphanumeric() => slug.push(c),
            _ if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            _ => {}
        }
        if slug.len() >= 60 {
            break;
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "part".to_owned() } else { slug.to_owned() }
}

/// Names in use; the next equal name is numbered.
#[derive(Debug, Default)]
pub struct Names(Vec<String>);

impl Names {
    /// A slug that is not in use.
    pub fn unique(&mut self, text: &str) -> String {
        let base = slug(text);
        let numbered = (2..).map(|n| format!("{base}-{n}"));
        let free = std::iter::once(base.clone()).chain(numbered).find(|name| !self.0.contains(name));
        let name = free.unwrap_or(base);
        self.0.push(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pages_cannot_hold_is_taken_out() {
        assert_eq!(clean("a\u{0}b\u{1b}c\td\ne\u{202e}f\u{ffff}g日\r"), "abc\td\nefg日");
    }

    #[test]
    fn names_of_files_are_plain_and_unique() {
        let mut names = Names::default();
        let given = ["../../etc/passwd", "Loss, all runs", "loss all  runs!", "日本", ""].map(|n| names.unique(n));
        assert_eq!(given, ["etc-passwd", "loss-all-runs", "loss-all-runs-2", "part", "part-2"]);
        assert!(slug(&"x".repeat(500)).len() <= 60);
    }
}
