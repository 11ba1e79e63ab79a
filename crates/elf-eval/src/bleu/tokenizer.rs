//! sacreBLEU's tokenisers.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::references::is_python_space;

/// How texts are split into the words that BLEU counts. Names are sacreBLEU's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tokenizer {
    /// The tokeniser of NIST's mteval-v13a, for languages in Latin script.
    #[default]
    #[serde(rename = "13a")]
    V13a,
    /// The tokeniser of mteval-v14: separates every punctuation mark and symbol of Unicode.
    Intl,
    /// Every Chinese character is a word; other text as in `13a`.
    Zh,
    /// Every character is a word.
    Char,
    /// Words are separated by white space.
    None,
}

impl Tokenizer {
    /// All tokenisers.
    pub const ALL: [Self; 5] = [Self::V13a, Self::Intl, Self::Zh, Self::Char, Self::None];

    /// sacreBLEU's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V13a => "13a",
            Self::Intl => "intl",
            Self::Zh => "zh",
            Self::Char => "char",
            Self::None => "none",
        }
    }

    /// The words of a text.
    ///
    /// ```
    /// use elf_eval::bleu::Tokenizer;
    /// assert_eq!(Tokenizer::V13a.words("It's 3.5%, \"really\"."), ["It's", "3.5", "%", ",", "\"", "really", "\"", "."]);
    /// assert_eq!(Tokenizer::Zh.words("我想买iPhone。"), ["我", "想", "买", "iPhone", "。"]);
    /// ```
    pub fn words(self, text: &str) -> Vec<String> {
        split(&self.separate(text)).map(str::to_owned).collect()
    }

    /// Advice to take another tokeniser, if most letters of `texts` are not Latin and this is `13a`: it takes a sentence without
    /// spaces for one word, and knows no punctuation marks beyond ASCII.
    pub fn hint<'a>(self, texts: impl IntoIterator<Item = &'a String>) -> Option<String> {
        static SCRIPTS: LazyLock<[Regex; 2]> = LazyLock::new(|| {
            [r"^\p{Latin}$", r"^[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]$"]
                .map(|pattern| Regex::new(pattern).expect("a fixed pattern that tests compile"))
        });
        if self != Self::V13a {
            return None;
        }
        let (mut letters, mut latin, mut unspaced) = (0u64, 0u64, 0u64);
        for c in texts.into_iter().flat_map(|text| text.chars()).filter(|c| c.is_alphabetic()) {
            letters += 1;
            if c.is_ascii() {
                latin += 1;
                continue;
            }
            let mut bytes = [0; 4];
            let c: &str = c.encode_utf8(&mut bytes);
            latin += u64::from(SCRIPTS[0].is_match(c));
            unspaced += u64::from(SCRIPTS[1].is_match(c));
        }
        let better = if 2 * unspaced > letters { "zh (Chinese) or char" } else { "intl" };
        (2 * latin < letters).then(|| {
            format!(
                "Most letters of the references are not Latin, and BLEU splits words by sacreBLEU's 13a, which is made for Latin \
                 script: the tokeniser {better} gives a more meaningful score."
            )
        })
    }

    /// The text with spaces between its words.
    pub(super) fn separate(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::V13a => separate_13a(text).into(),
            Self::Intl => replace(text.into(), &*INTERNATIONAL),
            Self::Zh => {
                let mut line = String::with_capacity(2 * text.len());
                for c in text.trim_matches(is_python_space).chars() {
                    if is_chinese(c) {
                        line.extend([' ', c, ' ']);
                    } else {
                        line.push(c);
                    }
                }
                replace(line.into(), &*WESTERN)
            }
            Self::Char => text.chars().flat_map(|c| [c, ' ']).collect(),
            Self::None => text.into(),
        }
    }
}

impl std::fmt::Display for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Tokenizer {
    type Err = crate::Error;

    fn from_str(name: &str) -> crate::Result<Self> {
        Self::ALL.into_iter().find(|tokenizer| tokenizer.name() == name).ok_or_else(|| crate::Error::Setting {
            name: "BLEU's tokeniser",
            value: name.to_owned(),
            expected: "13a, intl, zh, char or none",
        })
    }
}

pub(super) fn split(separated: &str) -> impl Iterator<Item = &str> {
    separated.split(is_python_space).filter(|word| !word.is_empty())
}

