//! Recorded events, read as the engine would have stored them, for trying a rule without an engine.
//!
//! An event is a JSON value: either with CloudEvents attributes (`id`, `source`, `type`, `data`, and
//! `subject`, `time`, `headers` where known), or a raw payload, whose type the caller gives. A raw
//! payload gets a fixed time and an id from its bytes, so that two runs are alike to the byte.

use crate::id::{EventId, Name};
use crate::ingest::verify::Verify;
use crate::recording::{self, Block, Made, NotRead};
use crate::store::StoredEvent;
use crate::tenant::{Source, is_hidden};
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{EventHead, Value};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The time of events that were recorded without one.
pub const FIXED_TIME: &str = "2026-01-01T00:00:00Z";

/// What raw payloads are taken for.
#[derive(Clone, Debug)]
pub struct Defaults {
    pub tenant: Name,
    pub source: Name,
    /// The sender's event name, such as `issues`.
    pub kind: Option<String>,
}

/// A recorded event, with the attributes that a report names it by.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub id: String,
    pub source: String,
    pub event: StoredEvent,
    /// What was decided of it, where it is of a recording.
    pub made: Vec<Made>,
    /// Where a raw payload stands, whose id says nothing to people.
    pub place: Option<Box<str>>,
}

impl Recorded {
    /// What people know it by: its id, or where it stands.
    pub fn name(&self) -> &str {
        self.place.as_deref().unwrap_or(&self.id)
    }
}

/// Input that holds no event: where, and what is wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{place}: {message}")]
pub struct BadInput {
    pub place: String,
    pub message: String,
}

fn bad(place: impl Into<String>, message: impl ToString) -> BadInput {
    BadInput {
        place: place.into(),
        message: message.to_string(),
    }
}

/// Some events as they are in their file. Where it is read need not be where they are taken apart.
#[derive(Debug)]
pub struct Batch {
    /// How much of its file it takes.
    pub bytes: u64,
    place: String,
    /// The event's name of raw payloads, where their folder says it.
    kind: Option<String>,
    raw: Raw,
}

#[derive(Debug)]
enum Raw {
    Block(Block),
    /// Lines of JSON, with their numbers.
    Lines(Vec<(usize, Vec<u8>)>),
    Json(Vec<u8>),
    /// Standard input has no lines to rely on.
    Read(Box<Recorded>),
}

/// Lines of a file that go together.
const LINES_BYTES: usize = 1 << 18;

impl Batch {
    /// Gives every event of it.
    ///
    /// # Errors
    /// The first that cannot be read, or what `each` returns.
    pub fn events<E: From<BadInput>>(
        self,
        defaults: &Defaults,
        each: &mut impl FnMut(Recorded) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut defaults = defaults.clone();
        defaults.kind = defaults.kind.or(self.kind);
        let defaults = &defaults;
        match self.raw {
            Raw::Block(block) => {
                let read = block.events(&defaults.tenant, &mut |it| each(it).map_err(Ended::By));
                read.map_err(|ended| ended.at(&self.place))
            }
            Raw::Lines(lines) => lines.iter().try_for_each(|(number, line)| {
                each(one(&format!("{}:{number}", self.place), line, defaults)?)
            }),
            Raw::Json(json) => each(one(&self.place, &json, defaults)?),
            Raw::Read(recorded) => each(*recorded),
        }
    }
}

/// Gives every event of a file, a folder (its `.json`, `.ndjson` and `.hsr` files, in the order of their
/// names), or `-` for standard input, one after another, without keeping them. Raw payloads in a folder below
/// it, and for which no event's name was given, are taken to be of their folder's name.
///
/// # Errors
/// The first input that cannot be read, or what `each` returns.
pub fn read<E: From<BadInput>>(
    path: &Path,
    defaults: &Defaults,
    each: &mut impl FnMut(Recorded) -> Result<(), E>,
) -> Result<(), E> {
    batches(path, defaults, &mut |batch| batch.events(defaults, each))
}

