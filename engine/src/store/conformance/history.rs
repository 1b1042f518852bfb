//! What is over, and how it goes.

use super::*;

/// A whole sweep; how many events went.
async fn forget(store: &TestStore, before_ms: i64) -> usize {
    let (mut from, mut forgotten) = (None, 0);
    loop {
        let swept = store.forget(before_ms, None, from).await.unwrap();
        assert!(swept.forgotten <= swept.seen);
        forgotten += swept.forgotten;
        from = swept.next;
        if from.is_none() {
            return forgotten;
        }
    }
}

async fn settle(store: &TestStore, id: DeliveryId, at_ms: i64, settlement: Settlement) {
    let tried = attempt(at_ms, None);
    store.settle(id, tried, settlement).await.unwrap();
}

fn gone() -> Settlement {
    Settlement::Dead {
        reason: "gone".to_owned(),
    }
}

async fn is_known(store: &TestStore, id: DeliveryId) -> bool {
    let delivery = store.delivery(id).await.unwrap();
    match delivery {
        Some(delivery) => {
            let story = store.story(delivery.event).await.unwrap();
            assert!(story.is_some_and(|story| story.deliveries.contains(&delivery)));
            true
        }
        None => false,
    }
}

pub(in crate::store) async fn what_is_over_is_forgotten(store: TestStore) {
    let later_ms = NOW_MS + 1;
    // Two deliveries, of which one waits; a dead letter; one that is over, with a long row.
    let waits = given(&store, "a", &[NOW_MS, NOW_MS]).await;
    settle(&store, waits[0], NOW_MS, Settlement::Delivered).await;
    let dead = given(&store, "b", &[NOW_MS]).await[0];
    settle(&store, dead, NOW_MS, gone()).await;
    let long = anonymous("c", &"x".repeat(200_000));
    let over = store.append(long).await.unwrap().id;
    let commit = commit_due("c", over, "triage", &[NOW_MS]);
    let delivered = commit.deliveries[0].id;
    store.commit(&name("c"), vec![commit]).await.unwrap();
    settle(&store, delivered, NOW_MS, Settlement::Delivered).await;
    // Held; dropped by every rule; not decided.
    let holds = store.append(anonymous("d", "x")).await.unwrap().id;
    let mut commit = commit_due("d", holds, "triage", &[]);
    commit.held.push(held("d", holds, "triage"));
    store.commit(&name("d"), vec![commit]).await.unwrap();
    let unseen = store.append(anonymous("e", "x")).await.unwrap().id;
    let mut commit = commit_due("e", unseen, "triage", &[]);
    commit.decisions.clear();
    store.commit(&name("e"), vec![commit]).await.unwrap();
    let open = store.append(anonymous("e", "x")).await.unwrap().id;

    assert_eq!(forget(&store, NOW_MS).await, 0, "nothing is old");
    assert_eq!(forget(&store, later_ms).await, 2);
    for gone in [over, unseen] {
        assert_eq!(store.event(gone).await.unwrap(), None);
    }
    assert!(!is_known(&store, delivered).await);
    for kept in [waits[0], waits[1], dead] {
        assert!(is_known(&store, kept).await);
    }
    assert!(store.event(open).await.unwrap().is_some());
    assert_eq!(forget(&store, later_ms).await, 0);

    // Each goes once it is over.
    settle(&store, waits[1], NOW_MS, Settlement::Delivered).await;
    assert_eq!(forget(&store, later_ms).await, 1);
    assert!(!is_known(&store, waits[0]).await);
    let record = decided(holds, "triage");
    let resolved = store.resolve_held(&name("d"), record, Vec::new()).await;
    assert!(resolved.unwrap());
    assert_eq!(forget(&store, later_ms).await, 1);
    let new = store.redrive(dead, NOW_MS).await.unwrap().unwrap();
    assert_eq!(forget(&store, later_ms).await, 0, "it goes out again");
    settle(&store, new.id, NOW_MS, Settlement::Delivered).await;
    assert_eq!(forget(&store, later_ms).await, 1);
    store
        .commit(&name("e"), vec![commit_due("e", open, "triage", &[])])
        .await
        .unwrap();
    assert_eq!(forget(&store, later_ms).await, 1);
    assert_eq!(store.usage().await.unwrap().oldest_ms, None);

    // Ids go on from where they were, and what comes next is decided.
    let next = store.append(anonymous("e", "x")).await.unwrap().id;
    assert!(next > open);
    assert_eq!(backlog(&store, "e", 9).await, [next]);
}

