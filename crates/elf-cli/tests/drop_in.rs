//! Files of the released code in this program's hands, and this program's in the released code's form.

mod tiny_run;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{Materials, Ran, checkpoints, elf, json_lines, run, tensors, within};

const ID: &str = "embedded-language-flows/ELF-B-de-en-torch";
const COMMIT: &str = "93ce98315a2dec985cdefb8d8e62ab618e896ec4";

/// Settings as the released code writes them out beside its checkpoints: every key it has, resolved, in no form meant for us.
fn record(encoder: &str) -> String {
    format!(
        "data_path: embedded-language-flows/wmt14_de-en_train_t5\n\
         eval_data_path: embedded-language-flows/wmt14_de-en_validation_t5\n\
         max_length: 22\nmax_input_length: 10\npad_token: eos\ntokenizer_name: null\n\
         encoder_model_name: {encoder}\n\
         encoder_checkpoint: embedded-language-flows/t5_small_encoder_jax/t5_small_encoder_jax.pkl\n\
         model: ELF-B\nbottleneck_dim: 16\nattn_dropout: 0.0\ndecoder_noise_scale: 1.0\nlabel_drop_prob: 0.1\n\
         epochs: 100\nwarmup_epochs: null\nwarmup_steps: 5000\nbatch_size: 64\nglobal_batch_size: 512\nlr: 0.002\n\
         use_compile: false\ngradient_checkpointing: true\nsampling_configs_path: src/configs/cond_sampling_configs.yml\n\
         sampling_configs:\n- sampling_method: ode\n  num_sampling_steps:\n  - 64\n  cfgs:\n  - 2\n\
         use_remat: true\nhf_repo_id: null\nuse_wandb: true\nwandb_project: elf\nwandb_tag: null\nseed: 42\nnum_workers: 8\n"
    )
}

/// A cache as other programs leave it, with a repository in it: a branch, and the files of its commit.
fn cached(cache: &Path, id: &str, files: &[(&str, &Path)]) {
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    for (name, file) in files {
        fs::copy(file, snapshot.join(name)).unwrap();
    }
}

fn offline(mut command: Command, cache: &Path) -> Ran {
    run({
        command.env("HF_HUB_CACHE", cache).env("HF_HUB_OFFLINE", "1");
        command
    })
}

fn tokens(path: &str) -> Vec<Value> {
    json_lines(path).into_iter().map(|line| line["tokens"].clone()).collect()
}

#[test]
fn a_published_model_is_sampled_by_its_id_alone() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let (ours, checkpoint) = (materials.path("run"), within(&folder, "checkpoint_880600"));
    run(elf(&["convert", &ours, &checkpoint])).well();
    let config = within(&folder, "config.yml");
    fs::write(&config, record(&materials.path("encoder"))).unwrap();
    let cache = folder.path().join("cache");
    cached(&cache, ID, &[("checkpoint_880600", Path::new(&checkpoint)), ("config.yml", Path::new(&config))]);

    // Length, task, encoder and tokenizer come from the settings beside it, and its conditions end in EOS as those of the run.
    let (from_id, from_run) = (within(&folder, "id.jsonl"), within(&folder, "run.jsonl"));
    let more = |output| ["--steps", "3", "--text", "cat old the", "--text", "tree", "--output", output];
    let ran = offline(elf(&[&["sample", ID][..], &more(&from_id)].concat()), &cache).well();
    run(elf(&[&["sample", &ours][..], &more(&from_run)].concat())).well();
    assert_eq!(tokens(&from_id), tokens(&from_run));
    let warnings: Vec<&str> = ran.err.lines().filter(|l| l.starts_with("warning:")).collect();
    assert_eq!(warnings.len(), 1, "{}", ran.err);
    for key in ["use_remat", "encoder_checkpoint", "sampling_configs", "wandb_tag", "num_workers"] {
        assert!(warnings[0].contains(key), "{}", warnings[0]);
    }
    // What a user writes is still held to the known keys, and a file that is named is, too.
    offline(elf(&["sample", ID, "--option", "max_lenght=3"]), &cache).badly(&["max_lenght", "max_length"]);
    let strict = run(elf(&["sample", &checkpoint, "--config", &config]));
    assert!(strict.code == Some(1) && strict.err.contains("there is no key `use_remat`"), "{}", strict.err);
}

