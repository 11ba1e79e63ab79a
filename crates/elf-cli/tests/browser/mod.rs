//! Chromium without a window, driven through chromedriver by the W3C's WebDriver protocol, of which the page's test needs
//! a dozen requests with JSON.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// How long the page may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// The name under which WebDriver gives an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys, as WebDriver types them. A modifier holds until the end of the keys.
pub mod key {
    pub const ENTER: &str = "\u{e007}";
    pub const CONTROL: &str = "\u{e009}";
    pub const END: &str = "\u{e010}";
    pub const HOME: &str = "\u{e011}";
    pub const RIGHT: &str = "\u{e014}";
}

/// A running browser.
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    /// The address of the session.
    session: String,
}

impl Browser {
    /// A new browser; says that the test is skipped where there is none.
    pub fn start() -> Option<Self> {
        let started = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut driver = match started {
            Ok(driver) => driver,
            Err(error) => {
                eprintln!("skipped: chromedriver cannot be started ({error})");
                return None;
            }
        };
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        // What else it says is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let session = format!("http://127.0.0.1:{}/session", port.unwrap_or_default());
        let mut browser = Self { driver, agent, session };
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server"];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        match browser.try_to_post("", &wanted) {
            Ok(made) => {
                browser.session = format!("{}/{}", browser.session, made["sessionId"].as_str().unwrap());
                Some(browser)
            }
            Err(reason) => {
                eprintln!("skipped: Chromium cannot be started ({reason})");
                None
            }
        }
    }

    fn try_to_post(&self, command: &str, body: &Value) -> Result<Value, String> {
        let asked = self.agent.post(format!("{}{command}", self.session)).send(body.to_string());
        answer(asked.map_err(|error| error.to_string())?)
    }

    #[track_caller]
    fn post(&self, command: &str, body: &Value) -> Value {
        self.try_to_post(command, body).unwrap()
    }

    #[track_caller]
    fn get(&self, command: &str) -> Value {
        answer(self.agent.get(format!("{}{command}", self.session)).call().unwrap()).unwrap()
    }

    /// Opens an address.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Loads the page again.
    pub fn refresh(&self) {
        self.post("/refresh", &json!({}));
    }

    /// The address of the page.
    pub fn address(&self) -> String {
        self.get("/url").as_str().unwrap().to_owned()
    }

    /// Goes to a new tab.
    pub fn new_tab(&self) {
        let made = self.post("/window/new", &json!({ "type": "tab" }));
        self.post("/window", &json!({ "handle": made["handle"] }));
    }

    /// What a script returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until an expression is true; meanwhile `watch` is called.
    #[track_caller]
    pub fn until(&self, expression: &str, mut watch: impl FnMut()) {
        let begun = Instant::now();
        while self.run(&format!("return {expression}")) != json!(true) {
            watch();
            if begun.elapsed() > PATIENCE {
                let page = self.run("return document.body.innerText");
                panic!("never true: {expression}\n{}", page.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The path of the element that a selector finds.
    #[track_caller]
    fn find(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        format!("/element/{}", found[ELEMENT].as_str().unwrap())
    }

    /// Types keys in the element that a selector finds.
    #[track_caller]
    pub fn press(&self, selector: &str, keys: &str) {
        self.post(&format!("{}/value", self.find(selector)), &json!({ "text": keys }));
    }

    /// Types a text into a field, in place of what it has.
    #[track_caller]
    pub fn fill(&self, selector: &str, text: &str) {
        self.post(&format!("{}/clear", self.find(selector)), &json!({}));
        self.press(selector, text);
    }

    /// Clicks on an element.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        self.post(&format!("{}/click", self.find(selector)), &json!({}));
    }

    /// The visible text of an element.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        self.get(&format!("{}/text", self.find(selector))).as_str().unwrap().to_owned()
    }

    /// The browser's log of a kind since it was last read.
    fn log(&self, kind: &str) -> Vec<Value> {
        self.post("/se/log", &json!({ "type": kind })).as_array().unwrap().clone()
    }

    /// Warnings and errors of the console since it was last read.
    pub fn complaints(&self) -> Vec<Value> {
        let bad = |entry: &Value| matches!(entry["level"].as_str(), Some("WARNING" | "SEVERE"));
        self.log("browser").into_iter().filter(bad).collect()
    }

    /// The addresses that were asked for since they were last read.
    pub fn requests(&self) -> Vec<String> {
        let entries = self.log("performance").into_iter();
        let messages = entries.map(|entry| serde_json::from_str(entry["message"].as_str().unwrap()).unwrap());
        let sent = messages.filter(|message: &Value| message["message"]["method"] == "Network.requestWillBeSent");
        sent.map(|message| message["message"]["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    /// Gives a command to Chromium's developer tools.
    fn tools(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// A light or dark screen of this size; below 600 pixels it is a phone's.
    pub fn screen(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.tools("Emulation.setDeviceMetricsOverride", &size);
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.tools("Emulation.setEmulatedMedia", &scheme);
    }

    /// Writes a picture of the screen, as PNG.
    pub fn picture(&self, file: &Path) {
        let picture = self.get("/screenshot");
        std::fs::write(file, BASE64_STANDARD.decode(picture.as_str().unwrap()).unwrap()).unwrap();
    }
}

/// The value of an answer, or the error that it tells.
fn answer(mut answer: ureq::http::Response<ureq::Body>) -> Result<Value, String> {
    let limited = answer.body_mut().with_config().limit(64 << 20).read_to_vec();
    let mut body: Value = serde_json::from_slice(&limited.map_err(|error| error.to_string())?).unwrap();
    match answer.status().is_success() {
        true => Ok(body["value"].take()),
        false => Err(format!("{}: {}", body["value"]["error"], body["value"]["message"])),
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver takes its browser with it when the session is ended.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
