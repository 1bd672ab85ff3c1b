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

use super::model::{CategoryRule, CategorySet, Compare, Forest, Missing, Node, Real, Test};
use std::collections::HashMap;

/// Thresholds that one column counts.
const CHUNK: usize = 255;
/// Length of a threshold table that [`SearchKernel`] searches.
pub(super) const TABLE: usize = 256;
/// Rows in a block.
pub(super) const ROWS: usize = 64;

/// A search of 64 values of one feature in one padded table.
#[derive(Debug)]
pub struct Search<T> {
    /// The first value.
    pub(super) values: *const T,
    /// Distance between values, in values.
    pub(super) stride: usize,
    /// [`TABLE`] sorted thresholds.
    pub(super) table: *const T,
    /// Count thresholds that equal the value too?
    pub(super) equal: bool,
    /// Read values of magnitude up to [`Real::TINY`] as zero?
    pub(super) flush: bool,
}

/// Which of 64 values are special: a bit for each.
#[derive(Clone, Copy, Debug)]
pub struct Special {
    /// Not a number.
    pub(super) nan: u64,
    /// Zero, up to [`Real::TINY`].
    pub(super) tiny: u64,
}

/// Writes, for each of 64 values, the number of thresholds that it lies right of.
pub type SearchKernel<T> = unsafe fn(&Search<T>, &mut [u8; ROWS]) -> Special;

/// Where a value goes when it is missing, and what missing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Variant {
    missing: Missing,
    default_left: bool,
}

#[derive(Clone, Debug)]
struct Numeric<T> {
    feature: usize,
    /// Sorted, distinct; padded with infinity to a multiple of [`TABLE`] when there is one chunk.
    thresholds: Vec<T>,
    count: usize,
    /// The code of zero, which is what not-a-number is read as where it is not missing.
    zero: usize,
    variants: Vec<(Variant, usize)>,
    chunks: usize,
    /// Where there is one chunk and only not-a-number is missing: each column, and its code for a missing value.
    plain: Vec<(u32, u8)>,
}

#[derive(Clone, Debug)]
struct Categorical {
    feature: usize,
    set: CategorySet,
    default_left: bool,
    column: usize,
}

/// The compiled quantiser of a forest.
#[derive(Clone, Debug)]
pub struct Columns<T> {
    numeric: Vec<Numeric<T>>,
    categorical: Vec<Categorical>,
    compare: Compare,
    category_rule: CategoryRule,
    flush_zero: bool,
    features: usize,
    count: usize,
    category_index: HashMap<(u32, u32, bool), usize>,
    numeric_index: Vec<usize>,
}

impl<T: Real> Columns<T> {
    /// Collects thresholds and variants of `forest`.
    pub fn new(forest: &Forest<T>) -> Self {
        let mut columns = Columns {
            numeric: Vec::new(),
            categorical: Vec::new(),
            compare: forest.compare,
            category_rule: forest.category_rule,
            flush_zero: forest.flush_zero,
            features: forest.features,
            count: 0,
            category_index: HashMap::new(),
            numeric_index: vec![usize::MAX; forest.features],
        };
        let mut thresholds: Vec<Vec<T>> = vec![Vec::new(); forest.features];
        let mut variants: Vec<Vec<Variant>> = vec![Vec::new(); forest.features];
        for node in &forest.nodes {
            let feature = node.feature as usize;
            match node.test {
                Test::Threshold(t) => {
                    thresholds[feature].push(t);
                    let variant = Variant { missing: node.missing, default_left: node.default_left };
                    if !variants[feature].contains(&variant) {
                        variants[feature].push(variant);
                    }
                }
                Test::Category(set) => columns.add_category(forest, node, set),
            }
        }
        for (feature, (t, v)) in thresholds.into_iter().zip(variants).enumerate() {
            if !t.is_empty() {
                columns.add_numeric(feature, t, v);
            }
        }
        columns
    }

    fn add_category(&mut self, forest: &Forest<T>, node: &Node<T>, set: u32) {
        let key = (node.feature, set, node.default_left);
        if self.category_index.contains_key(&key) {
            return;
        }
        self.category_index.insert(key, self.count);
        self.categorical.push(Categorical {
            feature: node.feature as usize,
            set: forest.sets[set as usize].clone(),
            default_left: node.default_left,
            column: self.count,
        });
        self.count += 1;
    }

