//! A store as a whole: exported, imported, checked.

use super::*;

/// A store with a bit of everything, closed.
fn filled(path: &Path) {
    let store = open(path);
    Runtime::new().unwrap().block_on(async {
        for n in 0..40 {
            let event = new_event("a", &n.to_string(), &"x".repeat(n * 2_000));
            let id = store.append(event).await.unwrap().id;
            let mut commit = commit_due("a", id, "triage", &[NOW_MS, NOW_MS + 1]);
            commit.held.extend((n == 3).then(|| held("a", id, "other")));
            let first = commit.deliveries[0].id;
            store.commit(&name("a"), vec![commit]).await.unwrap();
            let settlement = match n % 3 {
                0 => Settlement::Delivered,
                1 => Settlement::RetryAt { due_ms: NOW_MS + 7 },
                _ => Settlement::Dead {
                    reason: "gone".to_owned(),
                },
            };
            let tried = attempt(NOW_MS, None);
            store.settle(first, tried, settlement).await.unwrap();
        }
        store.append(anonymous("b", "open")).await.unwrap();
        let line = crate::store::Line {
            tenant: name("a"),
            channel: name("team"),
        };
        let reason = "gone".to_owned();
        let disabled = Disabled { at_ms: 1, reason };
        store.switch(&line, Some(disabled)).await.unwrap();
    });
}

#[test]
fn an_export_comes_back_as_it_was() {
    let folder = TempDir::new().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    filled(&from);
    let mut bytes = Vec::new();
    let rows = export(&from, &mut bytes, NOW_MS, &mut |_| {}).unwrap();
    assert_eq!(
        import(&to, &mut bytes.as_slice(), &mut |_| {}).unwrap(),
        rows
    );
    let mut again = Vec::new();
    export(&to, &mut again, NOW_MS, &mut |_| {}).unwrap();
    assert!(bytes == again);
    let report = check(&to, &mut |_| {}).unwrap();
    assert!(report.told.is_empty(), "{:?}", report.told);
    assert_eq!(report.kinds["event"].rows, 41);
    assert_eq!(report.kinds["due"].rows, 40 + 13);

    // It never goes over what is there, and half of one leaves nothing.
    let error = import(&to, &mut bytes.as_slice(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, TransferError::Exists(_)), "{error}");
    let new = folder.path().join("new");
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    for damaged in [
        &bytes[..bytes.len() / 2],
        &bytes[..bytes.len() - 1],
        &changed,
    ] {
        let error = import(&new, &mut &*damaged, &mut |_| {}).unwrap_err();
        assert!(matches!(error, TransferError::Damaged { .. }), "{error}");
    }
    let error = import(&new, &mut b"PK".as_slice(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, TransferError::NoExport(_)), "{error}");
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2);
}

#[test]
fn a_check_names_what_does_not_fit() {
    let folder = TempDir::new().unwrap();
    filled(folder.path());
    let shared = open_folder(folder.path(), 1 << 20, 0, false).unwrap();
    let last = |kind: u8| {
        let rows = shared.db.range([kind]..[kind + 1]);
        rows.keys().next_back().unwrap().unwrap()
    };
    // A delivery, and a further piece of an event; and bytes that nobody wrote.
    for kind in [keys::DELIVERY, keys::PIECE] {
        shared.db.remove(last(kind)).unwrap();
    }
    shared.db.insert(last(keys::HELD), b"\0\0\xff").unwrap();
    shared.db.insert(b"!", b"?").unwrap();
    shared.db.flush().unwrap();
    drop(shared);
    let report = check(folder.path(), &mut |_| {}).unwrap();
    let told = report.told.join("\n");
    for part in [
        "is missing",
        "piece 1 of 2 is missing",
        "held event ",
        "there is no such kind of row",
    ] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
    let nothing = check(&folder.path().join("nothing"), &mut |_| {}).unwrap_err();
    assert!(nothing.to_string().ends_with("there is no store here"));
}
