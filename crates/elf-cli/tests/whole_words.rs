//! Texts that are read as sequences of whole words, by the list in a model's folder.

mod tiny_run;

use std::collections::BTreeSet;
use std::path::Path;

use tempfile::TempDir;
use tiny_run::*;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap()
}

fn in_repository(path: &str) -> String {
    repository().join(path).to_str().unwrap().to_owned()
}

/// The words of texts whose words are separated by spaces or are single signs.
fn words_of(text: &str) -> impl Iterator<Item = String> + '_ {
    let parts = text.split_whitespace().map(str::to_owned);
    parts.flat_map(|part| {
        let mut words = vec![String::new()];
        for sign in part.chars() {
            if sign.is_alphanumeric() {
                words.last_mut().unwrap().push(sign);
            } else {
                words.extend([sign.to_string(), String::new()]);
            }
        }
        words.into_iter().filter(|word| !word.is_empty())
    })
}

#[test]
fn texts_consist_of_the_words_of_the_models_list() {
    let (model, folder) = (in_repository("models/definitions"), TempDir::new().unwrap());
    let listed = std::fs::read_to_string(repository().join("models/definitions/words.txt")).unwrap();
    let listed: BTreeSet<&str> = listed.lines().map(|line| line.rsplit_once(' ').unwrap().0).collect();
    let texts = |name: &str, options: &[&str]| -> Vec<String> {
        let output = within(&folder, name);
        let usual =
            ["sample", &model, "--steps", "6", "-n", "24", "--batch-size", "24", "--temperature", "1", "-o", &output];
        run(elf(&[&usual[..], options].concat())).well();
        json_lines(&output).iter().map(|line| line["prediction"].as_str().unwrap().to_owned()).collect()
    };
    let strange = |texts: &[String]| {
        let words = texts.iter().flat_map(|text| words_of(text));
        words.filter(|word| !listed.contains(word.as_str())).collect::<BTreeSet<_>>()
    };
    // The model's own setting asks for whole words.
    assert_eq!(strange(&texts("whole.jsonl", &[])), BTreeSet::new());
    assert_eq!(strange(&texts("nucleus.jsonl", &["--top-p", "0.8"])), BTreeSet::new());
    assert_ne!(strange(&texts("tokens.jsonl", &["--whole-words", "false"])), BTreeSet::new());
}

#[test]
fn a_list_has_each_word_once_and_needs_tokens_that_tell_words_apart() {
    let folder = TempDir::new().unwrap();
    let (corpus, list) = (within(&folder, "corpus.jsonl"), within(&folder, "words.txt"));
    std::fs::write(&corpus, "{\"text\": \"A horse, a Trinketlike horse\"}\n{\"text\": \"horse-drawn\"}\n").unwrap();
    let words = |tokenizer: &str| {
        run(elf(&["data", "words", "--input", &corpus, "--tokenizer", &in_repository(tokenizer), "--output", &list]))
    };
    words("models/minilm-l3").well();
    let found = std::fs::read_to_string(&list).unwrap();
    let found: Vec<&str> = found.lines().collect();
    assert_eq!(found, [", 1", "- 1", "a 2", "drawn 1", "horse 3", "trinketlike 1"]);
    words("models/mini-encoder").badly(&["tokenizer", "WordPiece"]);

    let materials = Materials::unconditional();
    let plain = within(&folder, "plain");
    materials.train(&plain, &["max_steps=1"]).well();
    run(elf(&["sample", &plain, "--whole-words", "-n", "1"])).badly(&["whole_words", "words.txt", "elf data words"]);
    std::fs::write(format!("{plain}/words.txt"), "horse\n").unwrap();
    run(elf(&["sample", &plain, "-n", "1"])).badly(&["words.txt", "line 1", "elf data words"]);
    std::fs::write(format!("{plain}/words.txt"), "horse 1\n").unwrap();
    run(elf(&["sample", &plain, "-n", "1"])).badly(&["words.txt", "WordPiece"]);
    let evaluated = within(&folder, "setting.yml");
    std::fs::write(&evaluated, "whole_words: true\n").unwrap();
    std::fs::remove_file(format!("{plain}/words.txt")).unwrap();
    run(elf(&["export", &plain, &within(&folder, "x"), "--sampling-config", &evaluated]))
        .badly(&["words.txt", "elf data words"]);
    let setting = format!("sampling_configs_path={evaluated}");
    materials.train(&within(&folder, "no"), &["online_eval=true", &setting]).badly(&["whole_words"]);
}
