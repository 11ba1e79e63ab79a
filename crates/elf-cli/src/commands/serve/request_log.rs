//! The log of requests: one line each on standard error.

use std::sync::Arc;

use clap::ValueEnum;
use elf_lm::serve::{RequestRecord, ServeEvent, ServeWatch};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::printing::note;

/// How requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object per line.
    Json,
    /// Not at all; warnings are still told.
    Off,
}

/// Writes what a server tells in a format.
pub fn listener(format: LogFormat) -> ServeWatch {
    Arc::new(move |event: ServeEvent<'_>| {
        let now = Timestamp::now();
        match (event, format) {
            (ServeEvent::Answered(_), LogFormat::Off) => {}
            (ServeEvent::Answered(record), LogFormat::Text) => note!("{}", text(now, record)),
            (ServeEvent::Answered(record), LogFormat::Json) => note!("{}", json(now, record)),
            (ServeEvent::Reread, format) => tell(format, now, "note", "keys and certificates were read again"),
            (ServeEvent::Warning(message), format) => tell(format, now, "warning", message),
            _ => {}
        }
    })
}

fn tell(format: LogFormat, now: Timestamp, kind: &str, message: &str) {
    match format {
        LogFormat::Json => note!("{}", json!({ "time": format!("{now:.3}"), "event": kind, "message": message })),
        _ if kind == "note" => note!("{message}"),
        _ => note!("{kind}: {message}"),
    }
}

/// `2026-11-29T12:00:00.000Z 200 POST /v1/completions 0.324 s, 1 text(s) of mini-de-en, id 7f3c`
fn text(now: Timestamp, record: &RequestRecord) -> String {
    let RequestRecord { id, method, path, status, seconds, model, texts } = record;
    let made = model.as_ref().map(|model| format!(", {texts} text(s) of {model}")).unwrap_or_default();
    format!("{now:.3} {status} {method} {path} {seconds:.3} s{made}, id {id}")
}

fn json(now: Timestamp, record: &RequestRecord) -> Value {
    let mut line = json!({ "time": format!("{now:.3}"), "event": "request" });
    if let (Value::Object(line), Ok(Value::Object(record))) = (&mut line, serde_json::to_value(record)) {
        line.extend(record);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line_in_either_format() {
        let record = RequestRecord {
            id: "a".into(),
            method: "POST".into(),
            path: "/v1/completions".into(),
            status: 200,
            seconds: 0.3241,
            model: Some("mini-de-en".into()),
            texts: 2,
        };
        let now = Timestamp::from_second(1_796_000_000).unwrap();
        assert_eq!(
            text(now, &record),
            "2026-11-30T00:53:20.000Z 200 POST /v1/completions 0.324 s, 2 text(s) of mini-de-en, id a"
        );
        let line = json(now, &record);
        assert_eq!((line["time"].as_str(), line["status"].as_u64()), (Some("2026-11-30T00:53:20.000Z"), Some(200)));
        assert!(!line.to_string().contains('\n'));
        let other = RequestRecord { model: None, path: "/health".into(), ..record };
        assert_eq!(text(now, &other), "2026-11-30T00:53:20.000Z 200 POST /health 0.324 s, id a");
        assert!(json(now, &other).get("model").is_none());
    }
}
