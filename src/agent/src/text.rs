//! Words for people: an error with its causes on one line. No wording of single errors lives here.

use std::error::Error;

/// The error and what caused it, outermost first: `write /x/y: no space left on device`.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    // An answer of another program may have several lines; conditions and events have one.
    if text.contains('\n') { text.replace('\n', " ") } else { text }
}
