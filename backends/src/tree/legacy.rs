//! XGBoost's binary format of 0.90 to 3.0: little-endian structures laid end to end. The library dropped it in 3.1;
//! the models it wrote are still about.
//!
//! ```text
//! "binf"?  learner parameters (136 bytes)  objective  booster name          texts: u64 length, bytes
//! trees:   parameters (160)  tree*  group of each tree (i32 each)  dart: u64 count, f32 weight of each tree
//! tree:    parameters (148)  nodes (20 bytes each)  statistics (16 bytes each)
//! linear:  parameters (136)  u64 count, f32 weights
//! extra:   u64 count, (text, text)*        where the learner parameters say so
//! ```

use super::booster::{Booster, Learner, RawTree};
use super::reader::Fault;

struct Bytes<'a> {
    data: &'a [u8],
    at: usize,
}

/// Marks a left child in a node's parent field, and a default-left split in its feature field.
const HIGH_BIT: u32 = 1 << 31;
const NODE_BYTES: usize = 20;
const STATISTICS_BYTES: usize = 16;

impl<'a> Bytes<'a> {
    fn fault(&self, what: impl Into<String>) -> Fault {
        Fault { what: what.into(), at: self.at }
    }
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.data.len());
        let end = end.ok_or_else(|| self.fault(format!("{what}: {count} bytes are expected, but the file ends")))?;
        let taken = &self.data[self.at..end];
        self.at = end;
        Ok(taken)
    }
    fn u32(&mut self, what: &str) -> Result<u32, Fault> {
        Ok(word(self.take(4, what)?, 0))
    }
    fn u64(&mut self, what: &str) -> Result<u64, Fault> {
        let (low, high) = (self.u32(what)?, self.u32(what)?);
        Ok(low as u64 | (high as u64) << 32)
    }
    fn length(&mut self, size: usize, what: &str) -> Result<usize, Fault> {
        let count = self.u64(what)?;
        let fits = usize::try_from(count).ok().and_then(|n| n.checked_mul(size));
        match fits {
            Some(bytes) if bytes <= self.data.len() - self.at => Ok(count as usize),
            _ => Err(self.fault(format!("{what}: {count} entries do not fit into what is left of the file"))),
        }
    }
    fn text(&mut self, what: &str) -> Result<String, Fault> {
        let length = self.length(1, what)?;
        Ok(String::from_utf8_lossy(self.take(length, what)?).into_owned())
    }
    fn floats(&mut self, what: &str) -> Result<Vec<f32>, Fault> {
        let count = self.length(4, what)?;
        Ok(self.take(count * 4, what)?.chunks_exact(4).map(|b| f32::from_bits(word(b, 0))).collect())
    }
}

/// The little-endian word at `index` of `bytes`.
fn word(bytes: &[u8], index: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[index * 4..index * 4 + 4]);
    u32::from_le_bytes(four)
}

/// Do these bytes look like the format? It has no mark of its own but an optional prefix, so the learner parameters
/// and the objective's name behind them must make sense.
pub(crate) fn looks_like(data: &[u8]) -> bool {
    if data.starts_with(b"binf") {
        return true;
    }
    let Some(length) = data.get(136..144) else { return false };
    let length = u64::from(word(length, 0)) | u64::from(word(length, 1)) << 32;
    let name = (1..=64).contains(&length).then(|| data.get(144..144 + length as usize)).flatten();
    name.is_some_and(|name| name.contains(&b':') && name.iter().all(|b| b.is_ascii_graphic()))
}

/// Reads the whole file.
pub(crate) fn read(data: &[u8]) -> Result<Booster, Fault> {
    let mut bytes = Bytes { data, at: if data.starts_with(b"binf") { 4 } else { 0 } };
    let parameters = bytes.take(136, "learner parameters")?;
    let (extra, metrics) = (word(parameters, 3) != 0, word(parameters, 4) != 0);
    let mut booster = Booster {
        base_score: vec![f32::from_bits(word(parameters, 0))],
        features: word(parameters, 1),
        classes: word(parameters, 2),
        version: (word(parameters, 5), word(parameters, 6)),
        targets: word(parameters, 7),
        ..Booster::default()
    };
    booster.base_is_margin = booster.version.0 < 1;
    booster.objective = bytes.text("objective name")?;
    match bytes.text("booster name")?.as_str() {
        "gbtree" => read_trees(&mut bytes, &mut booster)?,
        "dart" => {
            read_trees(&mut bytes, &mut booster)?;
            // Without trees there is not even their number.
            if !booster.trees.is_empty() {
                booster.weights = bytes.floats("weights of dropped trees")?;
            }
        }
        "gblinear" => {
            booster.learner = Learner::Linear;
            bytes.take(136, "linear parameters")?;
            booster.linear = bytes.floats("linear weights")?;
        }
        other => return Err(bytes.fault(format!("booster '{other}'; gbtree, dart and gblinear are known"))),
    }
    if extra {
        for _ in 0..bytes.length(16, "attributes")? {
            let (name, value) = (bytes.text("attribute name")?, bytes.text("attribute value")?);
            if name == "best_iteration" {
                booster.best_iteration = Some(value);
            }
        }
    }
    // Before 1.0 the Poisson objective's one parameter follows as text.
    if booster.objective == "count:poisson" && bytes.at < data.len() {
        bytes.text("max_delta_step")?;
    }
    if metrics {
        for _ in 0..bytes.length(8, "metrics")? {
            bytes.text("metric")?;
        }
    }
    if bytes.at == data.len() { Ok(booster) } else { Err(bytes.fault("something follows the model")) }
}

fn read_trees(bytes: &mut Bytes<'_>, booster: &mut Booster) -> Result<(), Fault> {
    let parameters = bytes.take(160, "ensemble parameters")?;
    let trees = word(parameters, 0) as usize;
    booster.parallel_trees = word(parameters, 1).max(1);
    if trees.checked_mul(148).is_none_or(|size| size > bytes.data.len() - bytes.at) {
        return Err(bytes.fault(format!("{trees} trees do not fit into what is left of the file")));
    }
    for index in 0..trees {
        booster.trees.push(read_tree(bytes, index)?);
    }
    let groups = bytes.take(trees * 4, "groups of trees")?;
    booster.groups = (0..trees).map(|i| word(groups, i)).collect();
    Ok(())
}

fn read_tree(bytes: &mut Bytes<'_>, index: usize) -> Result<RawTree, Fault> {
    let what = format!("tree {index}");
    let parameters = bytes.take(148, &what)?;
    let (roots, count) = (word(parameters, 0), word(parameters, 1) as usize);
    if roots > 1 {
        return Err(bytes.fault(format!("{what} has {roots} roots; one is supported")));
    }
    let size = count.saturating_mul(NODE_BYTES + STATISTICS_BYTES);
    let nodes = bytes.take(size, &what)?;
    let mut tree = RawTree::default();
    for node in nodes[..count * NODE_BYTES].chunks_exact(NODE_BYTES) {
        let split = word(node, 3);
        tree.left.push(word(node, 1) as i32);
        tree.right.push(word(node, 2) as i32);
        tree.feature.push(split & !HIGH_BIT);
        tree.default_left.push((split & HIGH_BIT != 0) as u8);
        tree.condition.push(f32::from_bits(word(node, 4)));
    }
    Ok(tree)
}
