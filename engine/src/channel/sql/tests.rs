use super::*;

fn settings() -> Settings {
    Settings {
        driver: Driver::Postgres,
        host: "db.example".into(),
        port: None,
        database: "shop".into(),
        username: "hooks".into(),
        password: Some(Secret::new("hidden")),
        tls: true,
        statement: "INSERT INTO orders VALUES ($1)".into(),
        values: vec![Binding::Given(Given::DeliveryId)],
        timeout_ms: 1000,
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        let error = Sql::new(settings).err().unwrap_or_default();
        assert!(!error.contains("hidden"), "{error}");
        error
    };
    assert_eq!(refused(|_| ()), "");
    for host in ["127.0.0.1", "::1", "DB-1_a.example.", "localhost"] {
        let mut settings = settings();
        host.clone_into(&mut settings.host);
        assert!(Sql::new(settings).is_ok(), "{host}");
    }
    for host in [
        "",
        ".",
        "/var/run/postgresql",
        "%2Fvar%2Frun",
        "\0abstract",
        "postgres://db.example/shop",
        "db.example:5432",
        "[::1]",
        "user@db.example",
        "db example",
        "-db.example",
        "db..example",
        "дб.example",
    ] {
        let mut settings = settings();
        host.clone_into(&mut settings.host);
        let error = Sql::new(settings).err().unwrap_or_default();
        assert!(error.contains("is not a host"), "{host}: {error}");
    }
    for (change, error) in [
        (
            (|settings| settings.tls = false) as fn(&mut Settings),
            "the password would travel unencrypted to \"db.example\"; leave tls at \"require\"",
        ),
        (|settings| settings.username.clear(), "\"\" is no username"),
        (
            |settings| settings.database.push('\0'),
            "\"shop\\0\" is no database",
        ),
        (
            |settings| settings.values.clear(),
            "the statement has places for 1 values ($1, $2), and `values` lists 0",
        ),
        (
            |settings| settings.statement = "DROP TABLE orders".into(),
            "the statement begins with \"DROP\"; there are call, delete, insert, merge, replace, select, update, with",
        ),
        (
            |settings| settings.values = vec![Binding::Given(Given::Time); VALUES_MAX + 1],
            "there are 1001 values, and at most 1000 are bound",
        ),
    ] {
        assert_eq!(refused(change), error);
    }
}

#[tokio::test]
async fn a_driver_that_panics_is_a_broken_connection() {
    let panics = async { panic!("as sqlx does where a packet is too short") };
    let failure = quiet::<()>("db.example", panics).await.unwrap_err();
    assert_eq!(
        failure,
        Failure::later("db.example answered what the driver cannot read")
    );
}
