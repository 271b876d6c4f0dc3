//! What a command says when it cannot do what was asked: one line, and one line of what to do.

use std::fmt;

/// The command ran and the answer is no: not found, refused, a check failed.
pub const FAILED: u8 = 1;
/// The command was not understood.
pub const USAGE: u8 = 2;

/// A failed command, ready to be shown.
#[derive(Debug)]
pub struct CliError {
    /// One line, lower case, naming the object.
    pub message: String,
    /// One line: what to do about it.
    pub hint: Option<String>,
    /// The process's exit code.
    pub code: u8,
}

impl CliError {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: FAILED }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: USAGE }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error with the causes it carries, in one line.
    pub fn from_chain(context: &str, error: &dyn std::error::Error) -> Self {
        Self::new(format!("{context}: {}", chain(error)))
    }
}

/// An error and its sources in one line, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", one_line(&self.message))?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {}", one_line(hint))?;
        }
        Ok(())
    }
}

impl std::error::Error for CliError {}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<longshore_cri::CriError> for CliError {
    fn from(error: longshore_cri::CriError) -> Self {
        Self::new(error.one_line()).hint("longshore doctor checks the runtime")
    }
}

/// Texts from the runtime and from files may hold line breaks and control bytes; a terminal must
/// not obey them.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().map(|c| if c.is_control() { '?' } else { c }));
    }
    line
}

/// Cuts the runtime's 64-digit ids in a text to the 13 digits its own tools show.
pub fn short_ids(text: &str) -> String {
    let is_id = |word: &str| word.len() >= 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = text.split(' ').map(|word| if is_id(word) { &word[..13] } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_and_a_hint_line() {
        let error = CliError::new("no pod\n\u{1b}[31mweb").hint("look at\nlongshore ps");
        assert_eq!(error.to_string(), "error: no pod ?[31mweb\nhint: look at longshore ps");
    }

    #[test]
    fn ids_are_cut_and_other_words_are_not() {
        let id = "0bb7c145be89b54999c46cc8032e4f59b2c3b20327a21198eafa27d5287b2896";
        assert_eq!(short_ids(&format!("remove container {id} now")), "remove container 0bb7c145be89b now");
        assert_eq!(
            short_ids("create container internationalisation-of-everything-x"),
            "create container internationalisation-of-everything-x"
        );
    }

    #[test]
    fn causes_follow_and_are_not_repeated() {
        let inner = std::io::Error::other("no route");
        let error = CliError::from_chain("cannot ask", &inner);
        assert_eq!(error.message, "cannot ask: no route");
    }
}
