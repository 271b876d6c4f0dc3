//! Text -> trees, through serde-saphyr. YAML's rules of Kubernetes: 1.1 booleans (`yes`, `off`) and
//! octal numbers with a leading zero, as `kubectl` reads them. Bounded in depth and in size.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned};

use super::{DocumentError, Field, Node, Place, Value};

/// Deeper nesting than this is refused; a Pod needs about 15.
pub const MAX_DEPTH: usize = 64;
/// Values in one text that is read; a Pod has about 100.
const MAX_NODES: usize = 200_000;

/// Shorter texts are not worth a second thread, bytes.
const WORTH_A_THREAD: usize = 8 * 1024;

/// All documents of a text, empty ones left out. A long text of many is read by two threads.
///
/// # Errors
/// The first place where the text is not YAML, repeats a key or exceeds the bounds.
pub fn parse(source: &str, text: &str) -> Result<Vec<Node>, DocumentError> {
    let Some((front, back)) = halves(text) else { return parse_all(source, text, 0) };
    let lines = u32::try_from(front.bytes().filter(|byte| *byte == b'\n').count()).unwrap_or(u32::MAX);
    let both = std::thread::scope(|scope| {
        let back = scope.spawn(|| parse_all(source, back, lines));
        let front = parse_all(source, front, 0);
        (front, back.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    match both {
        (Ok(mut documents), Ok(back)) => {
            documents.extend(back);
            Ok(documents)
        }
        // Of the text as a whole it is known best what is wrong, and where.
        _ => parse_all(source, text, 0),
    }
}

/// The text cut at a line of `---` near its middle, which begins a document wherever it stands (YAML 1.2, 9.1.2).
/// Directives and `...` belong to documents beside them: a text with any is left whole.
fn halves(text: &str) -> Option<(&str, &str)> {
    let special = |mark: &str| text.starts_with(&mark[1..]) || text.contains(mark);
    if text.len() < WORTH_A_THREAD || special("\n%") || special("\n...") {
        return None;
    }
    let middle = (text.len() / 2..text.len()).find(|at| text.is_char_boundary(*at))?;
    let begins = |at: &usize| text[at + 4..].starts_with(['\n', '\r', ' ']);
    let cut = text[middle..].match_indices("\n---").map(|(at, _)| middle + at).find(begins)?;
    Some(text.split_at(cut + 1))
}

/// Reads one text, before which so many lines of its file stand.
fn parse_all(source: &str, text: &str, lines: u32) -> Result<Vec<Node>, DocumentError> {
    // Of its own for each thread: its count of references would go to and fro between processors.
    let source: std::sync::Arc<str> = std::sync::Arc::from(source);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            flow_nesting_limit: MAX_DEPTH,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Tree>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| syntax_error(&source, &error))?;
    Ok(documents
        .into_iter()
        .map(|document| place_tree((&source, lines), document))
        .filter(|node| node.value != Value::Null)
        .collect())
}

fn syntax_error(source: &std::sync::Arc<str>, error: &serde_saphyr::Error) -> DocumentError {
    let (line, column) = error.location().map_or((0, 0), position);
    // The first line says what; the rest is a drawing or repeats the position.
    let text = error.without_snippet().to_string();
    let message = text.lines().next().unwrap_or("not YAML").to_owned();
    DocumentError { place: Place { source: source.clone(), line, column }, path: String::new(), message }
}

fn position(location: Location) -> (u32, u32) {
    (u32::try_from(location.line()).unwrap_or(0), u32::try_from(location.column()).unwrap_or(0))
}

/// A file, and how many of its lines stand before what is read.
type Within<'a> = (&'a std::sync::Arc<str>, u32);

fn place_of((source, lines): Within<'_>, location: Location) -> Place {
    let (line, column) = position(location);
    // 0 is a place nobody knows.
    let line = if line > 0 { line + lines } else { line };
    Place { source: source.clone(), line, column }
}

fn place_tree(source: Within<'_>, spanned: Spanned<Tree>) -> Node {
    let value = match spanned.value {
        Tree::Scalar(value) => value,
        Tree::List(items) => Value::List(items.into_iter().map(|item| place_tree(source, item)).collect()),
        Tree::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(name, item)| Field {
                    place: place_of(source, name.referenced),
                    name: name.value,
                    node: place_tree(source, item),
                })
                .collect(),
        ),
    };
    Node { place: place_of(source, spanned.referenced), value }
}

/// The tree as serde-saphyr fills it; becomes a [`Node`] right after.
enum Tree {
    Scalar(Value),
    List(Vec<Spanned<Tree>>),
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Int(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(i64::try_from(value).map_or(Value::Uint(value), Value::Int)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Text(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Text(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}
