//! What a model was trained with belongs to it: nothing else takes its place unnoticed, and it is found from everywhere.

mod tiny_run;

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use tiny_run::{Materials, checkpoints, elf, json_lines, run, within};

/// A translation's materials in a folder of their own, named by relative paths, and a run made there.
struct Home {
    folder: TempDir,
}

const CONFIG: &str = "config.yml";

impl Home {
    fn new() -> Self {
        let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
        for name in ["shards", "encoder"] {
            materials.copy(name, &folder);
        }
        let config = fs::read_to_string(materials.path(CONFIG)).unwrap();
        let config = config.replace(&materials.path("shards"), "shards").replace(&materials.path("encoder"), "encoder");
        fs::write(folder.path().join(CONFIG), config).unwrap();
        let home = Self { folder };
        run(home.here(elf(&["train", CONFIG, "--output", "run"]))).well();
        home
    }

    fn path(&self, name: &str) -> String {
        within(&self.folder, name)
    }

    /// A command that is called in this folder.
    fn here(&self, mut command: Command) -> Command {
        command.current_dir(self.folder.path());
        command
    }

    /// Goes on training, with other settings.
    fn train(&self, options: &[&str]) -> tiny_run::Ran {
        let options = options.iter().flat_map(|option| ["-o", option]);
        let args: Vec<&str> = ["train", CONFIG, "--output", "run"].into_iter().chain(options).collect();
        run(self.here(elf(&args)))
    }

    /// An encoder of the same sizes and normalisation as that in the folder `like`, and other weights.
    fn other_encoder(&self, name: &str, like: &str) {
        let sizes = ["--d-model", "16", "--d-kv", "8", "--d-ff", "32", "--num-layers", "1", "--num-heads", "2"];
        let tokenizer = self.path("run/tokenizer.json");
        let args = ["encoder", "init", "--tokenizer", &tokenizer, "--output", name, "--seed", "9"];
        run(self.here(elf(&[&args[..], &sizes].concat()))).well();
        let stats = |folder: &str| self.path(&format!("{folder}/latent_stats.json"));
        fs::copy(stats(like), stats(name)).unwrap();
    }

    /// What the model makes of one text.
    fn text(&self, more: &[&str]) -> tiny_run::Ran {
        let (run_folder, output) = (self.path("run"), self.path("texts.jsonl"));
        run(elf(&[&["sample", &run_folder, "--text", "soldier red", "-o", &output][..], more].concat()))
    }

    fn prediction(&self, more: &[&str]) -> String {
        self.text(more).well();
        json_lines(&self.path("texts.jsonl"))[0]["prediction"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_run_is_sampled_from_any_folder_and_finds_an_encoder_that_was_moved() {
    let home = Home::new();
    let run_folder = home.path("run");
    let args = ["sample", &run_folder, "--text", "soldier red", "-o", "texts.jsonl"];
    run(home.here(elf(&args))).well();
    let text = json_lines(&home.path("texts.jsonl"))[0]["prediction"].as_str().unwrap().to_owned();
    assert_eq!(home.prediction(&[]), text, "from another folder");

    fs::rename(home.path("encoder"), home.path("moved")).unwrap();
    assert_eq!(home.prediction(&["--encoder", &home.path("moved")]), text);
    home.other_encoder("encoder", "moved");
    home.text(&[]).badly(&["encoder", "trained with", "--encoder"]);
    home.text(&["--encoder", &home.path("encoder")]).badly(&["encoder", "trained with"]);
}

#[test]
fn a_run_is_normalised_as_it_was_trained() {
    let home = Home::new();
    let text = home.prediction(&[]);
    fs::write(home.path("encoder/latent_stats.json"), r#"{"mean": 3.0, "std": 40.0}"#).unwrap();
    assert_eq!(home.prediction(&[]), text);
    home.train(&["max_steps=8"]).badly(&["latent_stats.json", "output_dir"]);
}

#[test]
fn a_run_goes_on_with_what_it_began_with() {
    let home = Home::new();
    home.other_encoder("other", "encoder");
    home.train(&["max_steps=8", "encoder_model_name=other", "tokenizer_name=encoder"]).badly(&[
        "text encoder",
        "output_dir",
        "--init-from",
    ]);
    for (option, what) in [("causal_latents=true", "causal_latents"), ("self_cond_prob=0", "self_cond_prob")] {
        home.train(&["max_steps=8", option]).badly(&["flow", what, "output_dir"]);
    }
    // The weights alone may come from elsewhere, if they are the same.
    fs::create_dir(home.path("weights")).unwrap();
    fs::copy(home.path("encoder/model.safetensors"), home.path("weights/model.safetensors")).unwrap();
    home.train(&["max_steps=7", "encoder_checkpoint=weights/model.safetensors"]).well();
    home.train(&["max_steps=8", "encoder_checkpoint=other/model.safetensors"]).badly(&["text encoder"]);

    // Fewer rows are other rows.
    let fewer = fs::read_to_string(Materials::translation().path("corpus.jsonl")).unwrap();
    let fewer: Vec<&str> = fewer.lines().take(200).collect();
    fs::write(home.path("fewer.jsonl"), fewer.join("\n")).unwrap();
    let prepare = "data prepare --input fewer.jsonl --target-column en --condition-column de --eos-target --eos-condition \
                   --tokenizer encoder --output fewer";
    run(home.here(elf(&prepare.split_whitespace().collect::<Vec<_>>()))).well();
    home.train(&["max_steps=8", "data_path=fewer"]).badly(&["training data", "data_path"]);
}

#[test]
fn what_goes_on_from_another_run_goes_on_by_itself() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (resume, output) = (format!("resume={}", materials.path("run")), within(&folder, "longer"));
    let steps = |run: &str| {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap()[5..].parse::<u64>().unwrap();
        checkpoints(run).iter().map(|path| name(path)).collect::<Vec<_>>()
    };
    // As if it had been interrupted after step 9.
    materials.train(&output, &["max_steps=9", &resume]).well();
    let ran = materials.train(&output, &["max_steps=12", &resume]).well();
    assert!(ran.err.contains(&format!("resuming from {output}/checkpoints/step-00000009")), "{}", ran.err);
    assert_eq!(steps(&output).last(), Some(&12));
    // The run of its own that it is by now can be gone on with in both ways.
    materials.train(&output, &["max_steps=13"]).well();
    let before = steps(&output);
    let newest = format!("resume={output}/checkpoints/step-00000013");
    materials.train(&output, &["max_steps=13", &newest]).well();
    // Going back, or to what is another run, would lose steps.
    let earlier = format!("resume={output}/checkpoints/step-{:08}", before[0]);
    materials.train(&output, &["max_steps=14", &earlier]).badly(&["gone on since", "output_dir"]);
    materials.train(&output, &["max_steps=14", &resume]).badly(&["did not begin from", "output_dir"]);
    assert_eq!(steps(&output), before);
}
