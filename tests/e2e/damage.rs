//! A disk that changed what it was given: nothing is said to be taken of which nobody can be told, and what can be
//! read still is saved.

use hooksieve_tests::{Server, Setup, cli};
use serde_json::json;
use std::sync::Arc;

const TENANT: &str = "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n";
const EVENTS: usize = 300;

async fn post(server: &Server) -> hooksieve_tests::Answer {
    let event = json!({ "text": "x".repeat(60_000) }).to_string();
    server.post_json("/in/acme/open", &event).await
}

/// Asks for all events, page by page; the answer that is none, if there is one.
async fn listed(server: &Server) -> Option<hooksieve_tests::Answer> {
    let mut from = String::new();
    loop {
        let path = format!("/v1/tenants/acme/events?limit=50{from}");
        let page = server.get(&path).await;
        if page.status != 200 {
            return Some(page);
        }
        let next = page.json()["next"].as_str().map(str::to_owned)?;
        from = format!("&after={next}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_says_so_takes_nothing_and_can_be_saved() {
    let setup = Arc::new(Setup::new().tenant("acme", TENANT));
    let server = setup.start().await;
    for _ in 0..EVENTS {
        post(&server).await.id();
    }
    server.settle().await;
    server.stop().await;
    // Where everything is, is in the snapshot from here on.
    setup.start().await.stop().await;
    let db = setup.data().join("store/db");
    let whole = std::fs::read(&db).unwrap();
    let (mut told, mut refused) = (0, 0);
    let (data, folder) = (setup.data(), tempfile::tempdir().unwrap());
    let data = data.to_str().unwrap();
    for part in 1..8 {
        let mut damaged = whole.clone();
        let at = whole.len() / 8 * part;
        damaged[at..at + 20_000].fill(0xa5);
        std::fs::write(&db, &damaged).unwrap();
        let starts = setup.clone();
        let started = tokio::spawn(async move { starts.start().await }).await;
        let Ok(server) = started else {
            let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
            assert_eq!(code, 2, "{said}");
            assert!(said.contains("hooksieve store "), "{said}");
            refused += 1;
            std::fs::write(&db, &whole).unwrap();
            continue;
        };
        let met = listed(&server).await;
        if let Some(answer) = &met {
            told += 1;
            let detail = answer.problem(503, "store");
            assert!(detail.contains("is damaged"), "{detail}");
            assert!(detail.contains("hooksieve store check --data "), "{detail}");
            let answer = post(&server).await;
            assert_eq!(answer.status, 503, "{}", answer.body);
            assert_eq!(server.get("/readyz").await.status, 503);
        }
        server.kill();
        if met.is_some() {
            let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
            assert_eq!(code, 2, "{said}");
            assert!(said.contains("is damaged"), "{said}");
        }
        let checked = cli(&["store", "check", "--data", data]);
        assert_eq!(
            checked.code == 0,
            met.is_none(),
            "{}{}",
            checked.stdout,
            checked.stderr
        );
        let file = folder.path().join(part.to_string());
        let file = file.to_str().unwrap();
        let exported = cli(&["store", "export", "--readable", file, "--data", data]);
        assert_eq!(exported.code == 0, met.is_none(), "{}", exported.stderr);
        if met.is_some() {
            assert!(
                checked.stdout.contains("cannot be read"),
                "{}",
                checked.stdout
            );
            assert!(
                !checked.stderr.contains("panicked at"),
                "{}",
                checked.stderr
            );
            let new = folder.path().join(format!("new-{part}"));
            let new = new.to_str().unwrap();
            let imported = cli(&["store", "import", file, "--data", new]);
            assert_eq!(imported.code, 0, "{}", imported.stderr);
        }
        std::fs::write(&db, &whole).unwrap();
        let checked = cli(&["store", "check", "--data", data]);
        assert_eq!(checked.code, 0, "{}{}", checked.stdout, checked.stderr);
    }
    assert!(
        told > 0,
        "nothing was damaged; {refused} starts were refused"
    );
}
