//! What of its predictions a model answers with: the library's own, classes, or probabilities, as its settings ask.

use crate::settings::{Answer, Settings};
use kernels::forest::Real;

/// Shapes predictions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shaping {
    answer: Answer,
    threshold: f64,
}

impl Shaping {
    pub(super) fn new(settings: &Settings) -> Self {
        Shaping { answer: settings.answer, threshold: settings.threshold.map_or(0.5, f64::from) }
    }

    /// Values of a row after shaping, for predictions of `columns` of them (`None`: one, without a dimension).
    pub(super) fn columns(self, columns: Option<usize>) -> Option<usize> {
        match self.answer {
            Answer::Value => columns,
            Answer::Class => None,
            Answer::Probability => Some(columns.unwrap_or(2)),
        }
    }

    /// Shapes row-major predictions.
    pub(super) fn apply<T: Real>(self, values: Vec<T>, columns: Option<usize>) -> Vec<T> {
        match (self.answer, columns) {
            (Answer::Value, _) | (Answer::Probability, Some(_)) => values,
            (Answer::Class, Some(columns)) => {
                values.chunks_exact(columns).map(|row| index(first_maximum(row))).collect()
            }
            (Answer::Class, None) => {
                values.into_iter().map(|p| index(usize::from(p.to_f64() > self.threshold))).collect()
            }
            (Answer::Probability, None) => {
                values.into_iter().flat_map(|p| [T::from_f64(1.0 - p.to_f64()), p]).collect()
            }
        }
    }
}

fn index<T: Real>(index: usize) -> T {
    T::from_f64(index as f64)
}

fn first_maximum<T: Real>(row: &[T]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaping(answer: Answer, threshold: Option<f32>) -> Shaping {
        Shaping::new(&Settings { answer, threshold, ..Settings::default() })
    }

    #[test]
    fn classes_and_probabilities_of_one_and_of_many() {
        let one = [0.25f32, 0.75];
        assert_eq!(shaping(Answer::Class, None).apply(one.to_vec(), None), [0.0, 1.0]);
        assert_eq!(shaping(Answer::Class, Some(0.8)).apply(one.to_vec(), None), [0.0, 0.0]);
        assert_eq!(shaping(Answer::Probability, None).apply(one.to_vec(), None), [0.75, 0.25, 0.25, 0.75]);
        let many = [0.1f64, 0.6, 0.3, 0.5, 0.0, 0.5];
        assert_eq!(shaping(Answer::Class, None).apply(many.to_vec(), Some(3)), [1.0, 0.0]);
        assert_eq!(shaping(Answer::Probability, None).apply(many.to_vec(), Some(3)), many);
        assert_eq!(shaping(Answer::Probability, None).columns(None), Some(2));
        assert_eq!(shaping(Answer::Class, None).columns(Some(3)), None);
        assert_eq!(shaping(Answer::Value, None).columns(Some(3)), Some(3));
    }
}
