//! The v1 "predict protocol": `instances` or `inputs` as a dense array of numbers, a list of text, or rows keyed by
//! column name.

use crate::json::{JsonError, Kind, Reader};
use std::collections::HashMap;

/// What a v1 request carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Instances {
    /// A dense array of numbers, row-major.
    Numbers {
        /// Lengths of its dimensions.
        shape: Vec<usize>,
        /// Its values; `null` is not-a-number.
        values: Vec<f64>,
        /// Were all of them written as whole numbers?
        whole: bool,
    },
    /// A flat list of text.
    Text(Vec<String>),
    /// Columns by name, in the order in which they were first met, all of one length.
    Frame(Vec<(String, Vec<Cell>)>),
}

/// A cell of a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
    /// `null`, or a column that this row lacks.
    Missing,
}

/// Why a body is no v1 request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum V1Error {
    /// The text is not JSON.
    Malformed(JsonError),
    /// It is JSON, but not a request.
    Invalid(String),
}

impl From<JsonError> for V1Error {
    fn from(error: JsonError) -> Self {
        V1Error::Malformed(error)
    }
}

impl std::fmt::Display for V1Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            V1Error::Malformed(error) => write!(f, "Unrecognized request format: {error}"),
            V1Error::Invalid(what) => f.write_str(what),
        }
    }
}
impl std::error::Error for V1Error {}

/// Reads a body: the field that was read, and what it carries. `inputs` wins where both are present; other keys are
/// left alone.
///
/// # Errors
/// [`V1Error`] says what is wrong and where.
pub fn parse(body: &[u8]) -> Result<(&'static str, Instances), V1Error> {
    let mut reader = Reader::new(body);
    let (mut inputs, mut instances) = (None, None);
    if reader.kind()? != Kind::Object {
        return Err(V1Error::Invalid("expected an object with \"instances\" or \"inputs\"".into()));
    }
    let mut entries = reader.object()?;
    while let Some(key) = reader.key(&mut entries)? {
        let slot = match &*key {
            "inputs" => &mut inputs,
            "instances" => &mut instances,
            _ => {
                reader.skip()?;
                continue;
            }
        };
        if reader.kind()? != Kind::Array {
            return Err(V1Error::Invalid(format!("Expected \"{key}\" to be a list")));
        }
        if slot.replace(reader.position()).is_some() {
            return Err(V1Error::Invalid(format!("\"{key}\" appears twice")));
        }
        reader.skip()?;
    }
    reader.end()?;
    let (name, place) = match (inputs, instances) {
        (Some(place), _) => ("inputs", place),
        (None, Some(place)) => ("instances", place),
        (None, None) => {
            return Err(V1Error::Invalid("expected \"instances\" or \"inputs\" in the request".into()));
        }
    };
    Ok((name, parse_list(&reader.again(place), body.len(), name)?))
}

/// Reads the list at which `start` stands, in the way that its first element asks for.
fn parse_list(start: &Reader<'_>, body: usize, name: &str) -> Result<Instances, V1Error> {
    let mut first = start.again(start.position());
    let mut entries = first.array()?;
    if !first.element(&mut entries)? {
        return Ok(Instances::Numbers { shape: vec![0], values: Vec::new(), whole: false });
    }
    let kind = match first.kind()? {
        Kind::Array => {
            let mut inner = first.array()?;
            if first.element(&mut inner)? { first.kind()? } else { Kind::Number }
        }
        other => other,
    };
    let mut reader = start.again(start.position());
    match kind {
        Kind::Object => parse_frame(&mut reader, body, name),
        Kind::String => parse_text(&mut reader, name),
        _ => parse_numbers(&mut reader, name),
    }
}

fn parse_text(reader: &mut Reader<'_>, name: &str) -> Result<Instances, V1Error> {
    let mut text = Vec::new();
    let mut entries = reader.array()?;
    while reader.element(&mut entries)? {
        if reader.kind()? != Kind::String {
            return Err(V1Error::Invalid(format!("{name}[{}] is not text as the first element is", text.len())));
        }
        text.push(reader.string()?.into_owned());
    }
    Ok(Instances::Text(text))
}

fn parse_numbers(reader: &mut Reader<'_>, name: &str) -> Result<Instances, V1Error> {
    let mut dense = Dense { shape: Vec::new(), values: Vec::new(), whole: true, name };
    dense.level(reader, 0)?;
    let Dense { shape, values, whole, .. } = dense;
    let shape = shape.into_iter().map(|length| length.unwrap_or(0)).collect();
    Ok(Instances::Numbers { shape, values, whole })
}

struct Dense<'a> {
    shape: Vec<Option<usize>>,
    values: Vec<f64>,
    whole: bool,
    name: &'a str,
}

