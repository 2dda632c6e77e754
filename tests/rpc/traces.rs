//! Calls that belong to a trace.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock};

use quipu::config::{Log, LogFormat};
use quipu::proto::server::FetchRequest;
use quipu::rpc::Limits;
use tonic::Request;

use crate::support::{Cluster, request};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the services of this process log from now on.
fn lines() -> Lines {
    static LINES: OnceLock<Lines> = OnceLock::new();
    let start = || {
        let lines = Lines::default();
        let (level, writer) =
            ("off,quipu::rpc=debug,quipu::telemetry=error".to_owned(), lines.clone());
        let log = Log { level, format: LogFormat::Json };
        let subscriber = quipu::telemetry::tracing::subscriber(&log, move || writer.clone());
        tracing::subscriber::set_global_default(subscriber.unwrap()).unwrap();
        lines
    };
    LINES.get_or_init(start).clone()
}

/// Spans of the trace in which calls were answered: method, parent, and status if it is one.
fn answered(lines: &Lines) -> Vec<(String, String, String)> {
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let of_trace =
        lines.filter(|line| line["span"]["trace_id"] == TRACE_ID && line["message"] == "answered");
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    of_trace
        .map(|line| {
            (word(&line["span"]["method"]), word(&line["span"]["parent_id"]), word(&line["status"]))
        })
        .collect()
}

fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let text = format!("00-{TRACE_ID}-b7ad6b7169203331-01");
    request.metadata_mut().insert("traceparent", text.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_followed_through_the_nodes_that_a_call_passes() {
    let lines = lines();
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 1).await;
    let others = cluster.others("t", 0).await;
    let mut client = others[0].client().await;
    client.produce(request("t", 0, 1)).await.unwrap();
    assert_eq!(answered(&lines), [], "a call without a trace is in none");
    client.produce(traced(request("t", 0, 1))).await.unwrap();
    let method = "quipu.v1.LogService/Produce".to_owned();
    let through = answered(&lines);
    assert_eq!(through.len(), 2, "the leader and the node that was asked: {through:?}");
    assert!(through.iter().all(|(of, _, status)| *of == method && status.is_empty()));
    assert_ne!(through[0].1, through[1].1, "each has a parent of its own: {through:?}");
    let fetch = FetchRequest { topic: "nothing".into(), ..FetchRequest::default() };
    client.fetch(traced(fetch)).await.unwrap_err();
    assert_eq!(answered(&lines)[2].2, "5", "NOT_FOUND");
    let mut bad = traced(request("t", 0, 1));
    bad.metadata_mut().insert("traceparent", "00-nonsense".parse().unwrap());
    client.produce(bad).await.unwrap();
    assert_eq!(answered(&lines).len(), 3);
}
