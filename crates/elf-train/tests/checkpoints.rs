//! Checkpoints are whole or absent, and damaged ones are refused with the reason.

mod small;

use std::fs;
use std::path::Path;

use elf_core::Network;
use elf_train::optim::OptimizerConfig;
use elf_train::{Checkpoint, CheckpointFolder, KeepPolicy};
use serde_json::{Value, json};
use small::{Counted, SmallNet, equal, trainer};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A folder with checkpoints of the steps 1 to `steps`.
fn saved(root: &Path, steps: u64) -> CheckpointFolder {
    let folder = CheckpointFolder::new(root);
    let mut trainer = trainer(OptimizerConfig::default());
    let mut source = Counted::from(0);
    for _ in 0..steps {
        use elf_train::BatchSource;
        trainer.step(std::iter::from_fn(|| source.next_batch().unwrap().map(Ok))).unwrap().unwrap();
        trainer.save(&folder, source.cursor(), json!({"recipe": "small"})).unwrap();
    }
    folder
}

#[test]
fn a_checkpoint_has_its_files_and_gives_everything_back() {
    let root = tempfile::tempdir().unwrap();
    let folder = saved(&root.path().join("runs/a"), 3);
    assert_eq!(names(folder.root()), ["step-00000001", "step-00000002", "step-00000003"]);
    let latest = folder.latest().unwrap().unwrap();
    assert_eq!(names(latest.path()), ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]);
    let state = latest.state();
    assert_eq!((state.step, state.seed, &state.cursor), (3, 5, &json!({"next": 6})));
    assert_eq!(state.plan, json!({"recipe": "small"}));
    latest.verify().unwrap();

    let (params, averages) = (SmallNet::new(9), SmallNet::new(9));
    latest.load_params(params.params()).unwrap();
    latest.load_averages(averages.params()).unwrap();
    let mut other = trainer(OptimizerConfig::default());
    other.restore(&latest).unwrap();
    assert!(equal(&params.params().snapshot(), &other.net().params().snapshot()));
    other.with_averages(|net, _| assert!(equal(&averages.params().snapshot(), &net.params().snapshot()))).unwrap();
    assert!(!equal(&params.params().snapshot(), &averages.params().snapshot()));
    assert_eq!(other.steps_done(), 3);
}

#[test]
fn the_latest_is_the_greatest_number_and_other_things_are_ignored() {
    let root = tempfile::tempdir().unwrap();
    assert!(CheckpointFolder::new(root.path().join("none")).latest().unwrap().is_none());
    let folder = saved(root.path(), 1);
    for other in ["step-x", "notes", ".aside-dead"] {
        fs::create_dir(root.path().join(other)).unwrap();
    }
    fs::write(root.path().join("step-00000099"), "a file").unwrap();
    fs::rename(root.path().join("step-00000001"), root.path().join("step-123456789")).unwrap();
    assert_eq!(folder.list().unwrap().iter().map(|(s, _)| *s).collect::<Vec<_>>(), [123_456_789]);
    saved(root.path(), 1);
    assert!(!root.path().join(".aside-dead").exists(), "what a dead process left is cleaned up");
    assert_eq!(folder.list().unwrap().len(), 2);
}

#[test]
fn damage_is_named_with_a_remedy() {
    let root = tempfile::tempdir().unwrap();
    let path = saved(root.path(), 1).latest().unwrap().unwrap().path().to_owned();
    let edit = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&fs::read(path.join("state.json")).unwrap()).unwrap();
        change(&mut value);
        fs::write(path.join("state.json"), value.to_string()).unwrap();
    };
    let refused = |parts: &[&str]| {
        let message = Checkpoint::open(&path).and_then(|c| c.verify()).unwrap_err().to_string();
        for part in parts.iter().chain(&["step-00000001"]) {
            assert!(message.contains(part), "{message}");
        }
    };
    let state = fs::read(path.join("state.json")).unwrap();
    let whole = fs::read(path.join("ema.safetensors")).unwrap();

    fs::write(path.join("ema.safetensors"), &whole[..whole.len() - 1]).unwrap();
    refused(&["ema.safetensors has", "bytes, but", "remove this folder"]);
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(path.join("ema.safetensors"), &flipped).unwrap();
    assert!(Checkpoint::open(&path).is_ok(), "opening is quick and looks at lengths only");
    refused(&["ema.safetensors is not the file that was written"]);
    let message =
        trainer(OptimizerConfig::default()).restore(&Checkpoint::open(&path).unwrap()).unwrap_err().to_string();
    assert!(message.contains("ema.safetensors"), "{message}");
    fs::remove_file(path.join("ema.safetensors")).unwrap();
    refused(&["ema.safetensors cannot be read", "remove this folder"]);
    fs::write(path.join("ema.safetensors"), &whole).unwrap();

    edit(&|v| {
        v["format"] = json!(7);
        v["new_in_7"] = json!(true);
    });
    refused(&["format is 7", "newer version of the program"]);
    fs::write(path.join("state.json"), &state).unwrap();
    edit(&|v| v["surprise"] = json!(1));
    refused(&["surprise"]);
    fs::write(path.join("state.json"), &state[..state.len() / 2]).unwrap();
    refused(&["state.json is damaged"]);
    fs::remove_file(path.join("state.json")).unwrap();
    refused(&["state.json cannot be read"]);
    fs::write(path.join("state.json"), &state).unwrap();
    edit(&|v| v["files"]["../../secret"] = json!({"bytes": 1, "blake3": "00"}));
    refused(&["../../secret is not the file that was written"]);
}

