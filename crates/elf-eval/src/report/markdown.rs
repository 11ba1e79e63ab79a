//! `report.md`: the same content, with links to the plots.

use std::fmt::Write as _;

use super::Laid;
use super::html::omitted;
use super::model::{Block, Direction, SampleList, Table};
use super::table::{ReadyCell, ReadyTable};
use super::text::clean;

/// The text of the file. Plots are linked as `folder/NAME.svg`.
pub fn text(laid: &Laid, folder: &str) -> String {
    let report = laid.report;
    let mut out = Writer::default();
    out.line(&format!("# {}", line(&report.title)));
    let byline: Vec<String> = [&report.date, &report.provenance.preset, &report.provenance.revision]
        .into_iter()
        .filter(|fact| !fact.is_empty())
        .map(|fact| line(fact))
        .collect();
    out.line(&byline.join(" · "));
    report.summary.iter().for_each(|paragraph| out.line(&line(paragraph)));
    for section in &report.sections {
        out.line(&format!("## {}", line(&section.title)));
        if section.blocks.is_empty() {
            out.line("*Nothing was measured here.*");
        }
        section.blocks.iter().for_each(|block| out.block(laid, block, folder));
    }
    out.line("## Where the numbers come from");
    let facts = super::facts(&report.provenance);
    let facts: Vec<String> = facts.iter().map(|(name, value)| format!("* {}: {}", line(name), line(value))).collect();
    out.line(&facts.join("\n"));
    if !report.provenance.command.is_empty() {
        out.code(&report.provenance.command);
    }
    if !report.provenance.stages.is_empty() {
        out.table(&super::costs(&report.provenance.stages));
    }
    if !report.provenance.configs.is_empty() {
        out.table(&super::config_table(&report.provenance.configs));
    }
    out.0
}

/// Paragraphs, one below the other.
#[derive(Default)]
struct Writer(String);

