//! The files that are chosen from repositories of every layout.

use super::*;
use crate::listing::Listing;

fn chosen(what: What, reference: &str, names: &[&str], index: &str) -> Result<(Vec<String>, String)> {
    let folder = tempfile::tempdir().unwrap();
    let file = |path: &&str| RemoteFile { path: (*path).to_owned(), size: None, hash: None };
    let listing = Listing { commit: String::new(), files: names.iter().map(file).collect() };
    let mut fetch = |_: &RemoteFile| {
        let path = folder.path().join("index");
        std::fs::write(&path, index).unwrap();
        Ok(path)
    };
    let selection = select(what, &Reference::parse(reference).unwrap(), &listing, &mut fetch)?;
    Ok((selection.files.into_iter().map(|f| f.path).collect(), selection.result))
}

/// The files of the real repository of GPT-2 Large, 19 GB together.
const GPT2: [&str; 12] = [
    "64.tflite",
    "README.md",
    "config.json",
    "flax_model.msgpack",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "onnx/decoder_model.onnx",
    "pytorch_model.bin",
    "rust_model.ot",
    "tf_model.h5",
    "tokenizer.json",
];

#[test]
fn a_judge_is_three_files_of_nineteen_gigabytes() {
    let (files, result) = chosen(What::Gpt2, "gpt2-large", &GPT2, "").unwrap();
    assert_eq!(
        (files, result),
        (["config.json", "tokenizer.json", "model.safetensors"].map(String::from).to_vec(), String::new())
    );
    let without: Vec<&str> = GPT2.into_iter().filter(|n| *n != "model.safetensors").collect();
    assert!(chosen(What::Gpt2, "x", &without, "").unwrap().0.contains(&"pytorch_model.bin".to_owned()));
}

