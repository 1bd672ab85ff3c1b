//! The v1 "predict protocol": `instances` or `inputs` as a dense array of numbers, a list of text, or rows keyed by
//! column name.

use crate::json::{JsonError, Kind, Reader, excerpt};
use std::collections::HashMap;

/// What a v1 request carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Instances {
    /// A dense array of numbers, row-major.
    Numbers {
        /// Lengths of its dimensions.
        shape: Vec<usize>,
        /// Its values.
        values: Numbers,
    },
    /// A flat list of text.
    Text(Vec<String>),
    /// Columns by name, in the order in which they were first met, all of one length.
    Frame(Vec<(String, Vec<Cell>)>),
}

/// Values of a dense array, told apart as numpy does when it makes an array of the list: libraries treat them
/// differently.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// All are whole, or true or false.
    Whole(Vec<i64>),
    /// Some have a fraction, an exponent, or more digits than 64 bits hold.
    Float(Vec<f64>),
    /// Some are `null`, which is not-a-number here.
    Object(Vec<f64>),
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
    /// It is a request whose values are no table: lists of different lengths, kinds that do not mix.
    Values(String),
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
            V1Error::Invalid(what) | V1Error::Values(what) => f.write_str(what),
        }
    }
}
impl std::error::Error for V1Error {}

/// Reads a body: the field that was read, and what it carries. `inputs` wins where both are present; other keys are
/// left alone. Of a frame, `columns` are taken, and all where there are none.
///
/// # Errors
/// [`V1Error`] says what is wrong and where.
pub fn parse(body: &[u8], columns: &[String]) -> Result<(&'static str, Instances), V1Error> {
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
    let mut reader = reader.again(place);
    let instances = match leading_kind(reader.again(place))? {
        Kind::Object => {
            let chosen = columns.iter().enumerate().map(|(place, column)| (column.as_str(), place)).collect();
            let mut frame = Frame { most: body.len().max(FEW_CELLS), chosen, ..Frame::new(name) };
            frame.read(&mut reader)?;
            Instances::Frame(frame.columns)
        }
        Kind::String => parse_text(&mut reader, name)?,
        _ => parse_numbers(&mut reader, name)?,
    };
    Ok((name, instances))
}

/// What the first element of a list is, or the first in it where that is a list: it says how the list is read.
fn leading_kind(mut reader: Reader<'_>) -> Result<Kind, V1Error> {
    let mut kind = Kind::Array;
    for _ in 0..2 {
        if kind == Kind::Array {
            let mut entries = reader.array()?;
            kind = if reader.element(&mut entries)? { reader.kind()? } else { Kind::Number };
        }
    }
    Ok(kind)
}

fn parse_text(reader: &mut Reader<'_>, name: &str) -> Result<Instances, V1Error> {
    let mut text = Vec::new();
    let mut entries = reader.array()?;
    while reader.element(&mut entries)? {
        match reader.kind()? {
            Kind::String => text.push(reader.string()?.into_owned()),
            // The first element is a list, whose first is text.
            Kind::Array if text.is_empty() => {
                return Err(V1Error::Values(format!(
                    "{name}[0] is a list of text; rows are lists of numbers: write 1.5, not \"1.5\""
                )));
            }
            _ => return Err(V1Error::Values(format!("{name}[{}] is not text as the first element is", text.len()))),
        }
    }
    Ok(Instances::Text(text))
}

fn parse_numbers(reader: &mut Reader<'_>, name: &str) -> Result<Instances, V1Error> {
    let mut dense =
        Dense { shape: Vec::new(), whole: Vec::new(), floats: Vec::new(), is_whole: true, has_null: false, name };
    dense.level(reader, 0)?;
    let Dense { shape, whole, floats, is_whole, has_null, .. } = dense;
    let shape = shape.into_iter().map(|length| length.unwrap_or(0)).collect();
    let values = match (is_whole, has_null) {
        // As numpy has it: an array of nothing is one of floats.
        (true, _) if !whole.is_empty() => Numbers::Whole(whole),
        (_, true) => Numbers::Object(floats),
        (_, false) => Numbers::Float(floats),
    };
    Ok(Instances::Numbers { shape, values })
}

/// An array under construction. Its values are in `whole` for as long as all of them are.
struct Dense<'a> {
    shape: Vec<Option<usize>>,
    whole: Vec<i64>,
    floats: Vec<f64>,
    is_whole: bool,
    has_null: bool,
    name: &'a str,
}

