//! What of its predictions a model answers with: the library's own, classes, or probabilities, as its settings ask.

use crate::settings::{Answer, Settings};
use kernels::forest::Real;

/// What the predictions of an objective say of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Classes {
    /// The probability of each, or of the second of two.
    Probabilities,
    /// The margin of the second of two, above zero where it is the likelier one.
    Margin,
    /// A score for each, of which the greatest is its; by the name of the objective, which has no probabilities.
    Scores(&'static str),
    /// Which it is; likewise.
    Index(&'static str),
}

/// Why an objective that says nothing of classes cannot answer with one.
pub(super) fn without_classes(objective: &str, outputs: usize) -> String {
    let many = if outputs > 1 { format!(" of {outputs} outputs") } else { String::new() };
    let asked = "its settings ask for classes or their probabilities";
    format!("{asked}; predictions of objective '{objective}'{many} are neither")
}

/// Shapes predictions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shaping {
    /// They are what is asked for.
    Same,
    /// The index of the greatest of so many.
    Greatest(usize),
    /// Is the only one above this?
    Above(f64),
    /// A probability becomes that of either class.
    Both,
    /// The same of a margin.
    BothOfMargin,
}

impl Shaping {
    /// For predictions of `columns` values (`None`: one, without a dimension). Errors are answers that an objective
    /// does not have.
    pub(super) fn new(
        settings: &Settings,
        columns: Option<usize>,
        classes: Result<Classes, String>,
    ) -> Result<Self, String> {
        if settings.answer == Answer::Value {
            return Ok(Shaping::Same);
        }
        let threshold = settings.threshold.map_or(0.5, f64::from);
        // FIL compares whatever a model predicts.
        if settings.from_pbtxt && settings.answer == Answer::Class && columns.is_none() && classes.is_err() {
            return Ok(Shaping::Above(threshold));
        }
        Ok(match (settings.answer == Answer::Class, classes?, columns) {
            (true, Classes::Probabilities | Classes::Scores(_), Some(columns)) => Shaping::Greatest(columns),
            (true, Classes::Probabilities, None) => Shaping::Above(threshold),
            (true, Classes::Margin, _) => Shaping::Above(margin(threshold)),
            (true, Classes::Index(_) | Classes::Scores(_), _) | (false, Classes::Probabilities, Some(_)) => {
                Shaping::Same
            }
            (false, Classes::Probabilities, None) => Shaping::Both,
            (false, Classes::Margin, _) => Shaping::BothOfMargin,
            (false, Classes::Index(objective) | Classes::Scores(objective), _) => {
                return Err(format!("its settings ask for probabilities; objective '{objective}' predicts none"));
            }
        })
    }

    /// Values of a row after shaping.
    pub(super) fn columns(self, columns: Option<usize>) -> Option<usize> {
        match self {
            Shaping::Same => columns,
            Shaping::Greatest(_) | Shaping::Above(_) => None,
            Shaping::Both | Shaping::BothOfMargin => Some(2),
        }
    }

    /// Shapes row-major predictions.
    pub(super) fn apply<T: Real>(self, values: Vec<T>) -> Vec<T> {
        match self {
            Shaping::Same => values,
            Shaping::Greatest(columns) => values.chunks_exact(columns).map(|row| index(first_maximum(row))).collect(),
            Shaping::Above(bound) => values.into_iter().map(|v| index(usize::from(v.to_f64() > bound))).collect(),
            Shaping::Both => values.into_iter().flat_map(|p| [T::from_f64(1.0 - p.to_f64()), p]).collect(),
            Shaping::BothOfMargin => values.into_iter().flat_map(|m| both(m.to_f64()).map(T::from_f64)).collect(),
        }
    }
}

/// The margin that belongs to a probability; what no probability is above or below lies at the ends.
fn margin(probability: f64) -> f64 {
    let probability = probability.clamp(0.0, 1.0);
    (probability / (1.0 - probability)).ln()
}

/// Either is computed for itself, so that a small one keeps its digits.
fn both(margin: f64) -> [f64; 2] {
    [1.0 / (1.0 + margin.exp()), 1.0 / (1.0 + (-margin).exp())]
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

    fn shaping(answer: Answer, threshold: Option<f32>, columns: Option<usize>, classes: Classes) -> Shaping {
        let settings = Settings { answer, threshold, ..Settings::default() };
        Shaping::new(&settings, columns, Ok(classes)).unwrap()
    }

    #[test]
    fn classes_and_probabilities_of_one_and_of_many() {
        let of = |answer, threshold, columns| shaping(answer, threshold, columns, Classes::Probabilities);
        let one = [0.25f32, 0.75];
        assert_eq!(of(Answer::Class, None, None).apply(one.to_vec()), [0.0, 1.0]);
        assert_eq!(of(Answer::Class, Some(0.8), None).apply(one.to_vec()), [0.0, 0.0]);
        assert_eq!(of(Answer::Probability, None, None).apply(one.to_vec()), [0.75, 0.25, 0.25, 0.75]);
        let many = [0.1f64, 0.6, 0.3, 0.5, 0.0, 0.5];
        assert_eq!(of(Answer::Class, None, Some(3)).apply(many.to_vec()), [1.0, 0.0]);
        assert_eq!(of(Answer::Probability, None, Some(3)).apply(many.to_vec()), many);
        assert_eq!(of(Answer::Probability, None, None).columns(None), Some(2));
        assert_eq!(of(Answer::Class, None, Some(3)).columns(Some(3)), None);
        assert_eq!(of(Answer::Value, None, Some(3)).columns(Some(3)), Some(3));
    }

    #[test]
    fn a_margin_is_compared_as_one() {
        let of = |answer, threshold| shaping(answer, threshold, None, Classes::Margin);
        let margins = [-0.1f32, 0.0, 0.4, 2.0];
        assert_eq!(of(Answer::Class, None).apply(margins.to_vec()), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(of(Answer::Class, Some(0.75)).apply(margins.to_vec()), [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(of(Answer::Class, Some(1.0)).apply(margins.to_vec()), [0.0; 4]);
        assert_eq!(of(Answer::Class, Some(0.0)).apply(margins.to_vec()), [1.0; 4]);
        assert_eq!(of(Answer::Probability, None).apply(vec![0.0f32]), [0.5, 0.5]);
        assert_eq!(of(Answer::Probability, None).columns(None), Some(2));
    }

    #[test]
    fn what_an_objective_does_not_say_is_refused() {
        let settings = |answer| Settings { answer, ..Settings::default() };
        let index = Classes::Index("binary:hinge");
        assert_eq!(shaping(Answer::Class, None, None, index).apply(vec![0.0f32, 2.0]), [0.0, 2.0]);
        let refused = Shaping::new(&settings(Answer::Probability), None, Ok(index)).unwrap_err();
        assert!(refused.ends_with("objective 'binary:hinge' predicts none"), "{refused}");
        let regression = || Err(without_classes("rank:ndcg", 1));
        assert_eq!(Shaping::new(&settings(Answer::Value), None, regression()), Ok(Shaping::Same));
        let refused = Shaping::new(&settings(Answer::Class), None, regression()).unwrap_err();
        assert!(refused.ends_with("predictions of objective 'rank:ndcg' are neither"), "{refused}");
    }
}
