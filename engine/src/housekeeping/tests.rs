use super::*;

const MB: u64 = 1 << 20;

fn settings() -> Settings {
    Settings {
        path: "/".into(),
        keep_ms: 1_000,
        dead_keep_ms: 1_000,
        bytes_max: 100 * MB,
        disk_free_bytes_min: 10 * MB,
    }
}

fn usage(live: u64, oldest_ms: i64) -> Usage {
    Usage {
        live_bytes: live * MB,
        file_bytes: live * MB,
        oldest_ms: Some(oldest_ms),
    }
}

#[test]
fn what_the_rows_may_take_is_bounded_by_the_disk_too() {
    let most = |live, free| bytes_max(&usage(live, 0), free * MB, &settings()) / MB;
    assert_eq!(most(50, 1_000), 100);
    assert_eq!(most(50, 110), 75);
    // With too little free, what is there is already twice too much.
    assert_eq!(most(50, 5), 25);
}

#[test]
fn history_goes_a_tenth_at_a_time_until_there_is_room_again() {
    let most = 100 * MB;
    assert_eq!(early(&usage(94, 0), most, None, 1_000), None);
    let first = early(&usage(96, 0), most, None, 1_000);
    assert_eq!(first, Some(100));
    // What cannot be forgotten does not stop it.
    assert_eq!(early(&usage(96, 0), most, first, 1_000), Some(190));
    assert_eq!(early(&usage(91, 500), most, first, 1_000), Some(550));
    assert_eq!(early(&usage(90, 500), most, first, 1_000), None);
    // It ends with the last event, not before.
    assert_eq!(early(&usage(99, 0), most, Some(999), 1_000), Some(1_000));
    assert_eq!(early(&usage(99, 0), most, Some(1_000), 1_000), Some(1_001));
}