impl Dense<'_> {
    fn level(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<(), V1Error> {
        if self.shape.len() == level {
            if !self.values.is_empty() {
                return Err(self.ragged(reader));
            }
            self.shape.push(None);
        }
        let mut entries = reader.array()?;
        let mut count = 0;
        while reader.element(&mut entries)? {
            match reader.kind()? {
                Kind::Array => self.level(reader, level + 1)?,
                _ if self.shape.len() > level + 1 => return Err(self.ragged(reader)),
                Kind::Number => self.number(reader.number()?),
                Kind::Null => {
                    reader.null()?;
                    self.whole = false;
                    self.values.push(f64::NAN);
                }
                Kind::Bool => self.values.push(f64::from(u8::from(reader.boolean()?))),
                Kind::String | Kind::Object => {
                    let what = format!("{}: expected numbers only, found something else", self.name);
                    return Err(V1Error::Invalid(reader.error(what).to_string()));
                }
            }
            count += 1;
        }
        match self.shape[level] {
            None => self.shape[level] = Some(count),
            Some(length) if length == count => {}
            Some(length) => {
                let what = format!("{}: a list of {count} values among lists of {length}", self.name);
                return Err(V1Error::Invalid(reader.error(what).to_string()));
            }
        }
        Ok(())
    }

    fn number(&mut self, token: &str) {
        self.whole &= token.bytes().all(|b| b.is_ascii_digit() || b == b'-');
        // The reader has checked the form, which is a subset of what `parse` takes.
        self.values.push(token.parse().unwrap_or(f64::NAN));
    }

    fn ragged(&self, reader: &Reader<'_>) -> V1Error {
        V1Error::Invalid(reader.error(format!("{}: lists and values are mixed", self.name)).to_string())
    }
}

/// Rows keyed by column, or columns keyed by name, one object or many, or lists of such.
fn parse_frame(reader: &mut Reader<'_>, body: usize, name: &str) -> Result<Instances, V1Error> {
    let most = body.max(FEW_CELLS);
    let mut frame = Frame { columns: Vec::new(), by_name: HashMap::new(), rows: 0, most, name };
    let mut entries = reader.array()?;
    while reader.element(&mut entries)? {
        if reader.kind()? == Kind::Array {
            let mut inner = reader.array()?;
            while reader.element(&mut inner)? {
                frame.add(reader)?;
            }
        } else {
            frame.add(reader)?;
        }
    }
    Ok(Instances::Frame(frame.columns))
}

/// So many cells a frame may have however short its text is.
const FEW_CELLS: usize = 1 << 16;

/// Columns under construction.
struct Frame<'a> {
    columns: Vec<(String, Vec<Cell>)>,
    by_name: HashMap<String, usize>,
    rows: usize,
    /// Cells that it may have. Without a bound, rows written as `{}` behind one row of many columns take up thousands
    /// of times the memory that their text did.
    most: usize,
    name: &'a str,
}

impl Frame<'_> {
    /// One object: a row of scalars, or columns of lists.
    fn add(&mut self, reader: &mut Reader<'_>) -> Result<(), V1Error> {
        if reader.kind()? != Kind::Object {
            let what = format!("{}: expected an object like the first element", self.name);
            return Err(V1Error::Invalid(reader.error(what).to_string()));
        }
        let mut added: Option<usize> = None;
        let mut entries = reader.object()?;
        while let Some(key) = reader.key(&mut entries)? {
            let cells = parse_cells(reader, &key)?;
            match added {
                Some(count) if count != cells.len() => {
                    return Err(V1Error::Invalid(format!(
                        "{}: column '{key}' has {} values, the columns before it {count}",
                        self.name,
                        cells.len()
                    )));
                }
                _ => added = Some(cells.len()),
            }
            let (name, rows) = (self.name, self.rows);
            let column = self.column(&key)?;
            if column.len() > rows {
                return Err(V1Error::Invalid(format!("{name}: column '{key}' appears twice")));
            }
            column.extend(cells);
        }
        self.rows += added.unwrap_or(1);
        self.check(self.columns.len())?;
        for (_, column) in &mut self.columns {
            column.resize(self.rows, Cell::Missing);
        }
        Ok(())
    }

    /// The column called `key`, filled up to the row at hand.
    fn column(&mut self, key: &str) -> Result<&mut Vec<Cell>, V1Error> {
        let index = match self.by_name.get(key) {
            Some(&index) => index,
            None => {
                self.check(self.columns.len() + 1)?;
                self.by_name.insert(key.to_owned(), self.columns.len());
                self.columns.push((key.to_owned(), vec![Cell::Missing; self.rows]));
                self.columns.len() - 1
            }
        };
        Ok(&mut self.columns[index].1)
    }

    fn check(&self, columns: usize) -> Result<(), V1Error> {
        if columns.checked_mul(self.rows).is_some_and(|cells| cells <= self.most) {
            return Ok(());
        }
        Err(V1Error::Invalid(format!(
            "{}: {} rows of {columns} columns, most of them missing, are too large a table",
            self.name, self.rows
        )))
    }
}

fn parse_cells(reader: &mut Reader<'_>, key: &str) -> Result<Vec<Cell>, V1Error> {
    if reader.kind()? != Kind::Array {
        return Ok(vec![parse_cell(reader, key)?]);
    }
    let mut cells = Vec::new();
    let mut entries = reader.array()?;
    while reader.element(&mut entries)? {
        cells.push(parse_cell(reader, key)?);
    }
    Ok(cells)
}

fn parse_cell(reader: &mut Reader<'_>, key: &str) -> Result<Cell, V1Error> {
    Ok(match reader.kind()? {
        Kind::Number => Cell::Number(reader.number()?.parse().unwrap_or(f64::NAN)),
        Kind::Bool => Cell::Number(f64::from(u8::from(reader.boolean()?))),
        Kind::String => Cell::Text(reader.string()?.into_owned()),
        Kind::Null => {
            reader.null()?;
            Cell::Missing
        }
        Kind::Array | Kind::Object => {
            let what = format!("column '{key}' is nested; expected a value or a list of values");
            return Err(V1Error::Invalid(reader.error(what).to_string()));
        }
    })
}
