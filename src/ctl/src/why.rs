//! `longshore why`: one sentence, what to do next, and the facts behind it.

use longshore_core::wire::WhyView;

use crate::error::CliError;
use crate::output::{Paint, Screen, print, structured};
use crate::pods::Node;
use crate::target::PodName;

/// Explains a pod, or the node where `subject` is `node`.
pub async fn run(
    node: &Node,
    screen: &Screen,
    subject: &str,
    namespace: Option<&str>,
) -> Result<(), CliError> {
    let view: WhyView = if matches!(subject, "node" | "node/") {
        node.daemon.get("/v1/why/node").await?
    } else {
        let name = PodName::parse(subject, namespace)?;
        let pods: Vec<longshore_core::wire::PodView> = node.daemon.get("/v1/pods").await?;
        let key = name.choose(pods.iter().map(|pod| &pod.key))?;
        node.daemon.get(&format!("/v1/why/{}/{}", key.namespace, key.name)).await?
    };
    if structured(screen, &view)? {
        return Ok(());
    }
    print(&render(&view, screen))
}

/// The answer as text.
pub fn render(view: &WhyView, screen: &Screen) -> String {
    let paint = if view.ok { Paint::Good } else { Paint::Bad };
    let whole = screen.wrap(&format!("{}: {}", view.subject, view.sentence), 2);
    let (subject, sentence) = whole.split_at(view.subject.len().min(whole.len()));
    let mut text = format!("{}{}\n", screen.paint(Paint::Bold, subject), painted(screen, paint, sentence));
    if !view.next_steps.is_empty() {
        text.push_str(if view.ok { "\nto look further:\n" } else { "\nwhat to do:\n" });
        for step in &view.next_steps {
            text.push_str(&format!("  {}\n", screen.wrap(step, 4)));
        }
    }
    if !view.facts.is_empty() {
        text.push_str("\nbecause:\n");
        for fact in &view.facts {
            text.push_str(&format!("  {}\n", painted(screen, Paint::Dim, &screen.wrap(fact, 4))));
        }
    }
    text
}

/// Painted line by line: a colour that reaches over an indent shows in some terminals.
fn painted(screen: &Screen, paint: Paint, text: &str) -> String {
    let line = |line: &str| {
        let words = line.trim_start();
        format!("{}{}", &line[..line.len() - words.len()], screen.paint(paint, words))
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn the_sentence_comes_first_and_the_mend_next() {
        let view = WhyView {
            subject: "pod default/web".into(),
            ok: false,
            sentence: "waits for ConfigMap default/page, which does not exist".into(),
            next_steps: vec!["add a ConfigMap named page to the manifests".into()],
            facts: vec!["volume page needs it".into()],
        };
        let screen = Screen { format: Format::Table, colour: false, width: Some(80) };
        assert_eq!(
            render(&view, &screen),
            "pod default/web: waits for ConfigMap default/page, which does not exist\n\n\
             what to do:\n  add a ConfigMap named page to the manifests\n\nbecause:\n  volume page needs it\n"
        );
        let narrow = Screen { width: Some(40), colour: true, ..screen };
        assert_eq!(
            render(&view, &narrow),
            "\u{1b}[1mpod default/web\u{1b}[0m\u{1b}[31m: waits for ConfigMap\u{1b}[0m\n  \u{1b}[31mdefault/page, which does not exist\u{1b}[0m\n\n\
             what to do:\n  add a ConfigMap named page to the\n    manifests\n\nbecause:\n  \u{1b}[2mvolume page needs it\u{1b}[0m\n"
        );
        let piped = Screen { width: None, ..screen };
        assert_eq!(render(&view, &piped).lines().next().unwrap().len(), 71);
    }
}
