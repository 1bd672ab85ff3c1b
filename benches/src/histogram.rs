//! Latencies, counted in buckets that are at most 1/128 of their value wide.
//!
//! Constant memory and a few instructions a value, so that counting does not disturb what is counted. Maximum and mean
//! are exact.

/// Buckets for each power of two, as a power of two.
const PRECISION: u32 = 7;

/// Counts of values of any size.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Histogram {
    /// Counts a value.
    pub(crate) fn add(&mut self, value: u64) {
        let bucket = bucket(value);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// Counts what another has counted.
    pub(crate) fn absorb(&mut self, other: &Histogram) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, more)| *mine += more);
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// Values counted.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The largest; 0 of none.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The mean; 0 of none.
    pub(crate) fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The smallest bucket bound that at least `share` of all values lie under; 0 of none.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let rank = ((share * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_bound(bucket).min(self.max);
            }
        }
        self.max
    }
}

/// Values below 2^(PRECISION+1) have buckets of their own; above, the top PRECISION+1 bits choose the bucket.
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(PRECISION + 1);
    ((u64::from(shift) << PRECISION) + (value >> shift)) as usize
}

/// The largest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket >> PRECISION).saturating_sub(1);
    let top = bucket - (shift << PRECISION);
    ((top + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::{Histogram, bucket, upper_bound};

    #[test]
    fn buckets_follow_each_other_and_are_narrow() {
        let mut previous = 0;
        for value in (0..5000).chain((13..40).flat_map(|bits| [(1u64 << bits) - 1, 1 << bits, (1 << bits) + 1])) {
            let bucket = bucket(value);
            let bound = upper_bound(bucket);
            assert!(bucket >= previous, "{value}");
            assert!(bound >= value && bound - value <= value / 128, "{value} in bucket {bucket} up to {bound}");
            previous = bucket;
        }
    }

    #[test]
    fn quantiles_are_those_of_a_sorted_list() {
        let mut histogram = Histogram::default();
        (1..=100).rev().for_each(|value| histogram.add(value));
        let quantiles = [0.0, 0.5, 0.9, 0.99, 1.0].map(|share| histogram.quantile(share));
        assert_eq!(quantiles, [1, 50, 90, 99, 100]);
        assert_eq!((histogram.count(), histogram.max(), histogram.mean()), (100, 100, 50));
        assert_eq!(Histogram::default().quantile(0.5), 0);
    }

    #[test]
    fn parts_absorbed_are_the_whole() {
        let (mut whole, mut parts) = (Histogram::default(), [Histogram::default(), Histogram::default()]);
        for value in 1..=1000 {
            whole.add(value);
            parts[usize::from(value > 300)].add(value);
        }
        let mut sum = Histogram::default();
        parts.iter().for_each(|part| sum.absorb(part));
        assert_eq!((sum.count(), sum.max(), sum.mean()), (whole.count(), whole.max(), whole.mean()));
        assert_eq!([0.1, 0.5, 0.99].map(|share| sum.quantile(share)), [0.1, 0.5, 0.99].map(|s| whole.quantile(s)));
    }
}