#[test]
fn shards_are_those_of_the_index() {
    let names =
        ["config.json", "model.safetensors.index.json", "m-1.safetensors", "m-2.safetensors", "m-old.safetensors"];
    let index = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}"#;
    let (files, _) = chosen(What::Encoder, "x/y", &names, index).unwrap();
    assert_eq!(files, ["config.json", "model.safetensors.index.json", "m-1.safetensors", "m-2.safetensors"]);
    for (index, part) in [
        ("{", "no JSON"),
        ("{}", "weight_map"),
        (r#"{"weight_map": {"a": "../../x"}}"#, "no file name"),
        (r#"{"weight_map": {"a": "m-3.safetensors"}}"#, "m-3.safetensors"),
    ] {
        let message = chosen(What::Encoder, "x/y", &names, index).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn data_are_the_best_kind_and_folders_narrow() {
    let names = ["README.md", "train/a.parquet", "test/b.parquet", "raw.jsonl"];
    assert_eq!(chosen(What::Dataset, "x/y", &names, "").unwrap().0, ["README.md", "train/a.parquet", "test/b.parquet"]);
    let narrowed = chosen(What::Dataset, "x/y:test", &names, "").unwrap();
    assert_eq!(narrowed, (vec!["test/b.parquet".to_owned()], "test".to_owned()));
    let split = ["README.md", "data/train-0.parquet", "data/dev.parquet", "contest/x.parquet"];
    let validation = chosen(What::Dataset, "x/y:validation", &split, "").unwrap();
    assert_eq!(validation, (["README.md", "data/dev.parquet"].map(String::from).to_vec(), "validation".to_owned()));
    let message = chosen(What::Dataset, "x/y:test", &split, "").unwrap_err().to_string();
    assert!(message.contains("split of that name"), "{message}");
    let one = chosen(What::Dataset, "x/y:raw.jsonl", &names, "").unwrap();
    assert_eq!(one, (vec!["raw.jsonl".to_owned()], "raw.jsonl".to_owned()));
    let saved = ["dataset_info.json", "state.json", "data-00000-of-00001.arrow", "README.md"];
    assert_eq!(chosen(What::Dataset, "x/y", &saved, "").unwrap().0.len(), 4);
    assert!(chosen(What::Dataset, "x/y", &["README.md"], "").unwrap_err().to_string().contains("README.md"));
}

#[test]
fn checkpoints_of_all_layouts() {
    let run = [
        "plan.json",
        "tokenizer.json",
        "metrics.jsonl",
        "checkpoints/step-00000010/state.json",
        "checkpoints/step-00000020/state.json",
    ];
    let (files, result) = chosen(What::ElfCheckpoint, "x/y", &run, "").unwrap();
    assert_eq!(
        (files.join(" "), result.as_str()),
        ("plan.json tokenizer.json checkpoints/step-00000020/state.json".to_owned(), "")
    );
    let released = ["config.yml", "checkpoint_9", "checkpoint_10", "README.md"];
    let (files, result) = chosen(What::ElfCheckpoint, "x/y", &released, "").unwrap();
    assert_eq!((files.join(" "), result.as_str()), ("config.yml checkpoint_10".to_owned(), "checkpoint_10"));
    // Settings of the run, its samples and the model's card lie beside the one file that is wanted.
    let published = [
        ".gitattributes",
        "README.md",
        "checkpoint_95085",
        "config.yml",
        "sde-steps32-cfg1-sccfg3-ts_logit_normal-gamma1.5-uncond/all_generated_5_95085.jsonl",
    ];
    for reference in ["x/y", "x/y:checkpoint_95085", "x/y@main"] {
        let (files, result) = chosen(What::ElfCheckpoint, reference, &published, "").unwrap();
        assert_eq!(result, "checkpoint_95085");
        assert_eq!(files, ["config.yml", "checkpoint_95085"], "{reference}");
    }
    let message = chosen(What::ElfCheckpoint, "x/y", &["a.pt", "b.pt"], "").unwrap_err().to_string();
    assert!(message.contains("x/y:a.pt"), "{message}");
    assert_eq!(chosen(What::ElfCheckpoint, "x/y", &["config.json", "model.safetensors"], "").unwrap().1, "");
}

#[test]
fn an_exported_model_comes_with_its_guide_and_its_encoder() {
    let names = [
        "README.md",
        "config.yml",
        "model.safetensors",
        "sampling.yml",
        "tokenizer.json",
        "words.txt",
        "notes.txt",
        "guide/config.yml",
        "guide/model.safetensors",
        "guide/notes.txt",
        "guide/tokenizer.json",
        "parts/encoder/config.json",
        "parts/encoder/latent_stats.json",
        "parts/encoder/model.safetensors",
        "samples/a.json",
    ];
    let model = ["config.yml", "sampling.yml", "tokenizer.json", "words.txt", "model.safetensors"];
    let guide = ["guide/config.yml", "guide/tokenizer.json", "guide/model.safetensors"];
    let encoder = ["config.json", "latent_stats.json", "model.safetensors"].map(|n| format!("parts/encoder/{n}"));
    let encoder = encoder.each_ref().map(String::as_str);
    for named in ["parts/encoder", "\"parts/encoder\"", "'./parts/encoder/'  # beside"] {
        let record = format!("max_length: 64\nencoder_model_name: {named}\n");
        let (files, result) = chosen(What::ElfCheckpoint, "x/y", &names, &record).unwrap();
        assert_eq!(
            (files, result.as_str()),
            ([&model[..], &guide, &encoder].concat().iter().map(ToString::to_string).collect(), ""),
            "{named}"
        );
    }
    for elsewhere in ["../parts/encoder", "/parts/encoder", "t5-small", "", "parts"] {
        let record = format!("encoder_model_name: {elsewhere}\n");
        let (files, _) = chosen(What::ElfCheckpoint, "x/y", &names, &record).unwrap();
        assert_eq!(files, [&model[..], &guide].concat(), "{elsewhere}");
    }
    // The same within a folder; and without settings that ask for it, no guide.
    let within: Vec<String> = names.iter().filter(|n| **n != "sampling.yml").map(|n| format!("m/{n}")).collect();
    let within: Vec<&str> = within.iter().map(String::as_str).collect();
    let (files, result) = chosen(What::ElfCheckpoint, "x/y:m", &within, "encoder_model_name: parts/encoder").unwrap();
    assert_eq!((files.len(), result.as_str()), (7, "m"), "{files:?}");
    assert!(files.iter().all(|file| !file.contains("guide")), "{files:?}");
    // A guide without weights is no guide, and told before anything large is fetched.
    let half: Vec<&str> = names.into_iter().filter(|n| *n != "guide/model.safetensors").collect();
    assert!(chosen(What::ElfCheckpoint, "x/y", &half, "").unwrap_err().to_string().contains("model.safetensors"));
}

#[test]
fn a_checkpoint_of_jax_is_called_so_and_its_sibling_is_named() {
    let at_the_root = ["README.md", "_METADATA", "manifest.ocdbt", "d/0a1b", "ocdbt.process_0/d/2c3d"];
    let in_a_folder = ["config.yml", "checkpoint_95085/_METADATA", "checkpoint_95085/ocdbt.process_0/manifest.ocdbt"];
    for names in [&at_the_root[..], &in_a_folder] {
        let message = chosen(What::ElfCheckpoint, "org/ELF-B-owt", names, "").unwrap_err().to_string();
        for part in ["JAX", "Orbax", "org/ELF-B-owt-torch"] {
            assert!(message.contains(part), "{message}");
        }
    }
    let message = chosen(What::ElfCheckpoint, "org/a-torch", &at_the_root, "").unwrap_err().to_string();
    assert!(message.contains("JAX") && !message.contains("-torch-torch"), "{message}");
    // Where both lie side by side, the one that can be read is.
    let both = [&at_the_root[..], &["checkpoint_7"]].concat();
    assert_eq!(chosen(What::ElfCheckpoint, "org/both", &both, "").unwrap().1, "checkpoint_7");
}

#[test]
fn what_is_missing_is_named_with_what_is_there() {
    let message = chosen(What::Tokenizer, "x/y", &["spiece.model"], "").unwrap_err().to_string();
    assert!(message.contains("tokenizer.json") && message.contains("spiece.model"), "{message}");
    let message = chosen(What::Encoder, "x/y:model.safetensors", &["model.safetensors"], "").unwrap_err().to_string();
    assert!(message.contains("leave"), "{message}");
    assert!(chosen(What::File, "x/y", &["a"], "").unwrap_err().to_string().contains("org/name:file"));
    assert!(chosen(What::File, "x/y:b", &["a"], "").unwrap_err().to_string().contains("of that name"));
}
