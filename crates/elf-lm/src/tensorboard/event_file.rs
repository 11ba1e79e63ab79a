//! An event file: records of a length, a message and two checksums.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};
use prost::Message;
use serde_json::Value as Json;

use super::messages::{
    Content, Dim, Event, HparamsData, Metadata, PluginData, SessionLog, SessionStart, Setting, SettingKind, Shape,
    Summary, Tensor, Value, What,
};
use crate::Result;
use crate::error::Context;

/// Characters of a text that are written at most.
const MOST_CHARACTERS: usize = 2000;

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// An event file that is being written. Each call writes whole records, so that a reader sees them at once.
#[derive(Debug)]
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// A new file in `folder`, named by the time, for a run that has done `steps_done` steps: readers drop what earlier files of
    /// the folder say of later steps.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin(folder: &Path, steps_done: u64) -> Result<Self> {
        let cannot = || format!("cannot write an event file in {}", folder.display());
        let created = (0..1000).find_map(|place| {
            let name = format!("events.out.tfevents.{:010}.elf.{place}", seconds() as u64);
            match OpenOptions::new().append(true).create_new(true).open(folder.join(name)) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => None,
                other => Some(other),
            }
        });
        let file = created
            .context("there are a thousand event files of this second")
            .and_then(|file| file.with_context(cannot))?;
        let mut file = Self { file };
        file.write(0, What::FileVersion("brain.Event:2".to_owned()))?;
        if steps_done > 0 {
            file.write(steps_done + 1, What::SessionLog(SessionLog { status: SessionLog::START }))?;
        }
        Ok(file)
    }

    /// Writes scalars, each under its tag.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn scalars(&mut self, step: u64, scalars: impl IntoIterator<Item = (String, f64)>) -> Result<()> {
        let value = |(tag, value)| Value { tag, metadata: None, content: Some(Content::Scalar(value as f32)) };
        self.write(step, What::Summary(Summary { values: scalars.into_iter().map(value).collect() }))
    }

    /// Writes texts, as they are and not as Markdown.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn texts(&mut self, step: u64, tag: &str, texts: &[&str]) -> Result<()> {
        let strings: Vec<Vec<u8>> = texts.iter().map(|text| as_code(text).into_bytes()).collect();
        let shape = Shape { dims: vec![Dim { size: strings.len() as i64 }] };
        let tensor = Tensor { dtype: Tensor::STRING, shape: Some(shape), strings };
        let value = Value {
            tag: tag.to_owned(),
            metadata: Some(Metadata {
                plugin: Some(PluginData { plugin_name: "text".to_owned(), content: Vec::new() }),
            }),
            content: Some(Content::Tensor(tensor)),
        };
        self.write(step, What::Summary(Summary { values: vec![value] }))
    }

    /// Writes a run's settings, a tree of JSON, as hyperparameters by the names of its leaves.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn settings(&mut self, settings: &Json) -> Result<()> {
        let mut hparams = BTreeMap::new();
        leaves(settings, "", &mut hparams);
        let data = HparamsData { version: 0, session_start: Some(SessionStart { hparams, start_time: seconds() }) };
        let plugin = PluginData { plugin_name: "hparams".to_owned(), content: data.encode_to_vec() };
        let value = Value {
            tag: "_hparams_/session_start_info".to_owned(),
            metadata: Some(Metadata { plugin: Some(plugin) }),
            content: Some(Content::Tensor(Tensor { dtype: Tensor::FLOAT, shape: None, strings: Vec::new() })),
        };
        self.write(0, What::Summary(Summary { values: vec![value] }))
    }

    fn write(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event { wall_time: seconds(), step: step as i64, what: Some(what) };
        self.file.write_all(&record(&event.encode_to_vec())).context("cannot write TensorBoard's event file")
    }
}

/// A record: the length, its checksum, the content, its checksum.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    [&length, masked_checksum(&length).as_slice(), content, &masked_checksum(content)].concat()
}

fn masked_checksum(bytes: &[u8]) -> [u8; 4] {
    CRC32C.checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Seconds since 1970.
fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A text as a block of code of Markdown: words of a young model are full of signs that Markdown would take for its own.
fn as_code(text: &str) -> String {
    let lines = text.split(['\n', '\r']).map(|line| format!("    {line}"));
    lines.collect::<Vec<_>>().join("\n").chars().take(MOST_CHARACTERS).collect()
}

/// Numbers, texts and truth values of a tree; a list is one text.
fn leaves(tree: &Json, name: &str, found: &mut BTreeMap<String, Setting>) {
    let kind = match tree {
        Json::Object(fields) => {
            for (key, value) in fields {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                leaves(value, &name, found);
            }
            return;
        }
        Json::Null => return,
        Json::Bool(value) => SettingKind::Bool(*value),
        Json::Number(value) => SettingKind::Number(value.as_f64().unwrap_or(f64::NAN)),
        Json::String(value) => SettingKind::Text(value.clone()),
        Json::Array(_) => SettingKind::Text(tree.to_string()),
    };
    found.insert(name.to_owned(), Setting { kind: Some(kind) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The events of a file, their checksums checked.
    fn read(folder: &Path) -> Vec<Event> {
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let mut events = Vec::new();
        for path in paths {
            let bytes = std::fs::read(path).unwrap();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                assert_eq!(rest[8..12], masked_checksum(&rest[..8]));
                let content = &rest[12..12 + length];
                assert_eq!(rest[12 + length..16 + length], masked_checksum(content));
                events.push(Event::decode(content).unwrap());
                rest = &rest[16 + length..];
            }
        }
        events
    }

    #[test]
    fn checksums_are_those_of_the_format() {
        // CRC-32C of "123456789" is e3069283 by its definition; masked as TensorFlow's record format says.
        let masked = 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_checksum(b"123456789"), masked.to_le_bytes());
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::begin(folder.path(), 0).unwrap();
        file.settings(
            &json!({"lr": 0.5, "flow": {"steps": 32, "sampler": "sde"}, "on": true, "none": null, "list": [1]}),
        )
        .unwrap();
        file.scalars(7, [("train/loss".to_owned(), 0.25), ("train/l2".to_owned(), 3.0)]).unwrap();
        file.texts(8, "texts", &["a *b*\n# c", ""]).unwrap();
        drop(file);
        EventFile::begin(folder.path(), 7).unwrap();
        let events = read(folder.path());
        assert_eq!(events.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 0, 7, 8, 0, 8]);
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        assert_eq!(events[5].what, Some(What::SessionLog(SessionLog { status: SessionLog::START })));
        let summary = |i: usize| match &events[i].what {
            Some(What::Summary(summary)) => summary.values.clone(),
            other => panic!("{other:?}"),
        };
        let plugin = summary(1)[0].metadata.clone().unwrap().plugin.unwrap();
        let start = HparamsData::decode(plugin.content.as_slice()).unwrap().session_start.unwrap();
        assert_eq!(
            start.hparams.keys().map(String::as_str).collect::<Vec<_>>(),
            ["flow.sampler", "flow.steps", "list", "lr", "on"]
        );
        assert_eq!(start.hparams["flow.steps"].kind, Some(SettingKind::Number(32.0)));
        let scalars: Vec<_> = summary(2).into_iter().map(|v| (v.tag, v.content)).collect();
        assert_eq!(scalars[0], ("train/loss".to_owned(), Some(Content::Scalar(0.25))));
        let Some(Content::Tensor(tensor)) = summary(3)[0].content.clone() else { panic!() };
        assert_eq!(tensor.strings, [b"    a *b*\n    # c".to_vec(), b"    ".to_vec()]);
    }
}
