//! Rows in real databases, Postgres and MariaDB: what a rule made arrives as values of the declared
//! types and never as SQL, and what goes wrong ends as it should.

use hooksieve_tests::{ALLOW, DATABASE, Database, Kind, PASSWORD, Pooler, Server, Setup, USER};
use serde_json::{Value, json};

/// Retries within milliseconds.
const HASTY: &str = "[dispatch]\nretry_ms = [10, 20]\n";

/// Retries until a database is there again.
const PATIENT: &str = "[dispatch]\nretry_ms = [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]\n";

#[tokio::test(flavor = "multi_thread")]
async fn postgres() {
    all(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb() {
    all(Kind::MariaDb).await;
}

/// One server for all, because making its data takes seconds.
async fn all(kind: Kind) {
    let Ok(mut database) = Database::start(kind) else {
        return;
    };
    a_rules_body_becomes_a_row(&database).await;
    a_message_is_a_map_and_what_is_refused_says_why(&database).await;
    tls_is_with_the_configured_host(&database).await;
    a_row_waits_for_its_database(&mut database).await;
}

/// Two statements over few connections that are anybody's between two transactions: every row is there,
/// and each at the first attempt.
#[tokio::test(flavor = "multi_thread")]
async fn pgbouncer_in_transaction_mode() {
    const ROWS: usize = 40;
    let Ok(database) = Database::start(Kind::Postgres) else {
        return;
    };
    let Ok(pooler) = Pooler::start(&database) else {
        return;
    };
    database
        .query(
            "CREATE TABLE ones (n int PRIMARY KEY); CREATE TABLE twos (n int PRIMARY KEY, t text);
             CREATE PROCEDURE three(n int) LANGUAGE sql AS 'INSERT INTO ones VALUES (n)'",
        )
        .await;
    let number = "{ pointer = '/data/n', type = 'integer' }";
    let more = [
        format!("statement = 'INSERT INTO ones VALUES ($1)'\nvalues = [{number}]\ntls = 'none'"),
        format!(
            "statement = 'INSERT INTO twos VALUES ($1, $2)'\nvalues = [{number}, 'rule']\ntls = 'none'"
        ),
        format!("statement = 'CALL three($1::int)'\nvalues = [{number}]\ntls = 'none'"),
    ];
    let direct = format!("port = {}\n", database.port);
    let pooled = format!("port = {}\n", pooler.port);
    let channels = more.map(|more| channel(&database, &more).replace(&direct, &pooled));
    let server = setup(HASTY, &channels).start().await;
    let mut taken = Vec::new();
    for n in 0..ROWS {
        for channel in ["db0", "db1"] {
            let event = json!({ "do": "post", "channel": channel, "payload": { "n": n } });
            taken.push(server.post_json("/in/acme/open", &event.to_string()).await);
        }
    }
    for taken in taken {
        let story = server.settled(&taken.id()).await;
        let delivery = &story["deliveries"][0];
        assert_eq!(delivery["state"], "delivered", "{delivery}");
        assert_eq!(delivery["attempts"].as_array().unwrap().len(), 1);
    }
    for table in ["ones", "twos"] {
        let count = format!("SELECT count(*)::text FROM {table}");
        assert_eq!(database.query(&count).await, [ROWS.to_string()]);
    }
    // A procedure may end transactions, so it cannot run within one of ours.
    let called = post_to(&server, "db2", json!({ "n": 1_000 })).await;
    assert!(
        reason(&called).contains("`options` has to stand in its ignore_startup_parameters"),
        "{called}"
    );
    server.end().await;
}

/// Settings of a channel to this database; `more` has its statement and values.
fn channel(database: &Database, more: &str) -> String {
    format!(
        "kind = 'sql'\ndriver = '{}'\nhost = '127.0.0.1'\nport = {}\ndatabase = '{DATABASE}'\n\
         username = '{USER}'\npassword = {{ env = 'DB' }}\n{more}\n",
        database.kind.driver(),
        database.port,
    )
}

fn tenant(channels: &[String]) -> String {
    let channels: String = channels
        .iter()
        .enumerate()
        .map(|(n, settings)| format!("[[channel]]\nname = 'db{n}'\n{settings}\n"))
        .collect();
    format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\ntype = 'order.paid'\nsubject_from = '/subject'\n\
         {channels}[[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n"
    )
}

fn setup(config: &str, channels: &[String]) -> Setup {
    let setup = Setup::new()
        .env("DB", PASSWORD)
        .config(config)
        .tenant("acme", &tenant(channels));
    // What Postgres' own programs would listen to.
    let variables = [
        ("PGHOST", "/nowhere"),
        ("PGHOSTADDR", "10.0.0.1"),
        ("PGPORT", "1"),
        ("PGUSER", "nobody"),
        ("PGPASSWORD", "wrong"),
        ("PGDATABASE", "nowhere"),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLROOTCERT", "/nowhere/ca.pem"),
        ("PGSSLCERT", "/nowhere/certificate.pem"),
    ];
    variables
        .into_iter()
        .fold(setup, |setup, (name, value)| setup.env(name, value))
}

/// Has the rule post this to `db0`; gives the delivery when it has ended.
async fn post(server: &Server, payload: Value) -> Value {
    post_to(server, "db0", payload).await
}

async fn post_to(server: &Server, channel: &str, payload: Value) -> Value {
    let event = json!({ "do": "post", "channel": channel, "payload": payload, "subject": "#7" });
    let taken = server.post_json("/in/acme/open", &event.to_string()).await;
    server.settled(&taken.id()).await["deliveries"][0].clone()
}

#[track_caller]
fn reason(delivery: &Value) -> &str {
    assert_eq!(delivery["state"], "dead", "{delivery}");
    delivery["reason"].as_str().expect("a reason")
}

/// The table of the tests, its statement, and a query that gives its rows as JSON, in order.
fn orders(kind: Kind) -> (&'static str, &'static str, &'static str) {
    match kind {
        Kind::Postgres => (
            "CREATE TABLE orders (delivery text PRIMARY KEY, event text NOT NULL, type varchar(50), subject text,
             came timestamptz, id int, total double precision, price numeric(9, 2), paid boolean, at timestamp,
             raw bytea, note text, line_items jsonb)",
            "INSERT INTO orders VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::numeric, $9, $10, $11, $12, $13)
             ON CONFLICT (delivery) DO NOTHING",
            "SELECT json_build_object('delivery', delivery, 'event', event, 'type', type, 'subject', subject,
             'came', came > '2020-01-01', 'id', id, 'total', total, 'price', price::text, 'paid', paid, 'at', at::text,
             'raw', upper(encode(raw, 'hex')), 'note', note, 'line_items', line_items)::text FROM orders ORDER BY came",
        ),
        Kind::MariaDb => (
            "CREATE TABLE orders (delivery varchar(64) PRIMARY KEY, event varchar(64) NOT NULL, type varchar(50),
             subject text, came timestamp(6), id int, total double, price decimal(9, 2), paid boolean,
             at datetime, raw blob, note text, line_items json)",
            "INSERT IGNORE INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            "SELECT json_object('delivery', delivery, 'event', event, 'type', type, 'subject', subject,
             'came', if(came > '2020-01-01', true, false), 'id', id, 'total', total, 'price', cast(price as char),
             'paid', if(paid is null, null, if(paid, true, false)), 'at', cast(at as char), 'raw', hex(raw),
             'note', note, 'line_items', json_compact(line_items)) FROM orders ORDER BY came",
        ),
    }
}