impl Dense<'_> {
    fn level(&mut self, reader: &mut Reader<'_>, level: usize) -> Result<(), V1Error> {
        if self.shape.len() == level {
            if !self.whole.is_empty() || !self.floats.is_empty() {
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
                Kind::Number => self.number(reader)?,
                Kind::Null => {
                    reader.null()?;
                    self.has_null = true;
                    self.float(f64::NAN);
                }
                Kind::Bool => self.integer(i64::from(reader.boolean()?)),
                Kind::String | Kind::Object => {
                    let what = format!("{}: expected numbers only, found something else", self.name);
                    return Err(V1Error::Values(reader.error(what).to_string()));
                }
            }
            count += 1;
        }
        match self.shape[level] {
            None => self.shape[level] = Some(count),
            Some(length) if length == count => {}
            Some(length) => {
                let what = format!("{}: a list of {count} values among lists of {length}", self.name);
                return Err(V1Error::Values(reader.error(what).to_string()));
            }
        }
        Ok(())
    }

    fn number(&mut self, reader: &mut Reader<'_>) -> Result<(), V1Error> {
        match self.is_whole.then(|| reader.whole()).flatten() {
            Some(value) => self.integer(value),
            None => self.float(reader.float64()?),
        }
        Ok(())
    }

    fn integer(&mut self, value: i64) {
        if self.is_whole {
            self.whole.push(value);
        } else {
            self.floats.push(value as f64);
        }
    }

    fn float(&mut self, value: f64) {
        if std::mem::take(&mut self.is_whole) {
            self.floats = std::mem::take(&mut self.whole).into_iter().map(|value| value as f64).collect();
        }
        self.floats.push(value);
    }

    fn ragged(&self, reader: &Reader<'_>) -> V1Error {
        V1Error::Values(reader.error(format!("{}: lists and values are mixed", self.name)).to_string())
    }
}

/// The most columns of a frame: some fifty megabytes where each has one cell.
const MOST_COLUMNS: usize = 1 << 18;

/// So many cells a frame may have however short its text is.
const FEW_CELLS: usize = 1 << 16;

/// Columns under construction: of rows keyed by column, or of columns keyed by name, one object or many, or lists of
/// such.
struct Frame<'a> {
    columns: Vec<(String, Vec<Cell>)>,
    by_name: HashMap<String, usize>,
    /// The columns that are taken, with their order; without any, all are.
    chosen: HashMap<&'a str, usize>,
    rows: usize,
    /// What text takes up that was written once for several rows, in cells; and the work of objects that add no rows.
    repeated: usize,
    /// Cells that it may have. Without a bound, rows written as `{}` behind one row of many columns take up thousands
    /// of times the memory that their text did.
    most: usize,
    name: &'a str,
}

/// A column whose cells are keyed by row.
type Keyed = (String, Vec<(String, Cell)>);

