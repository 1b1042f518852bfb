//! TOML with its places kept: every complaint names the file, the line, and the nearest right name.
//!
//! Sections are read key by key; what was not asked for when a section is finished is an unknown
//! key. (serde's derives report one too, but lose the line inside tagged and flattened tables, and
//! keep the list of right names in prose.)

use crate::secret::Secret;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A configuration that cannot be used: one sentence, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for Problem {}

/// A file's text, for lines and messages.
#[derive(Clone)]
pub struct Source {
    pub path: PathBuf,
    text: String,
    /// What was read beside it, each file once: whoever reads one again finds what was found before.
    beside: RefCell<BTreeMap<PathBuf, Secret>>,
}

/// Without its text: headers and addresses in it may hold what opens something.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Source");
        shown.field("path", &self.path).finish_non_exhaustive()
    }
}

impl Source {
    pub fn open(path: &Path) -> Result<Self, Problem> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self::new(path, text)),
            Err(error) => Err(Problem {
                place: path.display().to_string(),
                message: format!("cannot be read: {error}"),
            }),
        }
    }

    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
            beside: RefCell::default(),
        }
    }

    /// The text of a file that this one refers to, such as one with a secret.
    ///
    /// # Errors
    /// That it cannot be read, in words.
    pub fn beside(&self, path: &str) -> Result<String, String> {
        let path = self.path.parent().unwrap_or(Path::new("")).join(path);
        if let Some(known) = self.beside.borrow().get(&path) {
            return Ok(known.expose().to_owned());
        }
        let read = std::fs::read_to_string(&path);
        let text = read.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        // Some editors begin every file with a byte order mark.
        let text = text.trim_start_matches('\u{feff}').to_owned();
        let kept = Secret::new(text.clone());
        self.beside.borrow_mut().insert(path, kept);
        Ok(text)
    }

    pub fn parse(&self) -> Result<Spanned<DeTable<'_>>, Problem> {
        DeTable::parse(&self.text).map_err(|error| {
            // The parser's messages can span lines; the place is in ours.
            let message = error.message().replace('\n', "; ");
            self.problem(error.span().unwrap_or(0..0), format!("not TOML: {message}"))
        })
    }

    pub fn problem(&self, span: Range<usize>, message: impl Into<String>) -> Problem {
        let before = self.text.get(..span.start).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        Problem {
            place: format!("{}:{line}", self.path.display()),
            message: message.into(),
        }
    }

    /// A whole file as one section.
    pub fn section<'a>(&'a self, table: &'a Spanned<DeTable<'a>>) -> Section<'a> {
        Section {
            source: self,
            title: "the file".to_owned(),
            span: table.span(),
            table: table.get_ref(),
            asked: RefCell::default(),
        }
    }
}

/// "; did you mean …?", where something is near enough.
pub fn did_you_mean<'a>(wrong: &str, right: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = right
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().max(wrong.len()) / 4)
        .min();
    match nearest {
        Some((_, name)) => format!("; did you mean `{name}`?"),
        None => String::new(),
    }
}

/// One table of a file.
pub struct Section<'a> {
    source: &'a Source,
    /// How messages call it: `rule "triage"`.
    title: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
    asked: RefCell<Vec<&'static str>>,
}

/// A value with its place.
pub struct Located<'a, T> {
    pub value: T,
    span: Range<usize>,
    source: &'a Source,
}

/// One of a list of strings and tables.
pub enum Item<'a> {
    Str(Located<'a, &'a str>),
    Section(Section<'a>),
}

impl<T> Located<'_, T> {
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        self.source.problem(self.span.clone(), message)
    }
}

impl<'a> Located<'a, &'a DeValue<'a>> {
    /// The table that it is, under a title for messages.
    pub fn section(&self, title: impl Into<String>) -> Option<Section<'a>> {
        Some(Section {
            source: self.source,
            title: title.into(),
            span: self.span.clone(),
            table: self.value.as_table()?,
            asked: RefCell::default(),
        })
    }

    /// The items of the list that it is.
    pub fn items(&self) -> Option<impl Iterator<Item = Self>> {
        let source = self.source;
        let items = self.value.as_array()?.iter();
        Some(items.map(move |item| Located {
            value: item.get_ref(),
            span: item.span(),
            source,
        }))
    }
}