const VALUES: &str = "values = [
    'delivery_id', 'event_id', 'event_type', 'subject', 'time',
    { pointer = '/data/id', type = 'integer', required = true },
    { pointer = '/data/total', type = 'float' },
    '/data/price',
    { pointer = '/data/paid', type = 'boolean' },
    { pointer = '/data/at', type = 'timestamp' },
    { pointer = '/data/raw', type = 'bytes' },
    '/data/note',
    { pointer = '/data/line_items', type = 'json' },
]";

async fn a_rules_body_becomes_a_row(database: &Database) {
    let kind = database.kind;
    let (create, insert, select) = orders(kind);
    database.query(create).await;
    let settings = format!("statement = '''{insert}'''\n{VALUES}\ntls = 'none'");
    let server = setup(HASTY, &[channel(database, &settings)]).start().await;
    let order = json!({
        "id": -7, "total": 12.5, "price": "19.99", "paid": true, "at": "2025-06-01T14:00:00+02:00",
        "raw": "AP8n", "note": "Grüße 💥", "line_items": [{ "sku": "a'b", "n": 2 }],
    });
    let delivered = post(&server, order).await;
    assert_eq!(delivered["state"], "delivered", "{delivered}");
    // All that would be something in SQL, in a shell or in C.
    let mut notes = vec![
        "'); DROP TABLE orders; --".to_owned(),
        "\\'; DROP TABLE orders; #".to_owned(),
        "\" OR 1=1 /* ` $1 ? :x %s \\x27 \\".to_owned(),
        "line\r\nline\u{202e}\u{feff}\u{7f} 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ﷺ".to_owned(),
        "¿' or ''='".to_owned(),
        "'".repeat(10_000),
    ];
    if kind == Kind::MariaDb {
        notes.push("before\0after".to_owned());
    }
    for note in &notes {
        let delivery = post(&server, json!({ "id": 1, "note": note })).await;
        assert_eq!(delivery["state"], "delivered", "{delivery}");
    }
    let rows: Vec<Value> = database
        .query(select)
        .await
        .iter()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect();
    assert_eq!(
        rows[0],
        json!({
            "delivery": delivered["id"], "event": server.accepted()[0], "type": "order.paid", "subject": "#7",
            "came": true, "id": -7, "total": 12.5, "price": "19.99", "paid": true, "at": "2025-06-01 12:00:00",
            "raw": "00FF27", "note": "Grüße 💥", "line_items": [{ "sku": "a'b", "n": 2 }],
        })
    );
    let got: Vec<&str> = rows[1..]
        .iter()
        .map(|row| row["note"].as_str().unwrap())
        .collect();
    assert_eq!(got, notes);
    assert_eq!(
        (&rows[1]["total"], &rows[1]["at"]),
        (&Value::Null, &Value::Null)
    );
    if kind == Kind::Postgres {
        let nul = post(&server, json!({ "id": 1, "note": "before\0after" })).await;
        assert_eq!(
            reason(&nul),
            format!(
                "nothing was sent to 127.0.0.1:{}: the value at \"/data/note\" has a NUL in it, which no text of Postgres can hold; bind it as json, or leave it out in the rule",
                database.port
            )
        );
    }
    server.end().await;
}

