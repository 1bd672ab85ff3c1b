//! Sorted thresholds, and how many of them a value lies right of: its rank.
//!
//! ```text
//! small   up to 15 thresholds     | 16 thresholds |
//! large   up to 255               | 16 splitters: the last of each block | 16 blocks of 16 thresholds |
//! many    more                    | thresholds |             binary search
//! ```
//!
//! Small and large tables are padded with infinity. A rank is the splitters that a value lies right of, times 16, and
//! the thresholds of that block that it lies right of: two comparisons of 16 numbers, and no jump that depends on data.

use super::model::{Compare, Real};

/// Thresholds that one column of codes counts.
pub(super) const CHUNK: usize = 255;
/// Rows in a block.
pub(super) const ROWS: usize = 64;
/// Thresholds compared at once.
pub(super) const WIDTH: usize = 16;

/// The thresholds of one feature, within [`Tables`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    first: u32,
    count: u32,
}

impl Table {
    /// Columns that it takes to count so many thresholds.
    pub(super) fn chunks(self) -> usize {
        (self.count as usize).div_ceil(CHUNK)
    }

    fn kind(self) -> Kind {
        match self.count as usize {
            0..WIDTH => Kind::Small,
            WIDTH..=CHUNK => Kind::Large,
            _ => Kind::Many,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Small,
    Large,
    Many,
}

/// Values of one feature to be ranked.
#[derive(Debug)]
pub struct Request<'a, T> {
    /// The values.
    pub(super) values: &'a [T; ROWS],
    /// How many of them matter.
    pub(super) count: usize,
    /// Is it asked which of them are zero?
    pub(super) zeros: bool,
}

/// Which of 64 values are special: a bit for each.
#[derive(Clone, Copy, Debug)]
pub struct Special {
    /// Not a number.
    pub(super) nan: u64,
    /// Zero, up to [`Real::TINY`]; only where asked for.
    pub(super) tiny: u64,
}

/// A small or large table, and how its thresholds compare.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a, T> {
    /// One group of [`WIDTH`], or 17.
    pub(super) table: &'a [T],
    /// Does a value lie right of thresholds that equal it?
    pub(super) equal: bool,
}

/// Writes the ranks of up to 64 values, and says which are special.
pub type SearchKernel<T> = unsafe fn(&Lookup<'_, T>, &Request<'_, T>, &mut [u8; ROWS]) -> Special;

/// The thresholds of all features.
#[derive(Clone, Debug)]
pub(super) struct Tables<T> {
    values: Vec<T>,
    compare: Compare,
    flush_zero: bool,
    kernel: Option<SearchKernel<T>>,
}

