//! From a row of numbers to small codes.
//!
//! For every feature the distinct thresholds of the whole forest are sorted. The code of a value is the number of
//! thresholds that it lies right of; then "goes right at the node whose threshold has rank `k`" is exactly
//! `code > k`, because only the order counts. Codes are bytes: a feature with more than 255 thresholds gets several
//! columns, each counting within its own 255.
//!
//! Missing values need no case of their own in the kernels: a feature has one column for each (kind of missing,
//! default side) that occurs, and a missing value is 0 there (never right) or 255 (always right). A categorical test
//! gets a column of its own too, 0 or 255.

use super::model::{CategoryRule, CategorySet, Forest, Missing, Node, Real, Test};
use super::search::{CHUNK, ROWS, Request, Special, Table, Tables};
use std::collections::HashMap;

/// Which values are missing for a column, and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Variant {
    missing: Missing,
    default_left: bool,
}

/// The columns of one variant of a feature: one for each chunk of thresholds.
#[derive(Clone, Copy, Debug)]
struct Column {
    variant: Variant,
    first: u32,
    /// The rank of not-a-number: left or right of all thresholds, or that of zero where it is not missing.
    nan_rank: u32,
}

impl Column {
    /// Is zero missing too?
    fn misses_zero(self) -> bool {
        self.variant.missing == Missing::Zero
    }
}

#[derive(Clone, Debug)]
struct Numeric {
    feature: u32,
    table: Table,
    /// Its entries of [`Columns::columns`].
    first_column: u32,
    columns: u32,
    /// Is zero missing in any of them?
    misses_zero: bool,
}

#[derive(Clone, Copy, Debug)]
struct Categorical {
    feature: u32,
    set: u32,
    default_left: bool,
    column: u32,
}

/// The compiled quantiser of a forest.
#[derive(Clone, Debug)]
pub struct Columns<T> {
    /// By feature.
    numeric: Vec<Numeric>,
    columns: Vec<Column>,
    tables: Tables<T>,
    categorical: Vec<Categorical>,
    sets: Vec<CategorySet>,
    category_index: HashMap<(u32, u32, bool), u32>,
    category_rule: CategoryRule,
    flush_zero: bool,
    features: usize,
    count: usize,
    row_kernel: Option<RowKernel<T>>,
}

/// Writes the numeric codes of one row.
pub type RowKernel<T> = unsafe fn(&Columns<T>, &[T], &mut [u8]);

impl<T: Real> Columns<T> {
    /// Collects thresholds and variants of `forest`.
    pub fn new(forest: &Forest<T>) -> Self {
        let mut columns = Columns {
            numeric: Vec::new(),
            columns: Vec::new(),
            tables: Tables::new(forest.compare, forest.flush_zero),
            categorical: Vec::new(),
            sets: forest.sets.clone(),
            category_index: HashMap::new(),
            category_rule: forest.category_rule,
            flush_zero: forest.flush_zero,
            features: forest.features,
            count: 0,
            row_kernel: T::row_kernel(),
        };
        // Sorted by feature, so that only features that occur take any room.
        let mut tests = Vec::with_capacity(forest.nodes.len());
        for node in &forest.nodes {
            match node.test {
                Test::Threshold(threshold) => tests.push((node.feature, threshold, variant(node))),
                Test::Category(set) => columns.add_category(node, set),
            }
        }
        tests.sort_unstable_by_key(|(feature, ..)| *feature);
        for tests in tests.chunk_by(|a, b| a.0 == b.0) {
            columns.add_numeric(tests);
        }
        columns
    }

    fn add_category(&mut self, node: &Node<T>, set: u32) {
        let (feature, default_left, column) = (node.feature, node.default_left, self.count as u32);
        if let std::collections::hash_map::Entry::Vacant(entry) =
            self.category_index.entry((feature, set, default_left))
        {
            entry.insert(column);
            self.categorical.push(Categorical { feature, set, default_left, column });
            self.count += 1;
        }
    }