async fn a_message_is_a_map_and_what_is_refused_says_why(database: &Database) {
    let kind = database.kind;
    database
        .query("CREATE TABLE notes (title varchar(20) PRIMARY KEY, link text, field text NOT NULL, n int CHECK (n > 0))")
        .await;
    let (places, other, lock) = match kind {
        Kind::Postgres => ("$1, $2, $3, $4", "$1", "pg_sleep(60)"),
        Kind::MariaDb => ("?, ?, ?, ?", "?", "sleep(60)"),
    };
    let message = "values = ['/title', '/link/url', '/fields/0/value', { pointer = '/none', type = 'integer' }]";
    let channels = [
        format!("statement = 'INSERT INTO notes VALUES ({places})'\n{message}\ntls = 'none'"),
        format!(
            "statement = 'INSERT INTO notes VALUES ({places})'\nvalues = ['/data/t', '/data/l', '/data/f', {{ pointer = '/data/n', type = 'integer' }}]\ntls = 'none'"
        ),
        format!(
            "statement = 'INSERT INTO nowhere VALUES ({other})'\nvalues = ['rule']\ntls = 'none'"
        ),
        format!(
            "statement = 'SELECT {lock}, {other}'\nvalues = [{{ pointer = '/data/n', type = 'float' }}]\ntls = 'none'\ntimeout_ms = 1000"
        ),
    ];
    let mut channels = channels.map(|more| channel(database, &more)).to_vec();
    channels.push(channels[1].replace("'DB'", "'WRONG'"));
    channels.push(channels[1].replace(&format!("'{DATABASE}'"), "'elsewhere'"));
    if kind == Kind::MariaDb {
        // What only this server takes for more than a comment.
        let sly =
            "statement = 'DELETE FROM notes /*! ; DROP TABLE notes */'\nvalues = []\ntls = 'none'";
        channels.push(channel(database, sly));
    }
    let server = setup(HASTY, &channels).env("WRONG", "hidden").start().await;
    let place = format!("127.0.0.1:{}", database.port);

    let notify = json!({
        "do": "notify", "channel": "db0", "title": "a title", "link": "https://example.com/",
        "fields": [{ "name": "n", "value": "a value" }],
    });
    let taken = server.post_json("/in/acme/open", &notify.to_string()).await;
    let story = server.settled(&taken.id()).await;
    assert_eq!(story["deliveries"][0]["state"], "delivered", "{story}");
    let rows = database
        .query("SELECT concat(title, '|', link, '|', field) FROM notes")
        .await;
    assert_eq!(rows, ["a title|https://example.com/|a value"]);

    let dead = async |channel: &str, payload: Value| {
        let delivery = post_to(&server, channel, payload).await;
        let attempts = delivery["attempts"].as_array().unwrap().len();
        (reason(&delivery).to_owned(), attempts)
    };
    let (wrong, attempts) = dead("db1", json!({ "t": 12345, "f": "" })).await;
    assert_eq!(
        (wrong, attempts),
        (
            format!(
                "nothing was sent to {place}: the value at \"/data/t\" is an integer, and a string is bound there"
            ),
            1
        )
    );
    let code = |postgres: &str, mariadb: &str| match kind {
        Kind::Postgres => format!("(SQLSTATE {postgres}"),
        Kind::MariaDb => format!("(error {mariadb})"),
    };
    for (payload, why, code) in [
        (
            json!({ "t": "a title", "f": "x" }),
            "a value that must be unique is there already",
            code("23505, constraint notes_pkey)", "1062"),
        ),
        (
            json!({ "t": "b" }),
            "a column may not be NULL",
            code("23502)", "1048"),
        ),
        (
            json!({ "t": "confidential ".repeat(9), "f": "x" }),
            "a value does not fit",
            code("22001)", "1406"),
        ),
        (
            json!({ "t": "c", "f": "x", "n": -5 }),
            "a check of the table failed",
            code("23514, constraint notes_n_check)", "4025"),
        ),
    ] {
        let (told, attempts) = dead("db1", payload).await;
        assert_eq!(
            (told, attempts),
            (format!("{place} refused the row: {why} {code}"), 1)
        );
    }
    let (nowhere, attempts) = dead("db2", Value::Null).await;
    let (code, words) = match kind {
        Kind::Postgres => ("SQLSTATE 42P01", "relation \"nowhere\" does not exist"),
        Kind::MariaDb => ("error 1146", "Table 'shop.nowhere' doesn't exist"),
    };
    assert_eq!(
        (nowhere, attempts),
        (
            format!(
                "{place} refused the statement: the statement does not fit the database ({code}): {words}"
            ),
            1
        )
    );
    let (slow, attempts) = dead("db3", json!({ "n": 1 })).await;
    assert!(
        attempts == 3 && slow.starts_with("given up after 3 attempts: "),
        "{slow}"
    );
    let expected = match kind {
        // It ends by itself, a little before we stop waiting.
        Kind::Postgres => "the statement took too long or was cancelled (SQLSTATE 57014)",
        Kind::MariaDb => {
            "did not answer within 1s; the statement was sent, and whether it ran is not known"
        }
    };
    assert!(slow.contains(expected), "{slow}");
    let (login, attempts) = dead("db4", json!({ "t": "d", "f": "x" })).await;
    assert!(
        login.starts_with(&format!(
            "{place} refused the connection: the username or password is not accepted ("
        )),
        "{login}"
    );
    assert!(
        attempts == 1 && !login.contains("hidden") && !login.contains(USER),
        "{login}"
    );
    let (elsewhere, attempts) = dead("db5", json!({ "t": "d", "f": "x" })).await;
    assert!(
        elsewhere.starts_with(&format!("{place} refused the connection: ")),
        "{elsewhere}"
    );
    assert_eq!(attempts, 1);
    if kind == Kind::MariaDb {
        let (sly, _) = dead("db6", Value::Null).await;
        assert!(
            sly.contains(
                "refused the statement: the statement does not fit the database (error 1064)"
            ),
            "{sly}"
        );
    }
    let rows = database
        .query("SELECT cast(count(*) as char(9)) FROM notes")
        .await;
    assert_eq!(rows[0].trim(), "1");
    let said = server.said();
    for secret in ["confidential", "hidden", "made-up"] {
        assert!(!said.contains(secret), "{said}");
    }
    server.end().await;
}

