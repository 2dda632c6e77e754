//! Administrative calls: what is repeated and what is not.

use std::time::{Duration, Instant};

use quipu::client::{Client, ClientConfig, Error, ErrorReason};
use quipu::proto::client as api;

use crate::fake::{Fake, TOPIC};

fn create(name: &str) -> api::CreateTopicRequest {
    api::CreateTopicRequest { name: name.into(), ..Default::default() }
}

#[tokio::test]
async fn a_question_goes_to_another_node_when_one_cannot_answer() {
    let fake = Fake::start(1).await;
    fake.state().refusals = [ErrorReason::Draining, ErrorReason::Starting].into();
    let topic = fake.client().describe_topic(TOPIC).await.unwrap();
    assert_eq!(topic.name, TOPIC);
    assert_eq!(fake.state().asked, [1, 2, 1]);
}

#[tokio::test]
async fn a_question_is_repeated_when_its_outcome_is_unknown() {
    let fake = Fake::start(1).await;
    fake.state().refusals = [ErrorReason::OutcomeUnknown].into();
    fake.client().describe_topic(TOPIC).await.unwrap();
}

#[tokio::test]
async fn a_change_is_not_repeated_when_its_outcome_is_unknown() {
    let fake = Fake::start(1).await;
    fake.state().refusals = [ErrorReason::OutcomeUnknown].into();
    let error = fake.client().create_topic(create("new")).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert_eq!(fake.state().asked.len(), 1);
}

#[tokio::test]
async fn a_change_is_repeated_when_nothing_was_done() {
    let fake = Fake::start(1).await;
    fake.state().refusals = [ErrorReason::NoLeader].into();
    fake.client().create_topic(create("new")).await.unwrap();
    assert_eq!(fake.state().created.len(), 1);
}

#[tokio::test]
async fn a_refusal_is_final() {
    let fake = Fake::start(1).await;
    fake.state().refusals = [ErrorReason::TopicExists].into();
    let error = fake.client().create_topic(create("new")).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyExists(_)), "{error}");
    assert_eq!(error.reason(), ErrorReason::TopicExists);
    assert_eq!(fake.state().asked.len(), 1);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let fake = Fake::start(1).await;
    fake.state().refusals = vec![ErrorReason::NoLeader; 1000].into();
    let started = Instant::now();
    let client = fake.client_with(Duration::from_secs(1));
    let error = client.describe_topic(TOPIC).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)) && error.is_retriable(), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_unavailable_and_not_an_unknown_outcome() {
    let config = ClientConfig::new(["127.0.0.1:1"]);
    let client = Client::new(ClientConfig { timeout: Duration::from_millis(300), ..config });
    let error = client.unwrap().create_topic(create("new")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("address")));
}

#[tokio::test]
async fn one_node_of_several_is_enough() {
    let fake = Fake::start(1).await;
    let dead = "127.0.0.1:1".to_owned();
    let client = Client::new(ClientConfig::new([dead, fake.addresses[0].to_string()])).unwrap();
    for _ in 0..10 {
        client.describe_topic(TOPIC).await.unwrap();
    }
}
