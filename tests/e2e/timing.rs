//! When and how often, from an event to what a receiver got.

use hooksieve_tests::{Receiver, Reply, Server, Setup, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;

const IN: &str = "/in/acme/in";

async fn engine(receiver: &Receiver, more: &str) -> (Setup, Server) {
    let channel = |name: &str| {
        let url = receiver.url(&format!("/{name}"));
        format!("[[channel]]\nname = '{name}'\nkind = 'webhook'\nurl = '{url}'\n")
    };
    let tenant = format!(
        "[[source]]\nname = 'in'\nkind = 'json'\nopen = true\n\
         [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n{}{}",
        channel("mail"),
        channel("boss"),
    );
    let setup = Setup::new().tenant("acme", &tenant).config(more);
    let server = setup.start().await;
    (setup, server)
}

/// Sends an event whose rule notifies, with this timing; gives the event's id.
async fn notified(server: &Server, title: &str, timing: Value) -> String {
    let mut event = json!({ "do": "notify", "title": title });
    let keys = timing.as_object().cloned().unwrap_or_default();
    event.as_object_mut().expect("a map").extend(keys);
    server.post_json(IN, &event.to_string()).await.id()
}

/// The first delivery of an event, once its rule has decided.
async fn first(server: &Server, event: &str) -> Value {
    until("a delivery", || async {
        let story = server.story(event).await;
        let delivery = story["deliveries"].get(0).cloned();
        delivery.filter(|it| it.is_object())
    })
    .await
}

/// What arrived, as paths and titles.
fn arrived(receiver: &Receiver) -> Vec<(String, String)> {
    let got = receiver.received();
    let told = got.iter().map(|it| {
        let title = it.json()["data"]["message"]["title"].clone();
        (it.path.clone(), title.as_str().unwrap_or("").to_owned())
    });
    told.collect()
}

fn pair(path: &str, title: &str) -> (String, String) {
    (path.to_owned(), title.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_survives_a_kill_and_lists_what_it_gathered() {
    let receiver = Receiver::start().await;
    let (setup, server) = engine(&receiver, "").await;
    let timing = || json!({ "digest_s": 6, "link": "https://example.com/1" });
    let one = notified(&server, "one", timing()).await;
    let two = notified(&server, "two", timing()).await;
    assert_eq!(first(&server, &one).await["state"], "pending");
    let gathered = first(&server, &two).await;
    assert_eq!(gathered["state"], "gathered");
    server.kill();

    let server = setup.start().await;
    let three = notified(&server, "three", json!({ "digest_s": 6 })).await;
    assert_eq!(first(&server, &three).await["state"], "gathered");
    let urgent = json!({ "digest_s": 6, "critical": true });
    notified(&server, "urgent", urgent).await;
    let got = receiver.wait_for(2).await;
    assert_eq!(
        arrived(&receiver),
        [pair("/mail", "urgent"), pair("/mail", "one (and 2 more)")]
    );
    assert_eq!(
        got[1].json()["data"]["message"]["text"],
        "• one\n  https://example.com/1\n• two\n  https://example.com/1\n• three"
    );
    let digest = first(&server, &one).await;
    assert_eq!(
        (&digest["gathered"], &digest["id"]),
        (&json!(3), &gathered["other"])
    );
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repetitions_and_floods_are_suppressed_across_a_restart() {
    let receiver = Receiver::start().await;
    let (setup, server) = engine(&receiver, "").await;
    let sent = notified(&server, "sent", json!({ "dedupe_s": 600, "key": "a" })).await;
    for n in 0..4 {
        let throttled = json!({ "throttle_s": 3, "count": 2, "key": "b" });
        notified(&server, &format!("flood {n}"), throttled).await;
    }
    server.settle().await;
    server.stop().await;
    let server = setup.start().await;
    let again = notified(&server, "again", json!({ "dedupe_s": 600, "key": "a" })).await;
    let again = first(&server, &again).await;
    assert_eq!(again["state"], "suppressed");
    assert_eq!(again["other"], first(&server, &sent).await["id"]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let throttled = json!({ "throttle_s": 3, "count": 2, "key": "b" });
    notified(&server, "later", throttled).await;
    let got = receiver.wait_for(4).await;
    let mut all = arrived(&receiver);
    all.sort();
    let expected = ["flood 0", "flood 1", "later", "sent"];
    assert_eq!(all, expected.map(|title| pair("/mail", title)));
    assert_eq!(
        got[3].json()["data"]["message"]["fields"],
        json!([{ "name": "Held back before", "value": "2" }])
    );
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_acknowledges_is_escalated() {
    let receiver = Receiver::start().await;
    let config = "[server]\npublic_url = 'https://hooks.example.com/base'\n";
    let (_setup, server) = engine(&receiver, config).await;
    notified(&server, "nobody", json!({ "escalate_s": 1 })).await;
    receiver.wait_for(2).await;
    assert_eq!(
        arrived(&receiver),
        [pair("/mail", "nobody"), pair("/boss", "nobody")]
    );

    let event = notified(&server, "somebody", json!({ "escalate_s": 600 })).await;
    let got = receiver.wait_for(3).await;
    let field = &got[2].json()["data"]["message"]["fields"][0];
    assert_eq!(field["name"], "Acknowledge");
    let link = field["value"].as_str().expect("a link");
    let path = link
        .strip_prefix("https://hooks.example.com/base")
        .expect("the public address");
    // Looking changes nothing; a wrong signature is nobody's.
    let page = server.call_with(Method::GET, path, None).await;
    assert_eq!(
        (page.status, page.header("cache-control")),
        (200, "no-store")
    );
    assert!(page.body.contains("<form method=\"post\""), "{}", page.body);
    assert!(
        page.header("content-security-policy")
            .starts_with("default-src 'none'")
    );
    let wrong = format!("{}AAAA", &path[..path.len() - 4]);
    for method in [Method::GET, Method::POST] {
        let refused = server.call_with(method, &wrong, None).await;
        refused.problem(404, "unknown-link");
    }
    let states = async || -> Vec<String> {
        let story = server.story(&event).await;
        let all = story["deliveries"].as_array().expect("deliveries");
        all.iter()
            .map(|it| it["state"].as_str().unwrap_or("").to_owned())
            .collect()
    };
    // What has arrived is noted a little later.
    until("the first is delivered", || async {
        (states().await == ["delivered", "pending"]).then_some(())
    })
    .await;
    for _ in 0..2 {
        let done = server.call_with(Method::POST, path, None).await;
        assert_eq!(done.status, 200, "{}", done.body);
    }
    assert_eq!(states().await, ["delivered", "acknowledged"]);

    // The same by the operator's call; and what does not escalate has nothing to acknowledge.
    let event = notified(&server, "called", json!({ "escalate_s": 600 })).await;
    let id = first(&server, &event).await["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let call = format!("/v1/deliveries/{id}/acknowledge");
    let done = server.call(Method::POST, &call).await;
    assert_eq!(done.json()["outcome"], "acknowledged");
    let plain = notified(&server, "plain", json!({})).await;
    let id = first(&server, &plain).await["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let call = format!("/v1/deliveries/{id}/acknowledge");
    server
        .call(Method::POST, &call)
        .await
        .problem(404, "not-found");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_channel_falls_back_on_another() {
    let receiver = Receiver::answering(|_, request| {
        Reply::status(if request.path == "/mail" { 400 } else { 200 })
    })
    .await;
    let (_setup, server) = engine(&receiver, "").await;
    let event = notified(&server, "fallen", json!({ "fallback": "boss" })).await;
    receiver.wait_for(2).await;
    let story = server.settled(&event).await;
    let deliveries = &story["deliveries"];
    assert_eq!(deliveries[0]["state"], "fallen-back");
    assert_eq!(deliveries[0]["other"], deliveries[1]["id"]);
    assert_eq!(deliveries[1]["state"], "delivered");
    assert_eq!(deliveries[1]["fallback_of"], deliveries[0]["id"]);
    let got = receiver.received();
    assert_ne!(got[0].id(), got[1].id());
    let dead = server.get("/v1/dead").await.json();
    assert_eq!(dead["items"], json!([]), "it arrived elsewhere");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_waits_for_its_time_and_its_hours() {
    let receiver = Receiver::start().await;
    let (_setup, server) = engine(&receiver, "").await;
    let later = notified(&server, "later", json!({ "after_s": 2 })).await;
    assert_eq!(first(&server, &later).await["state"], "pending");
    // Any window, and the one that is never open within a test: the hour after the next.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let hour = (now.expect("after 1970").as_secs() / 3_600 + 2) % 24;
    let closed = format!("{hour:02}:00-{:02}:00 UTC", (hour + 1) % 24);
    let closed = json!({ "window": closed });
    let waiting = notified(&server, "waiting", closed.clone()).await;
    let mut urgent = closed;
    urgent["critical"] = json!(true);
    notified(&server, "urgent", urgent).await;
    notified(&server, "open", json!({ "window": "00:00-24:00 UTC" })).await;
    let got = receiver.wait_for(3).await;
    let mut all = arrived(&receiver);
    all.sort();
    assert_eq!(all, ["later", "open", "urgent"].map(|it| pair("/mail", it)));
    let of = |title: &str| {
        let found = got
            .iter()
            .find(|it| it.json()["data"]["message"]["title"] == title);
        found.expect("it arrived").at
    };
    assert!(of("later") > of("open"));
    let waiting = first(&server, &waiting).await;
    assert_eq!(waiting["state"], "pending");
    let due: String = waiting["at"].as_str().expect("a time").into();
    assert!(due.contains(&format!("T{hour:02}:00:00")), "{due}");
    // It would wait for hours.
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timing_that_cannot_be_is_a_failure_of_the_rule() {
    let receiver = Receiver::start().await;
    let (_setup, server) = engine(&receiver, "").await;
    let event = notified(&server, "x", json!({ "window": "always" })).await;
    let story = until("a decision", || async {
        let story = server.story(&event).await;
        (story["decided"] == true).then_some(story)
    })
    .await;
    assert_eq!(
        story["decisions"][0]["error"],
        "its decision is not valid: actions[0].timing: window: \"always\" is no window; a window is written as \"Mo-Fr 09:00-18:00 Asia/Shanghai\""
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_gone_is_disabled_until_someone_enables_it() {
    let receiver = Receiver::answering(|n, request| {
        Reply::status(if request.path == "/mail" && n == 0 {
            410
        } else {
            200
        })
    })
    .await;
    let (setup, server) = engine(&receiver, "").await;
    let gone = notified(&server, "gone", json!({})).await;
    let story = server.settled(&gone).await;
    assert_eq!(story["deliveries"][0]["state"], "dead");
    // Its tenant hears of it, by an event of its own that the rules see like any other.
    let disabled = until("the channel to be disabled", || async {
        let event = notified(&server, "later", json!({})).await;
        let story = server.settled(&event).await;
        let delivery = story["deliveries"][0].clone();
        (delivery["state"] == "dead").then_some(delivery)
    })
    .await;
    let reason = disabled["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("answered 410; enable it, then redrive this"),
        "{reason}"
    );
    let sent = receiver.count();
    server.stop().await;

    let server = setup.start().await;
    let still = notified(&server, "still", json!({})).await;
    let story = server.settled(&still).await;
    assert_eq!(story["deliveries"][0]["state"], "dead");
    assert_eq!(receiver.count(), sent, "nothing was sent");
    let enable = "/v1/channels/acme/mail/enable";
    let enabled = server.call(Method::POST, enable).await.json();
    assert_eq!(enabled["was_disabled"], true);
    let enabled = server.call(Method::POST, enable).await.json();
    assert_eq!(enabled["was_disabled"], false);
    notified(&server, "again", json!({})).await;
    receiver.wait_for(sent + 1).await;
    server.end().await;
}