async fn a_row_waits_for_its_database(database: &mut Database) {
    let kind = database.kind;
    database
        .query("CREATE TABLE ids (id varchar(64) PRIMARY KEY)")
        .await;
    let insert = match kind {
        Kind::Postgres => "INSERT INTO ids VALUES ($1) ON CONFLICT DO NOTHING",
        Kind::MariaDb => "INSERT IGNORE INTO ids VALUES (?)",
    };
    let settings = format!(
        "statement = '{insert}'\nvalues = ['delivery_id']\ntls = 'none'\ntimeout_ms = 5000"
    );
    let server = setup(PATIENT, &[channel(database, &settings)])
        .start()
        .await;
    // One row first, so that a connection waits and is found closed.
    let mut ids = vec![post(&server, Value::Null).await["id"].clone()];
    database.stop();
    let event = json!({ "do": "post", "channel": "db0" }).to_string();
    let waits = server.post_json("/in/acme/open", &event).await.id();
    let failed = hooksieve_tests::until("an attempt that failed", || async {
        let story = server.story(&waits).await;
        story["deliveries"][0]["attempts"][0]["error"]
            .as_str()
            .map(str::to_owned)
    });
    assert_eq!(
        failed.await,
        format!(
            "no connection to 127.0.0.1:{}: connection refused",
            database.port
        )
    );
    database.run();
    let story = server.settled(&waits).await;
    assert_eq!(story["deliveries"][0]["state"], "delivered", "{story}");
    ids.push(story["deliveries"][0]["id"].clone());
    // Many at once, over the few connections there are.
    let burst: Vec<Value> = (0..50).map(Value::from).collect();
    for n in &burst {
        let event = json!({ "do": "post", "channel": "db0", "payload": n }).to_string();
        server.post_json("/in/acme/open", &event).await.id();
    }
    server.settle().await;
    let rows = database.query("SELECT id FROM ids").await;
    assert_eq!(rows.len(), 2 + burst.len());
    for id in ids {
        assert!(rows.iter().any(|row| id == row.as_str()), "{id}");
    }
    server.end().await;
}

