//! The page of `elf serve` in Chromium. Skipped, with a message, where Chromium or chromedriver is missing.

mod browser;
mod server;
mod tiny_run;

use std::collections::BTreeSet;
use std::path::Path;

use browser::{Browser, key};
use serde_json::{Value, json};
use server::Server;
use tempfile::TempDir;
use tiny_run::within;

/// Variable with the folder into which the pictures of the documentation are written.
const PICTURES: &str = "ELF_PAGE_PICTURES";

const INPUT: &str = "Werkzeug zum Konvertieren von Dateien";

/// Whether all texts are there.
const FINISHED: &str = "document.getElementById('status').textContent === 'Finished.'";

/// The slider.
const SLIDER: &str = ".elf-time";

/// The time that is shown, in words.
const TIME: &str = "return document.querySelector('.elf-time').getAttribute('aria-valuetext')";

/// The text of each sample.
const TEXTS: &str = "return [...document.querySelectorAll('.elf-text')].map((text) => text.textContent)";

fn models(more: &[&str]) -> Server {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let path = |name| models.join(name).to_str().unwrap().to_owned();
    let paths = ["mini-de-en", "definitions", "infill"].map(path);
    Server::of(&[&paths.each_ref().map(String::as_str), more].concat())
}

/// Opens the page, and waits for its models.
fn open(browser: &Browser, server: &Server) {
    browser.open(&format!("http://{}/", server.address));
    browser.until("document.getElementById('model').options.length === 3", || ());
}