impl<'a> Section<'a> {
    pub fn titled(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    pub fn title(&self) -> &str {
        &self.title
    }

    pub fn source(&self) -> &'a Source {
        self.source
    }

    pub fn problem(&self, message: impl Into<String>) -> Problem {
        self.source.problem(self.span.clone(), message)
    }

    pub fn value(&self, key: &'static str) -> Option<Located<'a, &'a DeValue<'a>>> {
        self.asked.borrow_mut().push(key);
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(Located {
            span: value.span(),
            value: value.get_ref(),
            source: self.source,
        })
    }

    /// All of it, for tables whose keys are the tenant's own.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Located<'a, &'a DeValue<'a>>)> {
        let source = self.source;
        self.table.iter().map(move |(name, value)| {
            let value = Located {
                value: value.get_ref(),
                span: value.span(),
                source,
            };
            (name.get_ref().as_ref(), value)
        })
    }

    fn typed<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&'a DeValue<'a>) -> Option<T>,
    ) -> Result<Option<Located<'a, T>>, Problem> {
        let Some(found) = self.value(key) else {
            return Ok(None);
        };
        match read(found.value) {
            Some(value) => Ok(Some(Located {
                value,
                span: found.span,
                source: found.source,
            })),
            None => Err(found.problem(format!(
                "`{key}` of {} is {}, not {expected}",
                self.title,
                with_article(found.value.type_str())
            ))),
        }
    }

    pub fn str(&self, key: &'static str) -> Result<Option<Located<'a, &'a str>>, Problem> {
        self.typed(key, "a string", DeValue::as_str)
    }

    pub fn need_str(&self, key: &'static str) -> Result<Located<'a, &'a str>, Problem> {
        self.str(key)?
            .ok_or_else(|| self.problem(format!("{} has no `{key}`", self.title)))
    }

    pub fn bool(&self, key: &'static str) -> Result<Option<Located<'a, bool>>, Problem> {
        self.typed(key, "true or false", DeValue::as_bool)
    }

    pub fn u64(&self, key: &'static str) -> Result<Option<Located<'a, u64>>, Problem> {
        self.typed(key, "a whole number", |value| {
            integer(value)?.try_into().ok()
        })
    }

    /// A string that means something to a type, such as a name.
    pub fn parse<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &'static str,
    ) -> Result<Option<Located<'a, T>>, Problem> {
        let Some(text) = self.str(key)? else {
            return Ok(None);
        };
        match text.value.parse() {
            Ok(value) => Ok(Some(Located {
                value,
                span: text.span,
                source: text.source,
            })),
            Err(error) => Err(text.problem(format!("`{key}` of {}: {error}", self.title))),
        }
    }

    pub fn need<T: FromStr<Err: fmt::Display>>(
        &self,
        key: &'static str,
    ) -> Result<Located<'a, T>, Problem> {
        self.parse(key)?
            .ok_or_else(|| self.problem(format!("{} has no `{key}`", self.title)))
    }

    /// A list of strings, each with its place; a single string counts as a list of one.
    pub fn u64s(&self, key: &'static str) -> Result<Option<Vec<Located<'a, u64>>>, Problem> {
        let Some(found) = self.value(key) else {
            return Ok(None);
        };
        let wrong = |found: &Located<'a, &'a DeValue<'a>>| {
            found.problem(format!(
                "`{key}` of {} is not a list of whole numbers",
                self.title
            ))
        };
        let Some(items) = found.value.as_array() else {
            return Err(wrong(&found));
        };
        let mut list = Vec::new();
        for item in items {
            let item = Located {
                value: item.get_ref(),
                span: item.span(),
                source: self.source,
            };
            match integer(item.value).and_then(|number| number.try_into().ok()) {
                Some(value) => list.push(Located {
                    value,
                    span: item.span,
                    source: item.source,
                }),
                None => return Err(wrong(&item)),
            }
        }
        Ok(Some(list))
    }

    /// A list of strings; one alone is a list of one.
    pub fn strs(&self, key: &'static str) -> Result<Option<Vec<Located<'a, &'a str>>>, Problem> {
        let Some(found) = self.value(key) else {
            return Ok(None);
        };
        let wrong = |found: &Located<'a, &'a DeValue<'a>>| {
            found.problem(format!(
                "`{key}` of {} is not a list of strings",
                self.title
            ))
        };
        if let Some(value) = found.value.as_str() {
            return Ok(Some(vec![Located {
                value,
                span: found.span,
                source: found.source,
            }]));
        }
        let items = found.value.as_array().ok_or_else(|| wrong(&found))?;
        let read = items.iter().map(|item| {
            let value = item.get_ref().as_str().ok_or_else(|| wrong(&found))?;
            Ok(Located {
                value,
                span: item.span(),
                source: self.source,
            })
        });
        read.collect::<Result<_, _>>().map(Some)
    }

    /// A list of strings and tables, each with its place.
    pub fn items(&self, key: &'static str) -> Result<Option<Vec<Item<'a>>>, Problem> {
        let Some(found) = self.value(key) else {
            return Ok(None);
        };
        let wrong = || {
            found.problem(format!(
                "`{key}` of {} is not a list of strings and tables",
                self.title
            ))
        };
        let items = found.value.as_array().ok_or_else(wrong)?;
        let read = items.iter().enumerate().map(|(n, item)| {
            if let Some(value) = item.get_ref().as_str() {
                return Ok(Item::Str(Located {
                    value,
                    span: item.span(),
                    source: self.source,
                }));
            }
            Ok(Item::Section(Section {
                source: self.source,
                title: format!("number {} in `{key}` of {}", n + 1, self.title),
                span: item.span(),
                table: item.get_ref().as_table().ok_or_else(wrong)?,
                asked: RefCell::default(),
            }))
        });
        read.collect::<Result<_, _>>().map(Some)
    }

    pub fn section(&self, key: &'static str) -> Result<Option<Section<'a>>, Problem> {
        let table = self.typed(key, "a table", DeValue::as_table)?;
        Ok(table.map(|found| Section {
            source: self.source,
            title: format!("`{key}` of {}", self.title),
            span: found.span,
            table: found.value,
            asked: RefCell::default(),
        }))
    }

    /// The tables of `[[key]]`.
    pub fn sections(&self, key: &'static str) -> Result<Vec<Section<'a>>, Problem> {
        let Some(found) = self.value(key) else {
            return Ok(Vec::new());
        };
        let wrong = || {
            found.problem(format!(
                "`{key}` is {}, not tables: write [[{key}]]",
                with_article(found.value.type_str())
            ))
        };
        let items = found.value.as_array().ok_or_else(wrong)?;
        let read = items.iter().enumerate().map(|(n, item)| {
            Ok(Section {
                source: self.source,
                title: format!("{key} number {}", n + 1),
                span: item.span(),
                table: item.get_ref().as_table().ok_or_else(wrong)?,
                asked: RefCell::default(),
            })
        });
        read.collect()
    }

    /// Complains about the first key that nobody asked for.
    pub fn finish(&self) -> Result<(), Problem> {
        let asked = self.asked.borrow();
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if !asked.contains(&name) {
                let mean = did_you_mean(name, asked.iter().copied());
                let message = format!("{} has no key `{name}`{mean}", self.title);
                return Err(self.source.problem(key.span(), message));
            }
        }
        Ok(())
    }
}

/// What a value is, for a sentence: "an integer".
pub(super) fn with_article(kind: &str) -> String {
    match kind.as_bytes().first() {
        Some(b'a' | b'e' | b'i' | b'o') => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

/// The value as an integer, if it is one and fits.
fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A value without its places, for what is handed on as it is.
pub fn plain(value: &DeValue<'_>) -> Option<toml::Value> {
    Some(match value {
        DeValue::String(text) => toml::Value::String(text.clone().into_owned()),
        DeValue::Integer(_) => toml::Value::Integer(integer(value)?),
        DeValue::Float(float) => toml::Value::Float(float.as_str().parse().ok()?),
        DeValue::Boolean(value) => toml::Value::Boolean(*value),
        DeValue::Datetime(moment) => toml::Value::Datetime(*moment),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| plain(item.get_ref()));
            toml::Value::Array(items.collect::<Option<_>>()?)
        }
        DeValue::Table(table) => toml::Value::Table(
            table
                .iter()
                .map(|(key, value)| {
                    Some((key.get_ref().clone().into_owned(), plain(value.get_ref())?))
                })
                .collect::<Option<_>>()?,
        ),
    })
}
