//! Forms of output: tables that fit the terminal, JSON, YAML, and colour where it is wanted.
//! Commands hand over rows and values; nothing here knows what they mean.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::{CliError, one_line};

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    /// The table with all its columns.
    Wide,
    Json,
    Yaml,
}

/// Where output goes and what it may look like; decided once, from the terminal and the environment.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub format: Format,
    pub colour: bool,
    /// Width in cells; None where the output is not a terminal and nothing has to fit.
    pub width: Option<u16>,
}

impl Screen {
    /// Colour needs a terminal and no NO_COLOR (no-color.org).
    pub fn detect(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let width = terminal.then(|| crate::exec::terminal::size().map_or(80, |size| size.width));
        Self { format, colour: terminal && !no_color, width }
    }

    pub fn paint(&self, paint: Paint, text: &str) -> String {
        if !self.colour || paint == Paint::Plain {
            return text.to_string();
        }
        let code = match paint {
            Paint::Plain => "0",
            Paint::Good => "32",
            Paint::Warn => "33",
            Paint::Bad => "31",
            Paint::Bold => "1",
            Paint::Dim => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

impl Screen {
    /// A sentence in lines that fit, for a place that begins at this column; the lines after the first are
    /// indented to it. A word longer than a line stays whole.
    pub fn wrap(&self, text: &str, column: usize) -> String {
        let text = one_line(text);
        let Some(width) = self.width.map(usize::from).filter(|width| *width > column + MIN_WRAPPED) else {
            return text;
        };
        let mut lines: Vec<String> = vec![String::new()];
        for word in text.split(' ') {
            let line = lines.last_mut().expect("there is one from the start");
            let used = column + line.chars().count();
            if !line.is_empty() && used + 1 + word.chars().count() > width {
                lines.push(word.to_owned());
            } else {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
        }
        lines.join(&format!("\n{}", " ".repeat(column)))
    }
}

/// What a text is about, not which colour it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Good,
    Warn,
    Bad,
    Bold,
    Dim,
}

/// Prints a value as JSON or YAML; false where a table is wanted.
pub fn structured<T: Serialize>(screen: &Screen, value: &T) -> Result<bool, CliError> {
    let text = match screen.format {
        Format::Json => {
            let mut text = serde_json::to_string_pretty(value).map_err(|e| CliError::new(e.to_string()))?;
            text.push('\n');
            text
        }
        Format::Yaml => yaml(value)?,
        Format::Table | Format::Wide => return Ok(false),
    };
    print(&text)?;
    Ok(true)
}

/// A value as YAML, keys in alphabetical order as kubectl prints them.
pub fn yaml<T: Serialize>(value: &T) -> Result<String, CliError> {
    let value = serde_json::to_value(value).map_err(|error| CliError::new(error.to_string()))?;
    let mut text = serde_saphyr::to_string(&value).map_err(|error| CliError::new(error.to_string()))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Writes to stdout; a reader that went away (`| head`) is no error.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// A wrapped column narrower than this cannot be read.
const MIN_WRAPPED: usize = 20;

/// Rows under headings. The last column takes what is left of the line and wraps; a heading that
/// starts with `*` may shrink and wrap as well.
#[derive(Debug)]
pub struct Rows {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Rows {
    pub fn new(headings: &[&str]) -> Self {
        Self { headings: headings.iter().map(|heading| (*heading).to_string()).collect(), rows: Vec::new() }
    }

    pub fn push(&mut self, row: Vec<String>) {
        debug_assert_eq!(row.len(), self.headings.len());
        self.rows.push(row.iter().map(|cell| one_line(cell)).collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text. Colour is added after the layout, so that it never changes a width.
    pub fn render(&self, screen: &Screen, paint: impl Fn(usize, &str) -> Paint) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        let natural = self.natural_width();
        let last = self.headings.len().saturating_sub(1);
        if let Some(width) =
            screen.width.filter(|width| natural > usize::from(*width) && self.can_fit(*width))
        {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(width);
        }
        table.set_header(self.headings.iter().map(|heading| heading.trim_start_matches('*').to_string()));
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| if cell.is_empty() { "-" } else { cell.as_str() }));
        }
        for (index, heading) in self.headings.iter().enumerate() {
            let Some(column) = table.column_mut(index) else { continue };
            column.set_padding((0, if index == last { 0 } else { 2 }));
            if index != last && !heading.starts_with('*') {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        let mut text = String::new();
        for (number, line) in table.lines().enumerate() {
            let line = line.trim_end();
            if number == 0 {
                text.push_str(&screen.paint(Paint::Bold, line));
            } else {
                text.push_str(&paint_words(screen, line, &paint));
            }
            text.push('\n');
        }
        text
    }

    fn natural_width(&self) -> usize {
        (0..self.headings.len()).map(|index| 2 + self.column_width(index)).sum::<usize>().saturating_sub(2)
    }

    fn column_width(&self, index: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[index].chars().count());
        cells.chain([self.headings[index].len()]).max().unwrap_or(0)
    }

    /// Whether wrapping columns keep a readable width. Else the terminal breaks the lines, as it does
    /// with kubectl's: better than a column of two letters.
    fn can_fit(&self, width: u16) -> bool {
        let last = self.headings.len().saturating_sub(1);
        let wraps = |index: usize| index == last || self.headings[index].starts_with('*');
        let needed: usize = (0..self.headings.len())
            .map(|index| {
                2 + if wraps(index) {
                    self.column_width(index).min(MIN_WRAPPED)
                } else {
                    self.column_width(index)
                }
            })
            .sum();
        needed <= usize::from(width) + 2
    }
}

/// Paints each word of a laid-out line by what it says.
fn paint_words(screen: &Screen, line: &str, paint: &impl Fn(usize, &str) -> Paint) -> String {
    if !screen.colour {
        return line.to_string();
    }
    let mut text = String::new();
    for (index, word) in line.split(' ').enumerate() {
        if index > 0 {
            text.push(' ');
        }
        text.push_str(&screen.paint(paint(index, word), word));
    }
    text
}

/// Words that mean well or ill wherever they stand in a table.
pub fn mood(_: usize, word: &str) -> Paint {
    match word {
        "Running" | "OK" | "Ready" | "Completed" | "Succeeded" => Paint::Good,
        "WARN" | "Pending" | "Terminating" | "ContainerCreating" | "PodInitializing" | "NotReady" => {
            Paint::Warn
        }
        "FAIL"
        | "Failed"
        | "CrashLoopBackOff"
        | "ImagePullBackOff"
        | "ErrImagePull"
        | "Error"
        | "OOMKilled"
        | "ErrImageNeverPull"
        | "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError" => Paint::Bad,
        _ if word.starts_with("Init:") => Paint::Warn,
        _ => Paint::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(width: Option<u16>) -> Screen {
        Screen { format: Format::Table, colour: false, width }
    }

    fn sample() -> Rows {
        let mut rows = Rows::new(&["NAME", "STATUS", "WAITING ON"]);
        rows.push(vec!["web".into(), "Running".into(), String::new()]);
        rows.push(vec![
            "shop-database".into(),
            "Pending".into(),
            "image registry.example/db:1 to be pulled".into(),
        ]);
        rows
    }

    #[test]
    fn a_table_without_a_terminal_has_its_natural_width() {
        assert_eq!(
            sample().render(&screen(None), |_, _| Paint::Plain),
            "NAME           STATUS   WAITING ON\n\
             web            Running  -\n\
             shop-database  Pending  image registry.example/db:1 to be pulled\n"
        );
    }

    #[test]
    fn sentences_break_between_words_and_keep_their_column() {
        let text = "one two three four five six seven eight";
        let cases = [
            (Some(30), 0, "one two three four five six\nseven eight"),
            (Some(30), 5, "one two three four five\n     six seven eight"),
            (Some(30), 20, text),
            (None, 0, text),
        ];
        for (width, column, want) in cases {
            assert_eq!(screen(width).wrap(text, column), want, "{width:?} {column}");
        }
    }

    #[test]
    fn on_a_narrow_terminal_only_the_last_column_wraps() {
        assert_eq!(
            sample().render(&screen(Some(48)), |_, _| Paint::Plain),
            "NAME           STATUS   WAITING ON\n\
             web            Running  -\n\
             shop-database  Pending  image\n\
             \u{20}                       registry.example/db:1 to\n\
             \u{20}                       be pulled\n"
        );
    }

    #[test]
    fn a_terminal_too_narrow_to_wrap_in_gets_whole_lines() {
        let natural = sample().render(&screen(None), |_, _| Paint::Plain);
        assert_eq!(sample().render(&screen(Some(40)), |_, _| Paint::Plain), natural);
    }

    #[test]
    fn colour_changes_no_column() {
        let plain = sample().render(&screen(None), mood);
        let coloured = sample().render(&Screen { colour: true, ..screen(None) }, mood);
        assert!(coloured.contains("\u{1b}[32mRunning\u{1b}[0m"));
        let mut stripped = String::new();
        let mut rest = coloured.as_str();
        while let Some(start) = rest.find('\u{1b}') {
            stripped.push_str(&rest[..start]);
            rest = &rest[start + rest[start..].find('m').unwrap() + 1..];
        }
        assert_eq!(stripped + rest, plain);
    }

    #[test]
    fn control_bytes_of_others_never_reach_the_terminal() {
        let mut rows = Rows::new(&["NAME", "SAYS"]);
        rows.push(vec!["x".into(), "a\u{1b}]0;owned\u{7}b\nc".into()]);
        assert_eq!(rows.render(&screen(None), mood), "NAME  SAYS\nx     a?]0;owned?b c\n");
    }

    #[test]
    fn yaml_is_sorted_and_quotes_what_would_be_read_otherwise() {
        let value = serde_json::json!({"b": "yes", "a": ["1", 1, null], "c": {"d": "x: y"}});
        let text = yaml(&value).unwrap();
        assert!(text.find("a:").unwrap() < text.find("b:").unwrap());
        let back: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value);
    }
}