/// Patterns and their replacements, applied one after another as sacreBLEU does.
type Rules = [(Regex, &'static str)];

fn rules<const N: usize>(rules: [(&str, &'static str); N]) -> [(Regex, &'static str); N] {
    rules.map(|(pattern, by)| (Regex::new(pattern).expect("a fixed pattern that tests compile"), by))
}

/// ASCII signs except `'`, `,`, `-` and `.` are words; a full stop or comma unless between digits; a dash after a digit.
static WESTERN: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    rules([
        (r"([\{-~\[-` -&\(-\+:-@/])", " ${1} "),
        (r"([^0-9])([\.,])", "${1} ${2} "),
        (r"([\.,])([^0-9])", " ${1} ${2}"),
        (r"([0-9])(-)", "${1} ${2} "),
    ])
});

/// Punctuation marks are words unless between numbers; symbols always are.
static INTERNATIONAL: LazyLock<[(Regex, &str); 3]> = LazyLock::new(|| {
    rules([(r"(\P{N})(\p{P})", "${1} ${2} "), (r"(\p{P})(\P{N})", " ${1} ${2}"), (r"(\p{S})", " ${1} ")])
});

fn replace<'a>(mut line: Cow<'a, str>, rules: &Rules) -> Cow<'a, str> {
    for (pattern, by) in rules {
        if let Cow::Owned(replaced) = pattern.replace_all(&line, *by) {
            line = replaced.into();
        }
    }
    line
}

fn separate_13a(text: &str) -> String {
    let mut line = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        for (entity, sign) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            line = line.replace(entity, sign);
        }
    }
    replace(format!(" {line} ").into(), &*WESTERN).into_owned()
}

/// Whether sacreBLEU's `zh` takes a character for Chinese.
fn is_chinese(c: char) -> bool {
    // The two ranges from U+2001 and from U+2F81 are sacreBLEU's reading of its own U+20000 to U+2A6D6 and U+2F800 to U+2FA1D: its
    // strings hold four digits and a fifth character. Parity needs them.
    const RANGES: [(char, char); 20] = [
        ('\u{3400}', '\u{4db5}'),
        ('\u{4e00}', '\u{9fbb}'),
        ('\u{f900}', '\u{fa2d}'),
        ('\u{fa30}', '\u{fa6a}'),
        ('\u{fa70}', '\u{fad9}'),
        ('\u{2001}', '\u{2a6d}'),
        ('\u{2f81}', '\u{2fa1}'),
        ('\u{ff00}', '\u{ffef}'),
        ('\u{2e80}', '\u{2eff}'),
        ('\u{3000}', '\u{303f}'),
        ('\u{31c0}', '\u{31ef}'),
        ('\u{2f00}', '\u{2fdf}'),
        ('\u{2ff0}', '\u{2fff}'),
        ('\u{3100}', '\u{312f}'),
        ('\u{31a0}', '\u{31bf}'),
        ('\u{fe10}', '\u{fe1f}'),
        ('\u{fe30}', '\u{fe4f}'),
        ('\u{2600}', '\u{27bf}'),
        ('\u{3200}', '\u{32ff}'),
        ('\u{3300}', '\u{33ff}'),
    ];
    RANGES.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_of_13a() {
        for (text, expected) in [
            ("U.S. $1,234.56, 3-4 e.g.", "U . S . $ 1,234.56 , 3 - 4 e . g ."),
            ("don't (2.5%) a/b x-y", "don't ( 2.5 % ) a / b x-y"),
            ("&quot;q&quot; &amp;lt; <skipped>x", "\" q \" < x"),
            ("line-\nbreak\nnext", "linebreak next"),
            ("...,", ". . . ,"),
            ("日本語,naïve…", "日本語 , naïve…"),
            ("a\u{1c}b\u{a0}c", "a b c"),
        ] {
            assert_eq!(Tokenizer::V13a.words(text).join(" "), expected, "{text:?}");
        }
    }

    #[test]
    fn another_tokeniser_is_advised_for_other_scripts() {
        let hint = |tokenizer: Tokenizer, text: &str| tokenizer.hint(&[text.to_owned()]);
        assert!(hint(Tokenizer::V13a, "我想买手机 TV").unwrap().contains("zh"));
        assert!(hint(Tokenizer::V13a, "ฉันอยากซื้อ").unwrap().contains("char"));
        assert!(hint(Tokenizer::V13a, "Я хочу купить").unwrap().contains("intl"));
        for (tokenizer, text) in [
            (Tokenizer::V13a, "Größe naïve łódź 我"),
            (Tokenizer::V13a, "123 …"),
            (Tokenizer::Zh, "我想买手机"),
            (Tokenizer::Char, "Я хочу"),
        ] {
            assert_eq!(hint(tokenizer, text), None, "{text}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for tokenizer in Tokenizer::ALL {
            assert_eq!(tokenizer.name().parse::<Tokenizer>().unwrap(), tokenizer);
            assert_eq!(serde_json::to_string(&tokenizer).unwrap(), format!("\"{tokenizer}\""));
        }
        assert!("mecab".parse::<Tokenizer>().unwrap_err().to_string().contains("13a, intl, zh"));
    }
}