impl<T: Real> Tables<T> {
    pub(super) fn new(compare: Compare, flush_zero: bool) -> Self {
        Tables { values: Vec::new(), compare, flush_zero, kernel: T::search_kernel() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.values.len() * size_of::<T>()
    }

    /// Appends the thresholds of a feature, in any order.
    pub(super) fn add(&mut self, thresholds: impl Iterator<Item = T>) -> Table {
        let mut sorted: Vec<T> = thresholds.map(|threshold| self.widen(threshold)).collect();
        sorted.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        sorted.dedup();
        let table = Table { first: self.values.len() as u32, count: sorted.len() as u32 };
        match table.kind() {
            Kind::Small => sorted.resize(WIDTH, T::INFINITY),
            Kind::Large => {
                sorted.resize(WIDTH * WIDTH, T::INFINITY);
                self.values.extend(sorted.chunks_exact(WIDTH).map(|block| block[WIDTH - 1]));
            }
            Kind::Many => {}
        }
        self.values.append(&mut sorted);
        table
    }

    /// Where values up to [`Real::TINY`] are read as zero, a threshold among them moves to the end of that range on its
    /// side of zero: then they compare as zero would, without being changed.
    fn widen(&self, threshold: T) -> T {
        if !self.flush_zero || threshold.abs() > T::TINY {
            return threshold;
        }
        let least = T::ZERO - T::TINY;
        match self.compare {
            // Right of it lies what is greater: zero does if the threshold is negative.
            Compare::LessEqual if threshold < T::ZERO => least.next_down(),
            Compare::LessEqual => T::TINY,
            // Right of it lies what is not less: zero does unless the threshold is positive.
            Compare::Less if threshold > T::ZERO => T::TINY.next_up(),
            Compare::Less => least,
        }
    }

    /// The sorted thresholds of `table`, without splitters and padding.
    fn sorted(&self, table: &Table) -> &[T] {
        let first = table.first as usize + if table.kind() == Kind::Large { WIDTH } else { 0 };
        &self.values[first..first + table.count as usize]
    }

    /// The place of one of the thresholds of `table`.
    pub(super) fn rank_of(&self, table: &Table, threshold: T) -> usize {
        let threshold = self.widen(threshold);
        self.sorted(table).partition_point(|t| *t < threshold)
    }

    /// Do thresholds that equal a value count in its rank?
    pub(super) fn counts_equal(&self) -> bool {
        self.compare == Compare::Less
    }

    /// A small or large table, splitters and padding included.
    #[inline(always)]
    pub(super) fn groups(&self, table: &Table) -> Option<&[T]> {
        let groups = match table.kind() {
            Kind::Small => 1,
            Kind::Large => 1 + WIDTH,
            Kind::Many => return None,
        };
        Some(&self.values[table.first as usize..][..groups * WIDTH])
    }

    /// Number of thresholds that `value` lies right of; 0 for not-a-number.
    pub(super) fn rank(&self, table: &Table, value: T) -> u32 {
        match (self.groups(table), self.compare) {
            (Some(table), _) => self.rank_in(table, value),
            (None, Compare::Less) => self.sorted(table).partition_point(|t| value >= *t) as u32,
            (None, Compare::LessEqual) => self.sorted(table).partition_point(|t| value > *t) as u32,
        }
    }

    /// As [`Tables::rank`], in a small or large table.
    #[inline]
    pub(super) fn rank_in(&self, table: &[T], value: T) -> u32 {
        match self.compare {
            Compare::Less => count(table, |t| value >= t),
            Compare::LessEqual => count(table, |t| value > t),
        }
    }

    /// The ranks of up to 64 values, where this machine has a kernel for it and one column counts them.
    pub(super) fn ranks(&self, table: &Table, request: &Request<'_, T>, ranks: &mut [u8; ROWS]) -> Option<Special> {
        let (table, kernel) = (self.groups(table)?, self.kernel?);
        let lookup = Lookup { table, equal: self.counts_equal() };
        // SAFETY: the kernel was handed out only because the machine has its instructions; the table is whole.
        #[allow(unsafe_code)]
        Some(unsafe { kernel(&lookup, request, ranks) })
    }
}

#[inline(always)]
fn count<T: Real>(table: &[T], right_of: impl Fn(T) -> bool) -> u32 {
    let first = count_block(table, &right_of);
    if table.len() == WIDTH {
        return first;
    }
    // Infinity lies right of the padding where equal thresholds count: it stays in the last block.
    let block = first.min(WIDTH as u32 - 1);
    let inside = count_block(&table[WIDTH * (1 + block as usize)..], &right_of);
    (block * WIDTH as u32 + inside).min(CHUNK as u32)
}

/// How many of the first 16 `thresholds` a value lies right of: four halving steps, then the last one.
#[inline(always)]
fn count_block<T: Real>(thresholds: &[T], right_of: &impl Fn(T) -> bool) -> u32 {
    let block: &[T; WIDTH] = thresholds.first_chunk().expect("a padded group of thresholds");
    let mut at = 0usize;
    for step in [8, 4, 2, 1] {
        // `at + step - 1` stays below 15: `at` is a sum of distinct greater powers of two.
        at += if right_of(block[(at + step - 1) & (WIDTH - 1)]) { step } else { 0 };
    }
    at as u32 + u32::from(at == WIDTH - 1 && right_of(block[WIDTH - 1]))
}

/// Ranks by comparing 16 thresholds at once, and counting: for a kernel file that has the instructions.
#[cfg(target_arch = "x86_64")]
macro_rules! ranks {
    ($features:literal, $t:ty, $count:ident, $rank:ident, $search:ident, $row:ident, $special:ident, $set:ident) => {
        /// Number of thresholds that `value` lies right of; `EQUAL`: those that equal it count.
        ///
        /// # Safety
        /// `table` is one group of 16 thresholds, or 17 as in `search.rs`.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn $rank<const EQUAL: bool>(table: &[$t], value: $t) -> u32 {
            let (value, start) = ($set(value), table.as_ptr());
            // SAFETY: a table longer than one group has 16 more behind it, and the block is one of those.
            unsafe {
                let first = $count::<EQUAL>(start, value);
                if table.len() == WIDTH {
                    return first;
                }
                let block = first.min(WIDTH as u32 - 1);
                let inside = $count::<EQUAL>(start.add(WIDTH * (1 + block as usize)), value);
                (block * WIDTH as u32 + inside).min(CHUNK as u32)
            }
        }

        /// Ranks of up to 64 values of one feature.
        ///
        /// # Safety
        /// The table is as in [`Lookup`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $search(
            lookup: &Lookup<'_, $t>,
            request: &Request<'_, $t>,
            ranks: &mut [u8; ROWS],
        ) -> Special {
            let values = &request.values[..request.count];
            // SAFETY: by the contract of this function.
            unsafe {
                if lookup.equal {
                    values.iter().zip(ranks).for_each(|(v, rank)| *rank = $rank::<true>(lookup.table, *v) as u8);
                } else {
                    values.iter().zip(ranks).for_each(|(v, rank)| *rank = $rank::<false>(lookup.table, *v) as u8);
                }
            }
            $special(request)
        }

