//! How the process logs: one line for each event on standard error, as text or JSON.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt as _;

use ::tracing::Span;
use ::tracing::subscriber::Subscriber;
use uuid::Uuid;

use crate::config::{Log, LogFormat};
use crate::types::TraceContext;

/// Makes the process log as `log` says, from now to its end.
///
/// # Errors
/// When the process has a logger already, or `level` is none.
pub fn start(log: &Log) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    subscriber(log, std::io::stderr)?.try_init()?;
    Ok(())
}

/// Returns what [`start`] installs, writing to `writer`.
///
/// # Errors
/// When `level` is none. The configuration has checked it.
pub fn subscriber<W>(
    log: &Log,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + use<W>, tracing_subscriber::filter::ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let targets: Targets = log.level.parse()?;
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Text => fmt::layer().with_ansi(false).with_writer(writer).boxed(),
        LogFormat::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_current_span(true);
            layer.with_span_list(false).with_writer(writer).boxed()
        }
    };
    Ok(Registry::default().with(lines.with_filter(targets)))
}

/// Returns the span of one request, with an id of its own and the id of its trace. Every line that
/// is logged in it carries both.
pub fn request_span(method: &str, trace: &TraceContext) -> Span {
    let request_id = Uuid::new_v4().simple();
    let (trace_id, parent_id) = (trace.trace_id(), trace.parent_id());
    // Not left out however little is logged: what is logged says which request it was about.
    ::tracing::error_span!("request", method, %request_id, %trace_id, %parent_id)
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat, act: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = Log { level: level.to_owned(), format };
        let subscriber = subscriber(&log, move || writer.clone()).unwrap();
        ::tracing::subscriber::with_default(subscriber, act);
        lines.text()
    }

    #[test]
    fn levels_hold_for_targets() {
        let act = || {
            ::tracing::info!(target: "quipu::raft", "one");
            ::tracing::debug!(target: "quipu::raft", "two");
            ::tracing::info!(target: "h2", "three");
            ::tracing::warn!(target: "h2", "four");
        };
        let text = logged("warn,quipu::raft=debug", LogFormat::Text, act);
        let has = |word| text.contains(word);
        assert_eq!((has("one"), has("two"), has("three"), has("four")), (true, true, false, true));
        assert_eq!(logged("off", LogFormat::Text, act), "");
    }

    #[test]
    fn a_json_line_says_which_request_it_belongs_to() {
        let trace: TraceContext =
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let text = logged("info", LogFormat::Json, || {
            let _entered = request_span("LogService/Produce", &trace).entered();
            ::tracing::info!(offset = 7, "appended\nwith \"quotes\"");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["offset"], 7);
        assert_eq!(line["message"], "appended\nwith \"quotes\"");
        assert_eq!(line["span"]["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(line["span"]["method"], "LogService/Produce");
        assert_eq!(line["span"]["request_id"].as_str().unwrap().len(), 32);
    }
}