#[test]
fn an_exported_run_writes_what_the_run_writes_from_wherever_it_lies() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let (ours, exported) = (materials.path("run"), within(&folder, "models/mine"));
    materials.copy("encoder", &folder);
    let export = ["export", &ours, &exported, "--encoder", "../../encoder", "--title", "Mine & <more>"];
    run(elf(&[&export[..], &["--dtype", "f32"]].concat())).well();
    run(elf(&export)).badly(&["already exists"]);
    let card = fs::read_to_string(within(&folder, "models/mine/README.md")).unwrap();
    for part in ["# Mine & <more>", "conditional text", "../../encoder"] {
        assert!(card.contains(part), "{part} is missing in {card}");
    }
    let (from_export, from_run) = (within(&folder, "export.jsonl"), within(&folder, "run.jsonl"));
    let more = |output| ["--steps", "3", "--text", "cat old the", "--text", "tree", "--output", output];
    let ran = run(elf(&[&["sample", &exported][..], &more(&from_export)].concat())).well();
    assert!(!ran.err.contains("warning"), "{}", ran.err);
    run(elf(&[&["sample", &ours][..], &more(&from_run)].concat())).well();
    assert_eq!(tokens(&from_export), tokens(&from_run));

    let guided = within(&folder, "models/guided");
    let sampling = within(&folder, "how.yml");
    fs::write(&sampling, "- sampling_method: ode\n  num_sampling_steps: [3]\n  self_cond_cfg_scales: [1]\n  guide: guide\n  guide_scales: [3]\n").unwrap();
    let export = ["export", &ours, &guided, "--encoder", "../../encoder", "--sampling-config", &sampling];
    run(elf(&export)).badly(&["--guide"]);
    let checkpoint = checkpoints(&ours)[0].to_string_lossy().into_owned();
    let elsewhere = within(&folder, "elsewhere.yml");
    fs::write(&elsewhere, "sampling_method: ode\nguide: weaker\n").unwrap();
    let misled = ["export", &ours, &guided, "--sampling-config", &elsewhere, "--guide", &checkpoint];
    run(elf(&misled)).badly(&["elsewhere.yml", "guide: guide"]);
    run(elf(&[&export[..], &["--guide", &checkpoint]].concat())).well();
    assert!(fs::read_to_string(within(&folder, "models/guided/README.md")).unwrap().contains("## Guide"));
    let ran = run(elf(&["sample", &guided, "--text", "tree"])).well();
    assert!(ran.err.contains("sampling.yml") && ran.err.contains("ode-3-w1-cfg1-guide3: 1 texts"), "{}", ran.err);
    let ran = run(elf(&["sample", &guided, "--text", "tree", "--guide-scale", "1"])).well();
    assert!(ran.err.contains("ode-3-w1-cfg1: 1 texts"), "{}", ran.err);

    let half = within(&folder, "models/half");
    run(elf(&["export", &ours, &half, "--encoder", "../../encoder"])).well();
    run(elf(&[&["sample", &half][..], &more(&within(&folder, "half.jsonl"))].concat())).well();
    let bytes = |name: &str| fs::metadata(format!("{name}/model.safetensors")).unwrap().len();
    assert!(bytes(&half) < bytes(&exported) * 6 / 10);
}

#[test]
fn a_published_model_is_fetched_under_its_settings_and_only_what_is_cached_is_used() {
    let folder = TempDir::new().unwrap();
    offline(elf(&["sample", ID]), &folder.path().join("cache")).badly(&[ID, "HF_HUB_OFFLINE"]);
}

#[test]
fn a_checkpoint_of_jax_is_called_so() {
    let folder = TempDir::new().unwrap();
    let jax = folder.path().join("checkpoint_95085");
    fs::create_dir_all(jax.join("ocdbt.process_0/d")).unwrap();
    fs::create_dir_all(jax.join("d")).unwrap();
    fs::write(jax.join("_METADATA"), "{}").unwrap();
    fs::write(jax.join("manifest.ocdbt"), "x").unwrap();
    let jax = jax.to_str().unwrap();
    for args in [&["sample", jax][..], &["convert", jax, "x.safetensors"], &["sample", folder.path().to_str().unwrap()]]
    {
        run(elf(args)).badly(&["JAX", "Orbax", "ELF-B-owt-torch"]);
    }
}

#[test]
fn rows_of_token_data_are_generated_from_as_they_are() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let model = materials.path("run");
    let (by_data, by_text) = (within(&folder, "data.jsonl"), within(&folder, "text.jsonl"));
    run(elf(&["sample", &model, "--steps", "2", "--data", &materials.path("shards"), "--limit", "5", "-o", &by_data]))
        .well();
    let corpus = materials.path("corpus.jsonl");
    let columns = ["--input-column", "de", "--reference-column", "en", "--limit", "5", "-o", &by_text];
    run(elf(&[&["sample", &model, "--steps", "2", "--input", &corpus][..], &columns].concat())).well();
    assert_eq!(json_lines(&by_data), json_lines(&by_text));
    assert_eq!(json_lines(&by_data).len(), 5);

    let unconditional = Materials::unconditional();
    run(elf(&["sample", &model, "--data", &unconditional.path("shards")])).badly(&["no conditions"]);
    run(elf(&["sample", &model, "--data", &corpus])).badly(&["corpus.jsonl", "elf data prepare"]);
    run(elf(&["sample", &model, "--limit", "3", "--text", "x"])).badly(&["--limit"]);
}