async fn tls_is_with_the_configured_host(database: &Database) {
    let kind = database.kind;
    database
        .query("CREATE TABLE seen (id varchar(64) PRIMARY KEY, tls text)")
        .await;
    let insert = match kind {
        Kind::Postgres => {
            "INSERT INTO seen SELECT $1, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        }
        Kind::MariaDb => {
            "INSERT INTO seen SELECT ?, variable_value FROM information_schema.session_status WHERE variable_name = \"Ssl_version\""
        }
    };
    // As every channel has it that says nothing of TLS.
    let by_address = channel(
        database,
        &format!("statement = '{insert}'\nvalues = ['delivery_id']"),
    );
    let by_name = by_address.replace("'127.0.0.1'", "'localhost'");
    let channels = [by_name, by_address];
    let trusting = format!("{HASTY}[egress]\nca_file = '{}'\n", database.ca().display());
    let server = setup(&trusting, &channels).start().await;
    for _ in 0..2 {
        let delivery = post(&server, Value::Null).await;
        assert_eq!(delivery["state"], "delivered", "{delivery}");
    }
    let rows = database.query("SELECT tls FROM seen").await;
    assert_eq!(rows, ["TLSv1.3", "TLSv1.3"]);
    // The certificate is good, and for another name.
    let other = post_to(&server, "db1", Value::Null).await;
    let told = reason(&other);
    let place = format!("127.0.0.1:{}", database.port);
    assert!(
        told.contains(&format!("the certificate of {place} is not trusted: ")),
        "{told}"
    );
    server.end().await;
    // Without the operator's word, the authority is nobody's.
    let server = setup(HASTY, &channels).start().await;
    let stranger = post(&server, Value::Null).await;
    let told = reason(&stranger);
    assert!(told.contains("is not trusted: UnknownIssuer"), "{told}");
    server.end().await;
    assert_eq!(database.query("SELECT tls FROM seen").await.len(), 2);
}

/// The same as for HTTP and mail; no server is needed, because none is asked.
#[tokio::test(flavor = "multi_thread")]
async fn no_database_inside_is_asked() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut channels = Vec::new();
    for driver in ["postgres", "mysql"] {
        for host in [
            "localhost",
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "10.0.0.1",
            "169.254.169.254",
        ] {
            channels.push(format!(
                "kind = 'sql'\ndriver = '{driver}'\nhost = '{host}'\nport = {port}\ndatabase = 'a'\nusername = 'a'\n\
                 statement = 'SELECT 1'\nvalues = []"
            ));
        }
    }
    let setup = setup(HASTY, &channels).without_env(ALLOW);
    let server = setup.start().await;
    for (n, settings) in channels.iter().enumerate() {
        let delivery = post_to(&server, &format!("db{n}"), Value::Null).await;
        let told = reason(&delivery);
        assert!(
            told.contains("nothing was sent to ") && told.contains("under [egress] allow"),
            "{settings}: {told}"
        );
    }
    server.stop().await;
    assert!(listener.accept().is_err(), "somebody connected");
}

/// The one variable that the driver lets nobody take back.
#[tokio::test]
async fn options_in_the_environment_are_refused() {
    let settings = "kind = 'sql'\ndriver = 'postgres'\nhost = 'db.example'\ndatabase = 'a'\nusername = 'a'\n\
                    statement = 'SELECT 1'\nvalues = []";
    let setup = setup(HASTY, &[settings.to_owned()]).env("PGOPTIONS", "-c role=admin");
    let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
    assert_eq!(code, 2);
    assert!(
        said.contains("PGOPTIONS is set in the engine's environment"),
        "{said}"
    );
}
