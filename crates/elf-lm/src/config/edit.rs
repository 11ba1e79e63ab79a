//! Setting keys in the text of a YAML file, with everything else left as it is.

use crate::Result;
use crate::error::fail;
use serde_json::Value;

use super::keys::parse_yaml;

/// The text of a YAML mapping with some of its keys set to numbers. Comments, order, spacing and line ends are kept. A
/// missing key is added after the first key of `beside` that is present, or at the end.
///
/// # Errors
/// If the text is not a mapping, or a key cannot be set by replacing one line (a mapping in braces, a value of several
/// lines).
pub fn with_numbers(text: &str, numbers: &[(&str, f64)], beside: &[&str]) -> Result<String> {
    let mut edited = text.to_owned();
    for (at, (key, number)) in numbers.iter().enumerate() {
        let before = numbers[..at].iter().rev().map(|(key, _)| *key);
        edited = with_number(&edited, key, *number, before.chain(beside.iter().copied()));
    }
    let mut expected = mapping(text)?;
    for (key, number) in numbers {
        expected.insert((*key).to_owned(), Value::from(*number));
    }
    match mapping(&edited) {
        Ok(found) if found == expected => Ok(edited),
        _ => {
            let keys: Vec<String> = numbers.iter().map(|(key, number)| format!("{key}: {number:?}")).collect();
            fail!(request, "it cannot be edited line by line; set by hand: {}", keys.join(", "))
        }
    }
}

fn mapping(text: &str) -> Result<serde_json::Map<String, Value>> {
    match parse_yaml(text)? {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(serde_json::Map::new()),
        _ => fail!(request, "it must be a mapping of keys to values"),
    }
}

/// The byte position of the value in a line that sets `key` in the outermost mapping; `None` for other lines.
fn value_of(line: &str, key: &str) -> Option<usize> {
    let quoted = [key.to_owned(), format!("\"{key}\""), format!("'{key}'")];
    quoted.iter().find_map(|key| {
        let rest = line.strip_prefix(key.as_str())?;
        let colon = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        let after = rest[colon..].strip_prefix(':')?;
        (after.is_empty() || after.starts_with([' ', '\t', '\r', '\n'])).then_some(key.len() + colon + 1)
    })
}

fn with_number<'a>(text: &str, key: &str, number: f64, beside: impl Iterator<Item = &'a str>) -> String {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    // Digits with a point, which every YAML reader takes for a number.
    let number = format!("{number:?}");
    if let Some(at) = lines.iter().position(|line| value_of(line, key).is_some()) {
        let line = lines[at];
        let begin = value_of(line, key).unwrap_or(line.len());
        let value = &line[begin..];
        // The end of the line to keep: a comment with the spaces before it, and the line end.
        let kept = value.find(" #").or_else(|| value.find("\t#")).unwrap_or(value.trim_end().len());
        let kept = value[..kept].trim_end().len();
        let new = format!("{} {number}{}", &line[..begin], &value[kept..]);
        return lines[..at].concat() + &new + &lines[at + 1..].concat();
    }
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut places = beside.filter_map(|other| lines.iter().position(|line| value_of(line, other).is_some()));
    let behind = places.next().map_or(lines.len(), |at| at + 1);
    let (before, after) = (lines[..behind].concat(), lines[behind..].concat());
    let gap = if before.is_empty() || before.ends_with('\n') { "" } else { end };
    format!("{before}{gap}{key}: {number}{end}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn edit(text: &str) -> Result<String> {
        with_numbers(text, &[("latent_mean", 0.25), ("latent_std", 3.0)], &["encoder_model_name"])
    }

    #[test]
    fn two_lines_change_and_nothing_else() {
        let before =
            "# A run.\nmodel: ELF-B   # the small one\n\nlatent_std: 0.2 # as released\nlatent_mean:   0.0\nseed: 1\n";
        let after =
            "# A run.\nmodel: ELF-B   # the small one\n\nlatent_std: 3.0 # as released\nlatent_mean: 0.25\nseed: 1\n";
        assert_eq!(edit(before).unwrap(), after);
        assert_eq!(edit(after).unwrap(), after);
    }

    #[test]
    fn missing_keys_go_beside_their_encoder_or_to_the_end() {
        let behind = edit("a: 1\nencoder_model_name: t5-small\nb: 2\n").unwrap();
        assert_eq!(behind, "a: 1\nencoder_model_name: t5-small\nlatent_mean: 0.25\nlatent_std: 3.0\nb: 2\n");
        assert_eq!(edit("a: 1").unwrap(), "a: 1\nlatent_mean: 0.25\nlatent_std: 3.0\n");
        assert_eq!(edit("").unwrap(), "latent_mean: 0.25\nlatent_std: 3.0\n");
        assert_eq!(edit("latent_std: null\r\na: 1\r\n").unwrap(), "latent_std: 3.0\r\na: 1\r\nlatent_mean: 0.25\r\n");
    }

    #[test]
    fn a_key_elsewhere_is_another_one() {
        let text = "a:\n  latent_mean: 1\nnot_latent_mean: 2\nlatent_mean_of: 3\n# latent_std: 4\n\"latent_std\": 5\n";
        let edited = edit(text).unwrap();
        assert_eq!(edited, text.replace(": 5\n", ": 3.0\n") + "latent_mean: 0.25\n");
    }

    #[test]
    fn what_has_no_lines_to_exchange_is_left_alone() {
        for text in
            ["{latent_mean: 0, a: 1}\n", "latent_mean:\n  0.5\na: 1\n", "a: 1\n...\n", "- a\n", "latent_mean: |\n  1\n"]
        {
            assert!(edit(text).is_err(), "{text:?} became {:?}", edit(text));
        }
        let message = edit("{a: 1}").unwrap_err().to_string();
        assert!(message.contains("latent_mean: 0.25") && message.contains("latent_std: 3.0"), "{message}");
    }

    proptest! {
        #[test]
        fn every_other_line_stays(lines in prop::collection::vec("[a-c_]{1,3}: [a-z0-9 #.'\"]{0,8}", 0..6), mean in any::<f64>()) {
            let text = lines.join("\n");
            prop_assume!(mean.is_finite());
            if let Ok(edited) = with_numbers(&text, &[("latent_mean", mean)], &["a"]) {
                let kept: Vec<&str> = edited.lines().filter(|l| !l.starts_with("latent_mean: ")).collect();
                prop_assert_eq!(kept, text.lines().collect::<Vec<_>>());
            }
        }
    }
}