#[test]
fn a_run_goes_on_from_its_released_form_as_it_does_in_place() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (ours, released) = (materials.copy("run", &folder), within(&folder, "checkpoint_6"));
    run(elf(&["convert", &ours, &released])).well();
    let elsewhere = within(&folder, "elsewhere");
    materials.train(&elsewhere, &["max_steps=9", &format!("resume={released}")]).well();
    materials.train(&ours, &["max_steps=9"]).well();
    let last = |run: &str| checkpoints(run).pop().unwrap();
    assert_eq!(tensors(&last(&elsewhere)), tensors(&last(&ours)));
}

#[test]
fn everything_of_a_run_goes_there_and_back() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let ours = materials.path("run");
    let at = |name: &str| within(&folder, name);
    let convert = |from: &str, to: &str, more: &[&str]| run(elf(&[&["convert", from, to][..], more].concat())).well();
    convert(&ours, &at("direct.pt"), &[]);
    convert(&ours, &at("all.safetensors"), &["--all"]);
    // The file's name is in the zip's entries.
    fs::create_dir(at("again")).unwrap();
    convert(&at("all.safetensors"), &at("again/direct.pt"), &[]);
    assert!(fs::read(at("direct.pt")).unwrap() == fs::read(at("again/direct.pt")).unwrap());

    let [params, averages, _] = tensors(&checkpoints(&ours).pop().unwrap());
    for (source, more, expected) in [
        ("direct.pt", &[][..], &averages),
        ("direct.pt", &["--raw"], &params),
        ("all.safetensors", &[], &averages),
        ("all.safetensors", &["--raw"], &params),
    ] {
        convert(&at(source), &at("one.safetensors"), more);
        assert!(fs::read(at("one.safetensors")).unwrap() == *expected, "{source} {more:?}");
    }
    // A file is what it is, wherever it lies: the run around it is another thing.
    let inside = materials.copy("run", &folder);
    fs::copy(at("direct.pt"), format!("{inside}/checkpoint_6")).unwrap();
    convert(&format!("{inside}/checkpoint_6"), &at("one.safetensors"), &["--raw"]);
    assert!(fs::read(at("one.safetensors")).unwrap() == params);
    run(elf(&["sample", &format!("{inside}/checkpoint_6"), "--tokenizer", "/none/here"])).badly(&["/none/here"]);

    convert(&ours, &at("raw.pt"), &["--raw"]);
    convert(&at("raw.pt"), &at("raw.safetensors"), &[]);
    assert!(fs::read(at("raw.safetensors")).unwrap() == params);
    run(elf(&["train", &materials.path("config.yml"), "--output", &at("new"), "--resume", &at("raw.pt")]))
        .badly(&["raw.pt", "nothing to continue"]);
    assert!(!Path::new(&at("new")).exists());
}

/// The commands in a configuration's comment, with the small split instead of the large one, in another folder.
fn commands(config: &str, folder: &str) -> Vec<Vec<String>> {
    let lines = config.lines().filter_map(|line| line.strip_prefix("#   elf "));
    let here = |word: &str| match word.starts_with("data/") {
        true => word.replace("-train.parquet", "-test.parquet"),
        false => word.replace("runs/mini", folder),
    };
    lines.map(|line| line.split_whitespace().map(here).collect()).collect()
}

#[test]
fn the_embedded_tasks_are_prepared_as_their_configurations_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (names, rows) in [
        (&["mini-descriptions-blocks"][..], "32 positions"),
        (&["mini-de-en-blocks"], "64 positions"),
        // The second of two is of the same inputs.
        (&["mini-summaries", "mini-summaries-blocks"], "64 positions"),
    ] {
        let folder = TempDir::new().unwrap();
        let place = within(&folder, "mini");
        let config = |name: &str| fs::read_to_string(root.join(format!("configs/{name}.yml"))).unwrap();
        let all = commands(&config(names[0]), &place);
        assert_eq!(all.len(), 4, "{names:?}");
        for command in &all {
            let mut command = elf(&command.iter().map(String::as_str).collect::<Vec<_>>());
            command.current_dir(&root);
            run(command).well();
        }
        for name in names {
            let here = within(&folder, "config.yml");
            fs::write(&here, config(name).replace("runs/mini", &place)).unwrap();
            let mut plan = elf(&["train", &here, "--plan"]);
            plan.current_dir(&root);
            let planned = run(plan).well();
            assert!(planned.err.contains(rows) && planned.err.contains("latents of 256 channels"), "{}", planned.err);
            assert!(!planned.err.contains("warning"), "{}", planned.err);
        }
    }
}