    fn add_numeric(&mut self, feature: usize, mut thresholds: Vec<T>, mut variants: Vec<Variant>) {
        thresholds.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        thresholds.dedup();
        variants.sort();
        let count = thresholds.len();
        let chunks = count.div_ceil(CHUNK);
        let mut first = self.count;
        let variants: Vec<(Variant, usize)> = variants
            .into_iter()
            .map(|variant| {
                let column = first;
                first += chunks;
                (variant, column)
            })
            .collect();
        self.count = first;
        if chunks == 1 {
            thresholds.resize(TABLE, T::INFINITY);
        }
        self.numeric_index[feature] = self.numeric.len();
        let plain = plain_columns(&variants, chunks);
        let mut numeric = Numeric { feature, thresholds, count, zero: 0, variants, chunks, plain };
        numeric.zero = numeric.rank(self.compare, T::ZERO);
        self.numeric.push(numeric);
    }

    /// Number of columns: the length of a row of codes.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.numeric.iter().map(|n| n.thresholds.len() * size_of::<T>()).sum::<usize>()
            + self.categorical.iter().map(|c| c.set.words.len() * 4).sum::<usize>()
    }

    /// The column and the rank that `node` compares: it goes right when the column's code is greater than the rank.
    pub fn locate(&self, node: &Node<T>) -> (usize, u8) {
        match node.test {
            Test::Category(set) => (self.category_index[&(node.feature, set, node.default_left)], 0),
            Test::Threshold(threshold) => {
                let numeric = &self.numeric[self.numeric_index[node.feature as usize]];
                let rank = numeric.thresholds[..numeric.count].partition_point(|t| *t < threshold);
                let variant = Variant { missing: node.missing, default_left: node.default_left };
                let first = numeric.variants.iter().find(|(v, _)| *v == variant).map_or(0, |(_, first)| *first);
                (first + rank / CHUNK, (rank % CHUNK) as u8)
            }
        }
    }

    /// Codes of one row; `codes` has [`Columns::count`] bytes.
    pub fn encode_row(&self, row: &[T], codes: &mut [u8]) {
        for numeric in &self.numeric {
            let value = self.flush(row[numeric.feature]);
            let rank = numeric.rank(self.compare, value);
            if numeric.plain.is_empty() {
                numeric.store(value, rank, |column, code| codes[column] = code);
                continue;
            }
            for &(column, missing) in &numeric.plain {
                codes[column as usize] = if value.is_nan() { missing } else { rank as u8 };
            }
        }
        for categorical in &self.categorical {
            codes[categorical.column] = self.category_code(categorical, row[categorical.feature]);
        }
    }

    /// Codes of up to 64 rows, column by column: code of row `r` in column `c` is at `codes[c * 64 + r]`.
    /// Rows past `rows.len() / features` keep whatever was there.
    pub fn encode_block(&self, rows: &[T], codes: &mut [u8]) {
        let count = (rows.len() / self.features).min(ROWS);
        let search = if count == ROWS { T::search_kernel() } else { None };
        for numeric in &self.numeric {
            match search {
                Some(search) if numeric.chunks == 1 => self.encode_vector(numeric, rows, search, codes),
                _ => {
                    for r in 0..count {
                        let value = self.flush(rows[r * self.features + numeric.feature]);
                        let rank = numeric.rank(self.compare, value);
                        numeric.store(value, rank, |column, code| codes[column * ROWS + r] = code);
                    }
                }
            }
        }
        for categorical in &self.categorical {
            for r in 0..count {
                codes[categorical.column * ROWS + r] =
                    self.category_code(categorical, rows[r * self.features + categorical.feature]);
            }
        }
    }

    /// One feature of 64 rows through the vectorised search.
    fn encode_vector(&self, numeric: &Numeric<T>, rows: &[T], search: SearchKernel<T>, codes: &mut [u8]) {
        let mut ranks = [0u8; ROWS];
        assert!(rows.len() >= ROWS * self.features && numeric.thresholds.len() == TABLE);
        let request = Search {
            values: rows[numeric.feature..].as_ptr(),
            stride: self.features,
            table: numeric.thresholds.as_ptr(),
            equal: self.compare == Compare::Less,
            flush: self.flush_zero,
        };
        // SAFETY: 64 values at a distance of `features` start at `feature`, all inside `rows` by the assertion; the
        // table has TABLE entries; the kernel was handed out only because the machine has its instructions.
        #[allow(unsafe_code)]
        let special = unsafe { search(&request, &mut ranks) };
        for (variant, first) in &numeric.variants {
            let out = &mut codes[first * ROWS..(first + 1) * ROWS];
            out.copy_from_slice(&ranks);
            let (mask, fill) = match variant.missing {
                Missing::Nan => (special.nan, default_code(variant.default_left)),
                Missing::Zero => (special.nan | special.tiny, default_code(variant.default_left)),
                Missing::Never => (special.nan, numeric.zero as u8),
            };
            fill_where(out, mask, fill);
        }
    }

    #[inline]
    fn flush(&self, value: T) -> T {
        if self.flush_zero && value.abs() <= T::TINY { T::ZERO } else { value }
    }

    fn category_code(&self, categorical: &Categorical, value: T) -> u8 {
        let value = self.flush(value);
        let left = if value.is_nan() {
            categorical.default_left
        } else {
            categorical.set.goes_left(self.category_rule.category(value.to_f64()))
        };
        default_code(left)
    }
}