#[test]
fn another_networks_checkpoint_is_refused_with_a_table() {
    let root = tempfile::tempdir().unwrap();
    let latest = saved(root.path(), 1).latest().unwrap().unwrap();
    let mut b = elf_core::ParamBuilder::seeded(0, tch::Device::Cpu);
    b.tensor("mode", &[1, 1, 9], elf_core::Init::Constant(0.0)).unwrap();
    let message = latest.load_params(&b.finish()).unwrap_err().to_string();
    for part in ["model.safetensors", "mode: the model has [1, 1, 9], the file has [1, 1, 8]", "inner.weight"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = saved(root.path(), 2);
    let before = folder.latest().unwrap().unwrap();
    // The third checkpoint's parameters are no numbers: refused before anything is touched.
    let mut other = trainer(OptimizerConfig::default());
    other.restore(&before).unwrap();
    let _ = tch::no_grad(|| other.net().params().get("inner.bias").unwrap().tensor.shallow_clone().fill_(f64::NAN));
    let message = other.save(&folder, json!(0), json!(0)).unwrap_err().to_string();
    assert!(message.contains("norm of the parameters"), "{message}");
    assert_eq!(names(root.path()), ["step-00000001", "step-00000002"]);
    folder.latest().unwrap().unwrap().verify().unwrap();

    // The root is no folder any more: the error names it.
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let message = trainer(OptimizerConfig::default())
        .save(&CheckpointFolder::new(&file), json!(0), json!(0))
        .unwrap_err()
        .to_string();
    assert!(message.contains("file"), "{message}");
}

#[test]
fn pruning_follows_the_policy_and_saving_again_replaces() {
    let root = tempfile::tempdir().unwrap();
    let folder = saved(root.path(), 5);
    assert_eq!(folder.prune(&KeepPolicy { last: Some(1), every: Some(2), pinned: None }).unwrap(), [1, 3]);
    assert_eq!(names(root.path()), ["step-00000002", "step-00000004", "step-00000005"]);
    let mut again = trainer(OptimizerConfig::default());
    again.restore(&folder.latest().unwrap().unwrap()).unwrap();
    fs::write(root.path().join("step-00000005/model.safetensors"), "damaged").unwrap();
    again.save(&folder, json!("new"), json!(null)).unwrap();
    let latest = folder.latest().unwrap().unwrap();
    latest.verify().unwrap();
    assert_eq!(latest.state().cursor, json!("new"));
    assert_eq!(names(root.path()), ["step-00000002", "step-00000004", "step-00000005"]);
}

/// A process that died between the two renames of a replacement took the checkpoint's name away, but not the checkpoint.
#[test]
fn what_was_about_to_be_replaced_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let folder = saved(root.path(), 2);
    let aside = |step: u64| root.path().join(format!(".aside-replaced-step-{step:08}"));
    fs::rename(root.path().join("step-00000001"), aside(1)).unwrap();
    fs::create_dir(aside(2)).unwrap();
    let mut again = trainer(OptimizerConfig::default());
    again.restore(&folder.latest().unwrap().unwrap()).unwrap();
    again.save(&folder, json!(null), json!(null)).unwrap();
    assert_eq!(names(root.path()), ["step-00000001", "step-00000002"]);
    Checkpoint::open(root.path().join("step-00000001")).unwrap().verify().unwrap();
}

/// Names the folder for [`saves_where_no_file_may_grow`], which does nothing without it.
const LIMITED: &str = "ELF_TRAIN_TEST_LIMITED_FOLDER";

/// The part of [`a_full_disk_loses_nothing`] that runs in a process whose files may not grow.
#[test]
fn saves_where_no_file_may_grow() {
    let Some(root) = std::env::var_os(LIMITED) else { return };
    let folder = CheckpointFolder::new(root);
    let mut trainer = trainer(OptimizerConfig::default());
    trainer.restore(&folder.latest().unwrap().unwrap()).unwrap();
    let message = trainer.save(&folder, json!(null), json!(null)).unwrap_err().to_string();
    assert!(message.starts_with("cannot write"), "{message}");
    println!("refused: {message}");
}

/// Writing fails as on a full disk, in the midst of a file: with a limit on the size of files that the process ignores
/// the signal of, so that its writes return an error.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = saved(root.path(), 2);
    let output = std::process::Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; ulimit -f 1; exec "$0" --exact saves_where_no_file_may_grow --nocapture"#])
        .arg(std::env::current_exe().unwrap())
        .env(LIMITED, root.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("refused: cannot write"), "{output:?}");
    assert_eq!(names(root.path()), ["step-00000001", "step-00000002"], "the half-written one is gone");
    folder.latest().unwrap().unwrap().verify().unwrap();
}