pub(in crate::store) async fn a_purged_dead_letter_is_none_any_more(store: TestStore) {
    let ids = given(&store, "a", &[NOW_MS, NOW_MS]).await;
    settle(&store, ids[0], 30, gone()).await;
    settle(&store, ids[1], 31, Settlement::Delivered).await;
    let no_dead_letters = vec![ids[1], DeliveryId(uuid::Uuid::nil())];
    assert_eq!(store.purge(no_dead_letters).await.unwrap(), 0);
    assert_eq!(store.purge(vec![ids[0], ids[0]]).await.unwrap(), 1);
    let purged = store.delivery(ids[0]).await.unwrap().unwrap();
    let reason = "gone".to_owned();
    assert_eq!(purged.state, State::Purged { at_ms: 30, reason });
    assert_eq!(purged.attempts.len(), 1);
    let dead = store.dead(&Which::default(), 9).await.unwrap();
    assert_eq!(dead, DeadPage::default());
    assert_eq!(store.redrive(ids[0], 40).await.unwrap(), None);
    assert_eq!(forget(&store, NOW_MS + 1).await, 1);
}

pub(in crate::store) async fn dead_letters_come_in_pages(store: TestStore) {
    let mut all = Vec::new();
    for (n, tenant) in ["b", "a", "b", "a", "a"].into_iter().enumerate() {
        let event = store.append(anonymous(tenant, "x")).await.unwrap().id;
        let mut commit = commit_due(tenant, event, "triage", &[NOW_MS, NOW_MS]);
        commit.deliveries[1].channel = name("chat");
        let ids: Vec<_> = commit.deliveries.iter().map(|it| it.id).collect();
        store.commit(&name(tenant), vec![commit]).await.unwrap();
        for id in &ids {
            settle(&store, *id, 10 + n as i64, gone()).await;
        }
        all.extend(ids.iter().map(|id| (10 + n as i64, *id, tenant)));
        all.sort_by_key(|(at_ms, id, _)| (*at_ms, *id));
    }
    let paged = async |which: Which, limit| {
        let (mut which, mut found) = (which, Vec::new());
        loop {
            let page = store.dead(&which, limit).await.unwrap();
            assert!(page.deliveries.len() <= limit);
            found.extend(page.deliveries.into_iter().map(|it| it.id));
            which.after = page.next;
            if which.after.is_none() {
                return found;
            }
        }
    };
    let ids: Vec<_> = all.iter().map(|(_, id, _)| *id).collect();
    for limit in [1, 3, 10, 99] {
        assert_eq!(paged(Which::default(), limit).await, ids);
    }
    let which = Which {
        tenant: Some(name("a")),
        before_ms: Some(14),
        ..Which::default()
    };
    let of_a = all
        .iter()
        .filter(|(at_ms, _, of)| *of == "a" && *at_ms < 14);
    let of_a: Vec<_> = of_a.map(|(_, id, _)| *id).collect();
    assert_eq!((of_a.len(), paged(which, 3).await), (4, of_a));
    let chat = Which {
        channel: Some(name("chat")),
        ..Which::default()
    };
    let found = paged(chat, 2).await;
    assert_eq!(found.len(), 5);
    for id in found {
        let delivery = store.delivery(id).await.unwrap().unwrap();
        assert_eq!(delivery.channel, name("chat"));
    }
}