impl<T: Real> Numeric<T> {
    /// Number of thresholds that `value` lies right of.
    #[inline]
    fn rank(&self, compare: Compare, value: T) -> usize {
        if self.chunks > 1 {
            return match compare {
                Compare::Less => self.thresholds.partition_point(|t| value >= *t),
                Compare::LessEqual => self.thresholds.partition_point(|t| value > *t),
            };
        }
        match compare {
            Compare::Less => search(&self.thresholds, |t| value >= t),
            Compare::LessEqual => search(&self.thresholds, |t| value > t),
        }
    }

    /// Writes the code of every column of this feature.
    #[inline]
    fn store(&self, value: T, rank: usize, mut write: impl FnMut(usize, u8)) {
        for (variant, first) in &self.variants {
            let nan = value.is_nan();
            let missing = match variant.missing {
                Missing::Nan => nan,
                Missing::Zero => nan || value.abs() <= T::TINY,
                Missing::Never => false,
            };
            if missing {
                for chunk in 0..self.chunks {
                    write(first + chunk, default_code(variant.default_left));
                }
                continue;
            }
            let rank = if nan { self.zero } else { rank };
            for chunk in 0..self.chunks {
                write(first + chunk, rank.saturating_sub(chunk * CHUNK).min(CHUNK) as u8);
            }
        }
    }
}

fn plain_columns(variants: &[(Variant, usize)], chunks: usize) -> Vec<(u32, u8)> {
    if chunks != 1 || variants.iter().any(|(v, _)| v.missing != Missing::Nan) {
        return Vec::new();
    }
    variants.iter().map(|(v, column)| (*column as u32, default_code(v.default_left))).collect()
}

/// Writes `code` wherever `mask` has a bit.
#[inline]
fn fill_where(out: &mut [u8], mut mask: u64, code: u8) {
    while mask != 0 {
        out[mask.trailing_zeros() as usize] = code;
        mask &= mask - 1;
    }
}

/// 0 is never greater than a rank, 255 always is.
#[inline]
fn default_code(left: bool) -> u8 {
    if left { 0 } else { 255 }
}

/// Branch-free binary search in a table of 256: eight steps, no jump that depends on data.
#[inline(always)]
fn search<T: Real>(table: &[T], right_of: impl Fn(T) -> bool) -> usize {
    let table: &[T; TABLE] = table.first_chunk().expect("a padded table has 256 thresholds");
    let mut at = 0usize;
    let mut step = TABLE / 2;
    while step > 0 {
        // `at + step - 1` stays below 256: `at` is a sum of distinct greater powers of two.
        at += if right_of(table[(at + step - 1) & (TABLE - 1)]) { step } else { 0 };
        step /= 2;
    }
    at
}
