//! Leaves that are linear functions of the row (`linear_tree`): a constant and a few weighted columns, or the plain
//! leaf value where one of those columns is missing.

use super::text::RawTree;

/// The leaves of all trees, one after another.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinearLeaves {
    /// Tree -> its first leaf.
    first: Vec<u32>,
    leaves: Vec<Leaf>,
    terms: Vec<(u32, f64)>,
}

#[derive(Clone, Copy, Debug)]
struct Leaf {
    constant: f64,
    /// For rows that lack a value.
    value: f64,
    /// Where its terms begin; they end where the next leaf's begin.
    first_term: u32,
}

impl LinearLeaves {
    /// Appends the leaves of a tree, plain ones too; `features` is the number of columns.
    pub(super) fn push(&mut self, tree: &RawTree, features: usize) -> Result<(), String> {
        self.first.push(self.leaves.len() as u32);
        let mut done = 0;
        for (index, &value) in tree.leaf_value.iter().enumerate() {
            let first_term = self.terms.len() as u32;
            let Some(linear) = &tree.linear else {
                self.leaves.push(Leaf { constant: value, value, first_term });
                continue;
            };
            self.leaves.push(Leaf { constant: linear.constant[index], value, first_term });
            let end = done + linear.counts[index] as usize;
            for (&feature, &coefficient) in linear.features[done..end].iter().zip(&linear.coefficients[done..end]) {
                if feature as usize >= features {
                    return Err(format!("leaf {index} is a function of feature {feature} of {features}"));
                }
                self.terms.push((feature, coefficient));
            }
            done = end;
        }
        Ok(())
    }

    /// The value of leaf `leaf` of tree `tree` for a row: terms in order, without fused operations.
    pub(crate) fn value(&self, tree: usize, leaf: usize, row: &[f64]) -> f64 {
        let at = self.first[tree] as usize + leaf;
        let leaf = self.leaves[at];
        let end = self.leaves.get(at + 1).map_or(self.terms.len(), |next| next.first_term as usize);
        let mut out = leaf.constant;
        for &(feature, coefficient) in &self.terms[leaf.first_term as usize..end] {
            let x = row[feature as usize];
            if x.is_nan() {
                return leaf.value;
            }
            out += coefficient * x;
        }
        out
    }

    pub(crate) fn bytes(&self) -> usize {
        self.first.len() * 4 + self.leaves.len() * size_of::<Leaf>() + self.terms.len() * size_of::<(u32, f64)>()
    }
}