        /// Numeric codes of one row.
        ///
        /// # Safety
        /// The machine has what `available` of this file asks for.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $row(columns: &Columns<$t>, row: &[$t], codes: &mut [u8]) {
            // SAFETY: `encode_numeric` hands in whole tables.
            unsafe {
                if columns.counts_equal() {
                    columns.encode_numeric(row, codes, |table, value| $rank::<true>(table, value));
                } else {
                    columns.encode_numeric(row, codes, |table, value| $rank::<false>(table, value));
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use ranks;

#[cfg(test)]
mod tests {
    use super::*;

    /// Thresholds and values around them, zero and the ends of the range among both.
    fn samples(count: usize) -> (Vec<f64>, Vec<f64>) {
        let thresholds: Vec<f64> = (0..count).map(|i| ((i * 37) % count) as f64 - count as f64 / 3.0).collect();
        let around = thresholds.iter().flat_map(|t| [*t, t.next_up(), t.next_down()]);
        let special = [0.0, -0.0, 1e-36, -1e-36, 1e-34, -1e-34, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let values = around.chain(special).collect();
        (thresholds, values)
    }

    fn check<T: Real>(count: usize, compare: Compare, flush_zero: bool) {
        let (thresholds, values) = samples(count);
        let thresholds: Vec<T> = thresholds.into_iter().map(T::from_f64).collect();
        let mut tables = Tables::new(compare, flush_zero);
        let table = tables.add(thresholds.iter().copied());
        for part in values.chunks(ROWS) {
            let mut padded = [T::ZERO; ROWS];
            padded.iter_mut().zip(part).for_each(|(out, value)| *out = T::from_f64(*value));
            let expected = |value: T| {
                let value = if flush_zero && value.abs() <= T::TINY { T::ZERO } else { value };
                let left_of = |t: &&T| if compare == Compare::Less { value >= **t } else { value > **t };
                thresholds.iter().filter(left_of).count() as u32
            };
            let request = Request { values: &padded, count: part.len(), zeros: true };
            let mut ranks = [0; ROWS];
            let special = tables.ranks(&table, &request, &mut ranks);
            for (i, &value) in padded[..part.len()].iter().enumerate() {
                let capped = |rank: u32| rank.min(count as u32);
                assert_eq!(capped(tables.rank(&table, value)), expected(value), "{value:?} among {count}");
                if let Some(special) = special {
                    assert_eq!(capped(ranks[i].into()), expected(value), "{value:?} among {count}, vectorised");
                    assert_eq!((special.nan >> i) & 1 == 1, value.is_nan());
                    assert_eq!((special.tiny >> i) & 1 == 1, value.abs() <= T::TINY);
                }
            }
        }
    }

    #[test]
    fn ranks_count_the_thresholds_on_the_left() {
        for count in [1, 2, 14, 15, 16, 17, 31, 32, 239, 240, 254, 255, 256, 600] {
            for compare in [Compare::Less, Compare::LessEqual] {
                for flush_zero in [false, true] {
                    check::<f32>(count, compare, flush_zero);
                    check::<f64>(count, compare, flush_zero);
                }
            }
        }
    }
}
