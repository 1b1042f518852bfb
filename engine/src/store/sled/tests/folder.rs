//! What a kill and a damaged disk leave in a store's folder.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// The ids of events that a store was given, which is closed again.
fn filled(path: &Path, count: usize) -> Vec<EventId> {
    let store = open(path);
    let body = "x".repeat(8_000);
    Runtime::new().unwrap().block_on(async {
        let mut ids = Vec::new();
        for n in 0..count {
            let appended = store.append(anonymous("a", &format!("{n} {body}"))).await;
            ids.push(appended.unwrap().id);
        }
        ids
    })
}

fn found(store: &SledStore) -> Vec<EventId> {
    let tenant = name("a");
    let events = store.backlog(&tenant, None, usize::MAX);
    let events = Runtime::new().unwrap().block_on(events).unwrap();
    events.iter().map(|event| event.id).collect()
}

#[test]
fn a_snapshot_that_a_kill_left_unfinished_is_set_aside() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let mut ids = filled(path, 100);
    for round in 0..12 {
        // As long as the name of the newest one, and greater.
        let newest = names(path)
            .into_iter()
            .rfind(|name| name.starts_with("snap."));
        let newest = newest.unwrap_or_else(|| "snap.0000000000000000".to_owned());
        let unfinished = format!("{newest}{round}.generating");
        fs::write(path.join(&unfinished), "a part of a snapshot").unwrap();
        ids.extend(filled(path, 1));
        assert_eq!(found(&open(path)), ids);
        assert!(
            names(path)
                .iter()
                .all(|name| !name.ends_with(".generating"))
        );
        assert!(names(&path.join("set-aside")).contains(&unfinished));
    }
    assert_eq!(
        names(&path.join("set-aside")).len(),
        8,
        "the last ones are kept"
    );
    assert_eq!(check(path, &mut |_| {}).unwrap().faults, 0);
}

#[test]
fn a_first_start_that_a_kill_ended_is_begun_again() {
    for conf in [
        "",
        "segment_size: 4194304\nuse_compression: false\nversion: 0.34\n",
    ] {
        for db in [false, true] {
            let folder = TempDir::new().unwrap();
            fs::create_dir(folder.path().join("blobs")).unwrap();
            fs::write(folder.path().join("conf"), conf).unwrap();
            if db {
                fs::write(folder.path().join("db"), "").unwrap();
            }
            let ids = filled(folder.path(), 3);
            assert_eq!(found(&open(folder.path())), ids);
        }
    }
}

#[test]
fn a_damaged_file_is_named_with_what_is_safe_and_what_helps() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    filled(path, 50);
    drop(open(path));
    let newest = names(path)
        .into_iter()
        .rfind(|name| name.starts_with("snap."));
    let newest = newest.expect("a second start writes a snapshot");
    for (file, damage, says) in [
        (
            newest.as_str(),
            &b"short"[..],
            "`db`, which holds everything, may be whole",
        ),
        (newest.as_str(), &[7; 4_000], "move `snap."),
        (
            "conf",
            b"segment_size: 8388608\nuse_compression: false\nversion: 0.34\n0000",
            "its file `conf` is not as it was",
        ),
        ("conf", b"no configuration of sled's", "`conf`"),
        (
            "db",
            b"",
            "its file `db`, which holds everything, is missing",
        ),
    ] {
        let whole = fs::read(path.join(file)).unwrap();
        fs::write(path.join(file), damage).unwrap();
        let error = refused(path);
        assert!(matches!(error, Error::Open { .. }), "{error}");
        let told = error.to_string();
        assert!(
            told.contains(says) && told.contains("copy the folder"),
            "{file}: {told}"
        );
        assert!(!told.contains("backtrace"), "{told}");
        fs::write(path.join(file), whole).unwrap();
    }
    // What it says to do about a snapshot does help.
    fs::write(path.join(&newest), "short").unwrap();
    fs::remove_file(path.join(&newest)).unwrap();
    assert_eq!(found(&open(path)).len(), 50);
}