impl Writer {
    fn line(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn code(&mut self, code: &str) {
        let code = clean(code);
        let longest = code.split(|c| c != '`').map(str::len).max().unwrap_or(0);
        let fence = "`".repeat(longest.max(2) + 1);
        self.line(&format!("{fence}text\n{}\n{fence}", code.trim_end()));
    }

    fn block(&mut self, laid: &Laid, block: &Block, folder: &str) {
        match block {
            Block::Heading(words) => self.line(&format!("### {}", line(words))),
            Block::Paragraph(words) => self.line(&line(words)),
            Block::Note(words) => self.line(&format!("> **Note.** {}", line(words))),
            Block::Code(code) => self.code(code),
            Block::Table(table) => self.table(table),
            Block::Samples(list) => self.samples(list),
            Block::Plot(plot) => {
                let caption = line(&plot.caption);
                match laid.plot(plot).and_then(|d| d.drawing.as_ref().map(|drawing| (drawing, &d.name))) {
                    Some((drawing, name)) => {
                        self.line(&format!("![{}]({folder}/{name}.svg)", line(&plot.title)));
                        self.line(format!("**{}** {caption}", line(&plot.title)).trim_end());
                        if drawing.omitted > 0 {
                            self.line(&omitted(drawing.omitted));
                        }
                    }
                    None => {
                        self.line(format!("**{}** {caption}", line(&plot.title)).trim_end());
                        self.line("*Nothing to draw: there are no numbers.*");
                    }
                }
            }
        }
    }

    fn table(&mut self, table: &Table) {
        let ready = ReadyTable::of(table);
        if !table.caption.is_empty() {
            self.line(&format!("**{}**", line(&table.caption)));
        }
        if ready.rows.is_empty() || ready.heads.is_empty() {
            self.line("*Nothing was measured here.*");
            return;
        }
        let mut text = String::from("|");
        for head in &ready.heads {
            let arrow = match head.better {
                Some(Direction::Higher) => " ↑",
                Some(Direction::Lower) => " ↓",
                None => "",
            };
            let (tag, note) = head.published.map_or(("", String::new()), |note| ("*published:* ", mark(note)));
            // Writing to a String cannot fail.
            let _ = write!(text, " {tag}{}{note}{arrow} |", line(&head.title));
        }
        text.push_str("\n|");
        for head in &ready.heads {
            text.push_str(if head.numeric { " ---: |" } else { " --- |" });
        }
        for row in &ready.rows {
            if let Some(group) = &row.group {
                let _ = write!(text, "\n| **{}** |{}", line(group), " |".repeat(ready.heads.len() - 1));
            }
            text.push_str("\n|");
            for (i, (cell, head)) in row.cells.iter().zip(&ready.heads).enumerate() {
                let mut content = self::cell(cell);
                if head.published.is_some() && !content.is_empty() {
                    content = format!("*{content}*");
                }
                if i == 0 {
                    row.notes.iter().for_each(|note| content.push_str(&mark(*note)));
                    let _ = row.standing.tag().map_or(Ok(()), |tag| write!(content, " *({tag})*"));
                }
                let _ = write!(text, " {content} |");
            }
        }
        self.line(&text);
        self.line(&line(&ready.legend));
        let notes: Vec<String> =
            ready.notes.iter().enumerate().map(|(i, n)| format!("{}. {}", i + 1, line(n))).collect();
        self.line(&notes.join("\n"));
    }

    fn samples(&mut self, list: &SampleList) {
        self.line(&format!("### {}", line(&list.title)));
        self.line(&format!("*Picked by rule: {}*", line(&list.picked)));
        if list.samples.is_empty() {
            self.line("*There are no samples.*");
        }
        for sample in &list.samples {
            let mut parts = Vec::new();
            for (name, words) in [("source", &sample.source), ("reference", &sample.reference)] {
                parts.extend(words.as_ref().map(|words| format!("*{name}:* {}", quoted(words))));
            }
            for (name, words) in &sample.outputs {
                let words = if words.trim().is_empty() { "*(empty)*".to_owned() } else { quoted(words) };
                parts.push(if name.is_empty() { words } else { format!("**{}:** {words}", line(name)) });
            }
            self.line(&format!("**{}**\n\n> {}", sample.index, parts.join("\n>\n> ")));
        }
    }
}

fn mark(note: usize) -> String {
    format!(" \\[{}\\]", note + 1)
}

fn cell(cell: &ReadyCell) -> String {
    let mut content = line(&cell.text);
    if cell.best {
        content = format!("**{content}**");
    }
    if let Some(uncertainty) = &cell.uncertainty {
        content = format!("{content} {}", line(uncertainty));
    }
    content + &cell.note.map(mark).unwrap_or_default()
}

/// Lines of a quotation, each with its end kept.
fn quoted(words: &str) -> String {
    clean(words).trim().lines().map(line).collect::<Vec<_>>().join("\\\n> ")
}

/// One line of plain text with Markdown's special characters escaped.
pub fn line(text: &str) -> String {
    let text = clean(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let mut out = String::with_capacity(text.len() + 8);
    // A list, a heading or a rule at the beginning; numbers with a point or a bracket as well.
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    for (i, c) in text.char_indices() {
        let starts = (i == 0 && matches!(c, '+' | '-' | '='))
            || (digits > 0 && i == digits && matches!(c, '.' | ')') && text[i + 1..].starts_with(' '));
        if starts || matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' | '~' | '$') {
            out.push('\\');
            out.push(c);
        } else if c == '&' {
            out.push_str("&amp;");
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_of_others_stays_text() {
        for (text, written) in [
            ("*bold* _it_ `x`", "\\*bold\\* \\_it\\_ \\`x\\`"),
            ("[a](b) <script>", "\\[a\\](b) \\<script\\>"),
            ("a|b\n\n# c", "a\\|b \\# c"),
            ("- item", "\\- item"),
            ("12. item 3.5", "12\\. item 3.5"),
            ("3.5 is fine", "3.5 is fine"),
            ("AT&T &lt;", "AT&amp;T &amp;lt;"),
            ("\\", "\\\\"),
        ] {
            assert_eq!(line(text), written);
        }
    }
}