/// As [`read`], but events come as they are in their file.
///
/// # Errors
/// The first input that cannot be read, or what `each` returns.
pub fn batches<E: From<BadInput>>(
    path: &Path,
    defaults: &Defaults,
    each: &mut impl FnMut(Batch) -> Result<(), E>,
) -> Result<(), E> {
    if path == Path::new("-") {
        return stream("standard input", std::io::stdin().lock(), defaults, each);
    }
    if !path.is_dir() {
        return of_file(path, None, each);
    }
    files(path)?.iter().try_for_each(|file| {
        // `issues/opened.json` below it is of `issues`.
        let folder = file.parent().filter(|folder| *folder != path);
        let kind = folder.and_then(|it| it.file_name()?.to_str());
        of_file(file, kind, each)
    })
}

fn of_file<E: From<BadInput>>(
    path: &Path,
    kind: Option<&str>,
    each: &mut impl FnMut(Batch) -> Result<(), E>,
) -> Result<(), E> {
    let place = path.display().to_string();
    let open = || std::fs::File::open(path).map_err(|error| bad(&place, error));
    let mut batch = |bytes, raw| {
        each(Batch {
            bytes,
            place: place.clone(),
            kind: kind.map(str::to_owned),
            raw,
        })
    };
    match extension(path) {
        Some("hsr") => {
            let read = recording::blocks(BufReader::new(open()?), &mut |block| {
                batch(block.bytes(), Raw::Block(block)).map_err(Ended::By)
            });
            read.map_err(|ended| ended.at(&place))
        }
        Some("ndjson") => lines(&place, BufReader::new(open()?), &mut batch),
        _ => {
            let json = std::fs::read(path).map_err(|error| bad(&place, error))?;
            batch(json.len() as u64, Raw::Json(json))
        }
    }
}

/// How many bytes [`batches`] will come to, where that is known before.
pub fn bytes(path: &Path) -> Option<u64> {
    if path == Path::new("-") {
        return None;
    }
    let found = match path.is_dir() {
        true => files(path).ok()?,
        false => vec![path.to_owned()],
    };
    let sizes = found.iter().map(|file| Some(file.metadata().ok()?.len()));
    sizes.sum()
}

/// What ends the reading of a recording.
enum Ended<E> {
    By(E),
    NotRead(NotRead),
}

impl<E> From<NotRead> for Ended<E> {
    fn from(error: NotRead) -> Self {
        Ended::NotRead(error)
    }
}

impl<E: From<BadInput>> Ended<E> {
    fn at(self, place: &str) -> E {
        match self {
            Ended::By(error) => error,
            Ended::NotRead(error) => bad(place, error).into(),
        }
    }
}