#[test]
fn the_folder_is_its_owners_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store");
    drop(open(&path));
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o700);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    drop(open(&path));
    assert_eq!(mode(), 0o700);
}

/// Fills a part of the log with other bytes, and says from where on.
fn damage(path: &Path, whole: &[u8], part: usize) {
    let mut damaged = whole.to_vec();
    let at = whole.len() / 8 * part;
    damaged[at..at + 20_000].fill(0xa5);
    fs::write(path.join("db"), &damaged).unwrap();
}

/// Where sled itself stood in that part, the store does not open, and says what helps then.
fn does_not_open(path: &Path, whole: &[u8]) -> bool {
    let Err(error) = SledStore::open(path, options()) else {
        return false;
    };
    assert!(
        error.to_string().contains("hooksieve store import"),
        "{error}"
    );
    fs::write(path.join("db"), whole).unwrap();
    true
}

#[test]
fn what_can_be_read_of_a_damaged_store_makes_a_new_one() {
    let folder = TempDir::new().unwrap();
    let (path, new) = (folder.path().join("store"), folder.path().join("new"));
    let ids = filled(&path, 2_000);
    // Where everything is, is in the snapshot from here on.
    drop(open(&path));
    let whole = fs::read(path.join("db")).unwrap();
    let mut lost = 0;
    for part in 1..8 {
        damage(&path, &whole, part);
        if does_not_open(&path, &whole) {
            continue;
        }
        let report = check(&path, &mut |_| {}).unwrap();
        let mut bytes = Vec::new();
        let (_, gaps) = export_readable(&path, &mut bytes, NOW_MS, &mut |_| {}).unwrap();
        assert_eq!(gaps > 0, report.faults > 0, "{:?}", report.told);
        import(&new, &mut bytes.as_slice(), &mut |_| {}).unwrap();
        let left = found(&open(&new));
        assert!(left.iter().all(|id| ids.contains(id)));
        assert!(
            left.len() + 100 > ids.len(),
            "{} of {}",
            left.len(),
            ids.len()
        );
        assert_eq!(left.len() < ids.len(), gaps > 0);
        lost += ids.len() - left.len();
        if gaps > 0 {
            let told = report.told.join("\n");
            assert!(told.contains("store export --readable"), "{told}");
            let mut bytes = Vec::new();
            let error = export(&path, &mut bytes, NOW_MS, &mut |_| {}).unwrap_err();
            assert!(error.to_string().contains("is damaged"), "{error}");
        }
        fs::remove_dir_all(&new).unwrap();
        fs::write(path.join("db"), &whole).unwrap();
    }
    assert!(lost > 0, "nothing was damaged");
}

/// Whoever meets the damage first says so to all others: an event that is taken could not be told of.
#[test]
fn a_damaged_store_takes_nothing_once_that_is_known() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    filled(path, 2_000);
    drop(open(path));
    let whole = fs::read(path.join("db")).unwrap();
    let mut met = 0;
    for part in 1..8 {
        damage(path, &whole, part);
        if does_not_open(path, &whole) {
            continue;
        }
        let before = met;
        let store = open(path);
        Runtime::new().unwrap().block_on(async {
            if let Err(error) = store.backlog(&name("a"), None, usize::MAX).await {
                met += 1;
                for error in [
                    error,
                    store.append(anonymous("a", "more")).await.unwrap_err(),
                    store.ready().await.unwrap_err(),
                ] {
                    assert!(matches!(error, Error::Damaged { .. }), "{error}");
                    let told = error.to_string();
                    assert!(told.contains("`hooksieve store check --data "), "{told}");
                }
            }
        });
        drop(store);
        if met > before {
            // A restart forgets none of it; a check that finds all whole does.
            let error = refused(path);
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
            assert!(check(path, &mut |_| {}).unwrap().faults > 0);
            refused(path);
        }
        fs::write(path.join("db"), &whole).unwrap();
        assert_eq!(check(path, &mut |_| {}).unwrap().faults, 0);
    }
    assert!(met > 0, "nothing was damaged");
}