    /// All tests of one feature.
    fn add_numeric(&mut self, tests: &[(u32, T, Variant)]) {
        let table = self.tables.add(tests.iter().map(|(_, threshold, _)| *threshold));
        let mut variants: Vec<Variant> = Vec::new();
        for (_, _, variant) in tests {
            if !variants.contains(variant) {
                variants.push(*variant);
            }
        }
        variants.sort_unstable();
        let zero = self.tables.rank(&table, T::ZERO);
        self.numeric.push(Numeric {
            feature: tests[0].0,
            table,
            first_column: self.columns.len() as u32,
            columns: variants.len() as u32,
            misses_zero: variants.iter().any(|variant| variant.missing == Missing::Zero),
        });
        for variant in variants {
            let nan_rank = match variant {
                Variant { missing: Missing::Never, .. } => zero,
                Variant { default_left: true, .. } => 0,
                Variant { default_left: false, .. } => u32::MAX,
            };
            self.columns.push(Column { variant, first: self.count as u32, nan_rank });
            self.count += table.chunks();
        }
    }

    fn columns_of(&self, numeric: &Numeric) -> &[Column] {
        &self.columns[numeric.first_column as usize..][..numeric.columns as usize]
    }

    /// Number of columns: the length of a row of codes.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.tables.bytes()
            + self.numeric.len() * size_of::<Numeric>()
            + self.columns.len() * size_of::<Column>()
            + self.categorical.len() * size_of::<Categorical>()
            + self.sets.iter().map(CategorySet::bytes).sum::<usize>()
    }

    /// The column and the rank that `node` compares: it goes right when the column's code is greater than the rank.
    ///
    /// # Panics
    /// When the node is of another forest.
    pub fn locate(&self, node: &Node<T>) -> (usize, u8) {
        match node.test {
            Test::Category(set) => (self.category_index[&(node.feature, set, node.default_left)] as usize, 0),
            Test::Threshold(threshold) => {
                let at = self.numeric.binary_search_by_key(&node.feature, |numeric| numeric.feature);
                let numeric = &self.numeric[at.expect("a feature of this forest")];
                let rank = self.tables.rank_of(&numeric.table, threshold);
                let column = self.columns_of(numeric).iter().find(|column| column.variant == variant(node));
                let first = column.expect("a variant of this forest").first as usize;
                (first + rank / CHUNK, (rank % CHUNK) as u8)
            }
        }
    }

    /// Do thresholds that equal a value count in its rank?
    pub(super) fn counts_equal(&self) -> bool {
        self.tables.counts_equal()
    }

    /// Codes of one row; `codes` has [`Columns::count`] bytes.
    pub fn encode_row(&self, row: &[T], codes: &mut [u8]) {
        match self.row_kernel {
            // SAFETY: the kernel was handed out only because the machine has its instructions.
            #[allow(unsafe_code)]
            Some(kernel) => unsafe { kernel(self, row, codes) },
            None => self.encode_numeric(row, codes, |table, value| self.tables.rank_in(table, value)),
        }
        for categorical in &self.categorical {
            codes[categorical.column as usize] = self.category_code(categorical, row[categorical.feature as usize]);
        }
    }

    /// Codes of the numeric features of one row; `rank` is given a small or large table and a value.
    #[inline(always)]
    pub(super) fn encode_numeric(&self, row: &[T], codes: &mut [u8], rank: impl Fn(&[T], T) -> u32) {
        for numeric in &self.numeric {
            let value = row[numeric.feature as usize];
            match self.tables.groups(&numeric.table) {
                Some(table) => self.store_one(numeric, value, rank(table, value), codes),
                None => {
                    let rank = self.tables.rank(&numeric.table, value);
                    self.store(numeric, value, rank, |column, code| codes[column] = code);
                }
            }
        }
    }

    /// Codes of up to 64 rows, column by column: code of row `r` in column `c` is at `codes[c * 64 + r]`.
    /// Rows past `rows.len() / features` get any code.
    pub fn encode_block(&self, rows: &[T], codes: &mut [u8]) {
        let count = (rows.len() / self.features).min(ROWS);
        let mut values = [T::ZERO; ROWS];
        let mut ranks = [0u8; ROWS];
        for numeric in &self.numeric {
            for (value, row) in values.iter_mut().zip(rows.chunks_exact(self.features)) {
                *value = row[numeric.feature as usize];
            }
            let request = Request { values: &values, count, zeros: numeric.misses_zero };
            match self.tables.ranks(&numeric.table, &request, &mut ranks) {
                Some(special) => self.store_block(numeric, &ranks, special, codes),
                None => {
                    for (r, &value) in values[..count].iter().enumerate() {
                        let rank = self.tables.rank(&numeric.table, value);
                        self.store(numeric, value, rank, |column, code| codes[column * ROWS + r] = code);
                    }
                }
            }
        }
        for categorical in &self.categorical {
            let codes = &mut codes[categorical.column as usize * ROWS..][..count];
            for (code, row) in codes.iter_mut().zip(rows.chunks_exact(self.features)) {
                *code = self.category_code(categorical, row[categorical.feature as usize]);
            }
        }
    }

    /// Writes the code of every column of a feature whose thresholds make one chunk.
    fn store_block(&self, numeric: &Numeric, ranks: &[u8; ROWS], special: Special, codes: &mut [u8]) {
        for column in self.columns_of(numeric) {
            let out = &mut codes[column.first as usize * ROWS..][..ROWS];
            out.copy_from_slice(ranks);
            let missing = if column.misses_zero() { special.nan | special.tiny } else { special.nan };
            fill_where(out, missing, chunk_code(column.nan_rank, 0));
        }
    }

    /// Writes the code of every column of a feature, whose thresholds make one chunk, for one value.
    #[inline(always)]
    fn store_one(&self, numeric: &Numeric, value: T, rank: u32, codes: &mut [u8]) {
        let nan = value.is_nan();
        for column in self.columns_of(numeric) {
            let missing = nan || column.misses_zero() && value.abs() <= T::TINY;
            codes[column.first as usize] = if missing { chunk_code(column.nan_rank, 0) } else { rank as u8 };
        }
    }

    /// Writes the code of every column of a feature for one value.
    #[inline]
    fn store(&self, numeric: &Numeric, value: T, rank: u32, mut write: impl FnMut(usize, u8)) {
        let nan = value.is_nan();
        for column in self.columns_of(numeric) {
            let missing = nan || column.misses_zero() && value.abs() <= T::TINY;
            let rank = if missing { column.nan_rank } else { rank };
            for chunk in 0..numeric.table.chunks() {
                write(column.first as usize + chunk, chunk_code(rank, chunk));
            }
        }
    }

    fn category_code(&self, categorical: &Categorical, value: T) -> u8 {
        let value = if self.flush_zero && value.abs() <= T::TINY { T::ZERO } else { value };
        let left = if value.is_nan() {
            categorical.default_left
        } else {
            self.sets[categorical.set as usize].goes_left(self.category_rule.category(value.to_f64()))
        };
        // 0 is never greater than a rank, 255 always is.
        if left { 0 } else { 255 }
    }
}

fn variant<T>(node: &Node<T>) -> Variant {
    Variant { missing: node.missing, default_left: node.default_left }
}

/// How many of a chunk's thresholds a value of this rank lies right of.
#[inline]
fn chunk_code(rank: u32, chunk: usize) -> u8 {
    rank.saturating_sub((chunk * CHUNK) as u32).min(CHUNK as u32) as u8
}

/// Writes `code` wherever `mask` has a bit.
#[inline]
fn fill_where(out: &mut [u8], mut mask: u64, code: u8) {
    while mask != 0 {
        out[mask.trailing_zeros() as usize] = code;
        mask &= mask - 1;
    }
}