fn extension(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, BadInput> {
    let place = folder.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| bad(&place, error))? {
        let path = entry.map_err(|error| bad(&place, error))?.path();
        if is_hidden(&path) {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if matches!(extension(&path), Some("json" | "ndjson" | "hsr")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn lines<E: From<BadInput>>(
    place: &str,
    mut input: impl BufRead,
    each: &mut impl FnMut(u64, Raw) -> Result<(), E>,
) -> Result<(), E> {
    let (mut number, mut ended) = (0, false);
    while !ended {
        let (mut some, mut bytes) = (Vec::new(), 0);
        while bytes < LINES_BYTES && !ended {
            let mut line = Vec::new();
            let read = input.read_until(b'\n', &mut line);
            let read = read.map_err(|error| bad(place, error))?;
            ended = read == 0;
            bytes += read;
            number += 1;
            if !line.trim_ascii().is_empty() {
                some.push((number, line));
            }
        }
        each(bytes as u64, Raw::Lines(some))?;
    }
    Ok(())
}

/// One JSON value after another, on lines of their own or not.
fn stream<E: From<BadInput>>(
    place: &str,
    input: impl Read,
    defaults: &Defaults,
    each: &mut impl FnMut(Batch) -> Result<(), E>,
) -> Result<(), E> {
    struct Any(Data);

    impl<'de> serde::Deserialize<'de> for Any {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            Data::from_deserializer(from).map(Any)
        }
    }

    let values = serde_json::Deserializer::from_reader(BufReader::new(input)).into_iter::<Any>();
    for (n, value) in values.enumerate() {
        let place = format!("{place}, event {}", n + 1);
        let Any(data) = value.map_err(|error| bad(&place, format!("not JSON: {error}")))?;
        let recorded = recorded(&place, data, defaults)?;
        each(Batch {
            bytes: recorded.event.encoded.len() as u64,
            place,
            kind: None,
            raw: Raw::Read(Box::new(recorded)),
        })?;
    }
    Ok(())
}

/// A payload as a source would send it, or an event with its attributes.
///
/// # Errors
/// When it is no JSON, or nests too deep.
pub fn payload(json: &[u8], defaults: &Defaults) -> Result<Recorded, BadInput> {
    one("the payload", json, defaults)
}

/// A payload as it would have come in at a source of the tenant's.
///
/// # Errors
/// When it is not what the source takes.
pub fn payload_at(
    json: &[u8],
    source: &Source,
    kind: Option<&str>,
    tenant: &Name,
) -> Result<Recorded, BadInput> {
    let incoming = source.verify.unproven(kind, json);
    let incoming = incoming.map_err(|error| bad("the payload", error))?;
    let id = EventId::from_bytes(json).to_string();
    let head = EventHead {
        id: &id,
        source: source.name.as_str(),
        kind: &incoming.kind,
        subject: incoming.subject.as_deref(),
        time: FIXED_TIME,
        headers: &incoming.headers,
    };
    let defaults = Defaults {
        tenant: tenant.clone(),
        source: source.name.clone(),
        kind: None,
    };
    Ok(join(&head, &incoming.data, &defaults))
}

fn one(place: &str, json: &[u8], defaults: &Defaults) -> Result<Recorded, BadInput> {
    let data = Data::from_json(json).map_err(|error| bad(place, format!("not JSON: {error}")))?;
    recorded(place, data, defaults)
}

fn recorded(place: &str, data: Data, defaults: &Defaults) -> Result<Recorded, BadInput> {
    let value = Value::new(data.bytes());
    let attribute = |name: &str| value.get(name).and_then(|value| value.as_str());
    if let (Some(id), Some(source), Some(kind), Some(payload)) = (
        attribute("id"),
        attribute("source"),
        attribute("type"),
        value.get("data"),
    ) {
        let payload = Data::from_deserializer(payload).map_err(|error| bad(place, error))?;
        let headers = value.get("headers").map(|headers| headers.entries());
        let headers = headers.into_iter().flatten();
        let headers: Vec<_> = headers
            .filter_map(|(name, value)| Some((name.to_owned(), value.as_str()?.to_owned())))
            .collect();
        let head = EventHead {
            id,
            source,
            kind,
            subject: attribute("subject"),
            time: attribute("time").unwrap_or(FIXED_TIME),
            headers: &headers,
        };
        return Ok(join(&head, &payload, defaults));
    }
    let Some(kind) = &defaults.kind else {
        return Err(bad(
            place,
            "this is a raw payload: give the sender's event name with --type (for example --type issues), put it into a folder of that name below the one you give, or give an event with id, source, type and data",
        ));
    };
    let id = EventId::from_bytes(data.bytes()).to_string();
    let incoming = Verify::recorded(kind, data);
    let head = EventHead {
        id: &id,
        source: defaults.source.as_str(),
        kind: &incoming.kind,
        subject: incoming.subject.as_deref(),
        time: FIXED_TIME,
        headers: &[],
    };
    let mut recorded = join(&head, &incoming.data, defaults);
    recorded.place = Some(place.into());
    Ok(recorded)
}

fn join(head: &EventHead<'_>, data: &Data, defaults: &Defaults) -> Recorded {
    let (encoded, index) = head.encode(data);
    let event = StoredEvent {
        id: head
            .id
            .parse()
            .unwrap_or_else(|_| EventId::from_bytes(&encoded)),
        tenant: defaults.tenant.clone(),
        // Rules are asked by it; what is no name is no source of a tenant's.
        source: (head.source.parse()).unwrap_or_else(|_| defaults.source.clone()),
        kind: head.kind.to_owned(),
        sender_id: None,
        verified: "recorded".to_owned(),
        // What is recorded came in when it says; without a time, all at one moment.
        received_ms: head.time.parse().map_or(0, jiff::Timestamp::as_millisecond),
        encoded,
        index,
    };
    Recorded {
        id: head.id.to_owned(),
        source: head.source.to_owned(),
        event,
        made: Vec::new(),
        place: None,
    }
}