#[test]
fn a_text_forms_in_the_page() {
    let Some(browser) = Browser::start() else { return };
    let server = models(&[]);
    open(&browser, &server);
    browser.fill("#input", INPUT);
    browser.fill("#n", "2");
    browser.fill("#steps", "12");
    browser.fill("#seed", "18446744073709551615");
    browser.press("#input", &[key::CONTROL, key::ENTER].concat());

    // Frames arrive before the end.
    let mut counts = BTreeSet::new();
    browser.until(FINISHED, || {
        let frames = browser.run("return document.querySelector('.elf-trajectory')?.dataset.frames ?? '0'");
        counts.insert(frames.as_str().unwrap().parse::<usize>().unwrap());
    });
    assert!(counts.len() > 3, "{counts:?}");

    // The texts are those that other clients get for the seed.
    let body = json!({"model": "mini-de-en", "prompt": INPUT, "n": 2, "steps": 12, "seed": u64::MAX});
    let answer = server.post("/v1/completions", &body).json();
    let texts: Vec<Value> = answer["choices"].as_array().unwrap().iter().map(|one| one["text"].clone()).collect();
    let shown = browser.run(TEXTS);
    assert_eq!(shown, json!(texts));
    let tokens = "return [...document.querySelectorAll('.elf-token')].every((token) => \
                  /^probability [01][.][0-9]{3}$/.test(token.title) && getComputedStyle(token).backgroundColor !== 'rgba(0, 0, 0, 0)')";
    assert_eq!(browser.run(tokens), json!(true));
    assert!(browser.text("#given").contains("18446744073709551615"));

    the_slider_moves_through_time(&browser, &shown);
    a_link_shows_the_same(&browser, &shown);
    an_unconditional_model_has_no_input(&browser);

    assert_eq!(browser.complaints(), Vec::<Value>::new());
    let own = format!("http://{}/", server.address);
    let requests = browser.requests();
    assert!(requests.iter().any(|url| url.ends_with("/v1/trajectories")), "{requests:?}");
    let elsewhere: Vec<_> = requests.iter().filter(|url| !url.starts_with(&own) && !url.starts_with("data:")).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

/// By keys; at the first frame no text is whole.
fn the_slider_moves_through_time(browser: &Browser, whole: &Value) {
    browser.press(SLIDER, key::HOME);
    assert_ne!(browser.run(TEXTS), *whole);
    browser.press(SLIDER, key::RIGHT);
    let second = browser.run(TIME);
    assert!(second.as_str().unwrap().contains("step 2 of "), "{second}");
    browser.press(SLIDER, key::END);
    assert_eq!((browser.run(TIME), browser.run(TEXTS)), (json!("finished"), whole.clone()));
}

/// To the second frame, in a new tab.
fn a_link_shows_the_same(browser: &Browser, whole: &Value) {
    browser.press(SLIDER, key::HOME);
    browser.press(SLIDER, key::RIGHT);
    let (second, early) = (browser.run(TIME), browser.run(TEXTS));
    let link = browser.run("return document.getElementById('link').href");
    let link = link.as_str().unwrap();
    assert_eq!(browser.address(), link);
    browser.new_tab();
    browser.open(link);
    browser.until(FINISHED, || ());
    assert_eq!((browser.run(TIME), browser.run(TEXTS)), (second, early));
    browser.press(SLIDER, key::END);
    assert_eq!(browser.run(TEXTS), *whole);
}

fn an_unconditional_model_has_no_input(browser: &Browser) {
    browser.run(
        "const model = document.getElementById('model'); model.value = 'definitions'; \
         model.dispatchEvent(new Event('change'))",
    );
    assert_eq!(browser.run("return document.getElementById('input').checkVisibility()"), json!(false));
    browser.fill("#steps", "4");
    browser.click("#generate");
    browser.until(FINISHED, || ());
    assert!(browser.text("#given").contains("definitions"));
}

/// Words that are clicked become gaps, and the others stay.
#[test]
fn words_are_written_anew_where_they_are_clicked() {
    let Some(browser) = Browser::start() else { return };
    let server = models(&[]);
    open(&browser, &server);
    browser.run(
        "const model = document.getElementById('model'); model.value = 'infill'; \
         model.dispatchEvent(new Event('change'))",
    );
    browser.fill("#input", "a [2] of the [...] family");
    browser.fill("#steps", "4");
    browser.click("#generate");
    browser.until(FINISHED, || ());
    let text = browser.run(TEXTS)[0].as_str().unwrap().to_owned();
    assert!(text.starts_with("a ") && text.contains(" of the ") && text.ends_with(" family"), "{text}");
    let buttons = "return [...document.querySelectorAll('#words button')].map((button) => button.textContent)";
    let words = browser.run(buttons);
    let words: Vec<&str> = words.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words.join(" "), text);
    browser.click("#words button:first-child");
    browser.click("#words button:last-child");
    let asked = browser.run("return document.getElementById('input').value");
    assert_eq!(asked.as_str().unwrap(), format!("[1] {} [1]", words[1..words.len() - 1].join(" ")));
    browser.click("#words button:nth-child(2)");
    browser.click("#words button:last-child");
    let asked = browser.run("return document.getElementById('input').value");
    assert!(!asked.as_str().unwrap().starts_with("[1]") && asked.as_str().unwrap().ends_with(" family"), "{asked}");
    browser.click("#generate");
    browser.until(FINISHED, || ());
    let anew = browser.run(TEXTS)[0].as_str().unwrap().to_owned();
    assert!(anew.ends_with(&words[2..].join(" ")), "{anew} after {text}");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

#[test]
fn the_page_asks_for_a_key_and_tells_errors() {
    let Some(browser) = Browser::start() else { return };
    let folder = TempDir::new().unwrap();
    let keys = within(&folder, "keys");
    std::fs::write(&keys, "the-key\n").unwrap();
    let server = models(&["--api-key-file", &keys]);
    browser.open(&format!("http://{}/#seed=1&prompt=Werkzeug", server.address));
    browser.until("document.activeElement.id === 'key'", || ());
    browser.fill("#key", "another");
    browser.press("#key", key::ENTER);
    browser.until("!document.getElementById('problem').hidden", || ());
    assert_eq!(browser.text("#problem"), "The server does not accept this key.");
    browser.fill("#key", "the-key");
    browser.press("#key", key::ENTER);
    browser.until(FINISHED, || ());
    let page = browser.run(
        "return document.documentElement.innerText + location.href + JSON.stringify([{...localStorage}, \
         {...sessionStorage}, document.cookie])",
    );
    assert!(!page.as_str().unwrap().contains("the-key"));

    browser.fill("#steps", "5000");
    browser.click("#generate");
    browser.until("!document.getElementById('problem').hidden", || ());
    assert!(browser.text("#problem").contains("`steps`"), "{}", browser.text("#problem"));

    browser.fill("#steps", "1000");
    browser.fill("#n", "8");
    browser.click("#generate");
    browser.until("Number(document.querySelector('.elf-trajectory')?.dataset.frames) > 1", || ());
    browser.click("#stop");
    browser.until("document.getElementById('status').textContent === 'Stopped.'", || ());
    drop(server);
    browser.click("#generate");
    browser.until("!document.getElementById('problem').hidden", || ());
    assert_eq!(browser.text("#problem"), "The server cannot be reached.");
}

/// The pictures of the documentation: `ELF_PAGE_PICTURES=docs/images cargo test --release --test page pictures`.
#[test]
fn pictures() {
    let Some(folder) = std::env::var_os(PICTURES) else {
        return eprintln!("skipped: {PICTURES} names no folder for pictures");
    };
    let folder = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let Some(browser) = Browser::start() else { return };
    let server = models(&[]);
    let show = |fragment: &str| {
        browser.open(&format!("http://{}/{fragment}", server.address));
        browser.refresh();
        browser.until(FINISHED, || ());
    };
    browser.screen(1000, 720, "light");
    show("#model=definitions&n=2&steps=32&seed=0&t=0.15");
    browser.picture(&folder.join("page-forming.png"));
    browser.press(SLIDER, key::END);
    browser.picture(&folder.join("page-finished.png"));
    browser.screen(390, 844, "dark");
    show("#model=mini-de-en&prompt=Werkzeug+zum+Konvertieren+von+Dateien&seed=0");
    browser.run("document.getElementById('result').scrollIntoView()");
    browser.picture(&folder.join("page-phone.png"));
}