impl<'a> Frame<'a> {
    fn new(name: &'a str) -> Self {
        let (columns, by_name, chosen) = (Vec::new(), HashMap::new(), HashMap::new());
        Frame { columns, by_name, chosen, rows: 0, repeated: 0, most: FEW_CELLS, name }
    }

    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), V1Error> {
        let mut entries = reader.array()?;
        while reader.element(&mut entries)? {
            if reader.kind()? == Kind::Array {
                let mut inner = reader.array()?;
                while reader.element(&mut inner)? {
                    self.add(reader)?;
                }
            } else {
                self.add(reader)?;
            }
        }
        Ok(())
    }

    /// One object: a row of values, columns of lists, or columns keyed by row (as pandas writes a frame). A value beside
    /// lists is that of all their rows, as pandas has it.
    fn add(&mut self, reader: &mut Reader<'_>) -> Result<(), V1Error> {
        if reader.kind()? != Kind::Object {
            let what = format!("{}: expected an object like the first element", self.name);
            return Err(V1Error::Values(reader.error(what).to_string()));
        }
        // A row of which nothing is taken is one that lacks everything; a frame of which nothing is taken has no rows.
        let (mut listed, mut has_values, mut keyed, mut without) = (None, false, Vec::new(), 1);
        let mut entries = reader.object()?;
        while let Some(key) = reader.key(&mut entries)? {
            let kind = reader.kind()?;
            if !self.chosen.is_empty() && !self.chosen.contains_key(&*key) {
                without = usize::from(without == 1 && !matches!(kind, Kind::Array | Kind::Object));
                reader.skip()?;
            } else if kind == Kind::Object {
                self.check_columns(keyed.len() + 1)?;
                let cells = parse_keyed(reader, &key)?;
                keyed.push((key.into_owned(), cells));
            } else if kind == Kind::Array {
                listed = Some(self.add_cells(&key, parse_cells(reader, &key)?, listed)?);
            } else {
                let cell = parse_cell(reader, &key)?;
                self.column(&key, 0)?.push(cell);
                has_values = true;
            }
        }
        let added = match (keyed.is_empty(), listed) {
            (true, Some(count)) => count,
            (true, None) if has_values => 1,
            (true, None) => without,
            (false, None) if !has_values => self.add_keyed(keyed)?,
            (false, _) => {
                return Err(V1Error::Values(format!("{}: some columns are keyed by row, and some are not", self.name)));
            }
        };
        self.fill(added)
    }

    /// Gives all columns `added` more rows than there were: a column of one value repeats it, and one of none lacks it.
    fn fill(&mut self, added: usize) -> Result<(), V1Error> {
        let start = self.rows;
        if added > 1 {
            let size = |(_, column): &(String, Vec<Cell>)| match &column[start.min(column.len())..] {
                [Cell::Text(text)] => text.len().div_ceil(size_of::<Cell>()),
                _ => 0,
            };
            let sizes: usize = self.columns.iter().map(size).sum();
            self.repeated = self.repeated.saturating_add(sizes.saturating_mul(added - 1));
        }
        if added == 0 {
            // All columns are looked at for it.
            self.repeated = self.repeated.saturating_add(self.columns.len());
        }
        self.rows += added;
        self.check(self.columns.len(), self.rows)?;
        for (_, column) in &mut self.columns {
            if column.len() != self.rows {
                let value = column.get(start).cloned().unwrap_or(Cell::Missing);
                column.resize(self.rows, value);
            }
        }
        Ok(())
    }

    /// Cells in the order of rows, as many as the lists before them have: `wanted`. Returns how many.
    fn add_cells(&mut self, key: &str, cells: Vec<Cell>, wanted: Option<usize>) -> Result<usize, V1Error> {
        let count = cells.len();
        if let Some(wanted) = wanted.filter(|wanted| *wanted != count) {
            let (name, key) = (self.name, excerpt(key));
            return Err(V1Error::Values(format!(
                "{name}: column '{key}' has {count} values, the columns before it {wanted}"
            )));
        }
        self.column(key, 0)?.extend(cells);
        Ok(count)
    }

    /// Columns whose rows are matched by key. As pandas, rows come in the order in which their keys are met, column by
    /// column, and in the order of the columns that are taken. Returns how many.
    fn add_keyed(&mut self, mut keyed: Vec<Keyed>) -> Result<usize, V1Error> {
        keyed.sort_by_key(|(column, _)| self.chosen.get(column.as_str()).copied());
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (row, _) in keyed.iter().flat_map(|(_, cells)| cells) {
            let next = places.len();
            places.entry(row).or_insert(next);
        }
        let (name, start, count) = (self.name, self.rows, places.len());
        for (key, cells) in &keyed {
            let column = self.column(key, count)?;
            column.resize(start + count, Cell::Missing);
            let mut filled = vec![false; count];
            for (row, cell) in cells {
                let place = places[row.as_str()];
                if std::mem::replace(&mut filled[place], true) {
                    let (key, row) = (excerpt(key), excerpt(row));
                    return Err(V1Error::Values(format!("{name}: row '{row}' of column '{key}' appears twice")));
                }
                column[start + place] = cell.clone();
            }
        }
        Ok(count)
    }

    /// The column called `key`, filled up to the rows at hand, which are `more` than there were.
    fn column(&mut self, key: &str, more: usize) -> Result<&mut Vec<Cell>, V1Error> {
        let index = match self.by_name.get(key) {
            Some(&index) => index,
            None => {
                self.check_columns(self.columns.len() + 1)?;
                self.check(self.columns.len() + 1, self.rows)?;
                self.by_name.insert(key.to_owned(), self.columns.len());
                self.columns.push((key.to_owned(), vec![Cell::Missing; self.rows]));
                self.columns.len() - 1
            }
        };
        self.check(self.columns.len(), self.rows + more)?;
        let column = &mut self.columns[index].1;
        if column.len() > self.rows {
            return Err(V1Error::Values(format!("{}: column '{}' appears twice", self.name, excerpt(key))));
        }
        Ok(column)
    }

    /// A column takes up far more than the text that names it.
    fn check_columns(&self, columns: usize) -> Result<(), V1Error> {
        if columns <= MOST_COLUMNS {
            return Ok(());
        }
        Err(V1Error::Values(format!("{}: more than {MOST_COLUMNS} columns", self.name)))
    }

    fn check(&self, columns: usize, rows: usize) -> Result<(), V1Error> {
        let cells = columns.checked_mul(rows).and_then(|cells| cells.checked_add(self.repeated));
        if cells.is_some_and(|cells| cells <= self.most) {
            return Ok(());
        }
        Err(V1Error::Values(format!(
            "{}: {rows} rows of {columns} columns, most of them missing or repeated, are too large a table",
            self.name
        )))
    }
}

fn parse_keyed(reader: &mut Reader<'_>, key: &str) -> Result<Vec<(String, Cell)>, V1Error> {
    let mut cells = Vec::new();
    let mut entries = reader.object()?;
    while let Some(row) = reader.key(&mut entries)? {
        cells.push((row.into_owned(), parse_cell(reader, key)?));
    }
    Ok(cells)
}

fn parse_cells(reader: &mut Reader<'_>, key: &str) -> Result<Vec<Cell>, V1Error> {
    let mut cells = Vec::new();
    let mut entries = reader.array()?;
    while reader.element(&mut entries)? {
        cells.push(parse_cell(reader, key)?);
    }
    Ok(cells)
}

fn parse_cell(reader: &mut Reader<'_>, key: &str) -> Result<Cell, V1Error> {
    Ok(match reader.kind()? {
        Kind::Number => Cell::Number(reader.float64()?),
        Kind::Bool => Cell::Number(f64::from(u8::from(reader.boolean()?))),
        Kind::String => Cell::Text(reader.string()?.into_owned()),
        Kind::Null => {
            reader.null()?;
            Cell::Missing
        }
        Kind::Array | Kind::Object => {
            let what = format!("column '{}' is nested; expected a value or a list of values", excerpt(key));
            return Err(V1Error::Values(reader.error(what).to_string()));
        }
    })
}
