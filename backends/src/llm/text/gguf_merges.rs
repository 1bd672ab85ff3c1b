//! The merges of a GGUF file's tokenizer: those that it lists, or those that its tokens' scores mean. Not how they are
//! applied: `tokenizers` does that.

use super::gguf_metadata::{TEXT_BYTES_MAX, shown};
use std::borrow::Cow;
use tokenizers::models::bpe::Vocab;

/// Merges, at most; the most in use are Gemma's 514,906.
const MERGES_MAX: usize = 1 << 21;
/// Work of recovering merges from scores, at most: each token's characters times its bytes. Gemma's need 15 million.
const WORK_MAX: usize = 1 << 28;

/// The merges that the file lists: "a b" makes ab.
pub(super) fn listed<'a>(merges: &'a [String], ids: &Vocab) -> Result<Vec<(&'a str, &'a str)>, String> {
    if merges.len() > MERGES_MAX {
        let count = merges.len();
        return Err(format!("`tokenizer.ggml.merges` has {count} merges; at most {MERGES_MAX} are allowed"));
    }
    let mut whole = String::new();
    let mut pair = |merge: &'a String| {
        let (left, right) = merge.split_once(' ')?;
        whole.clear();
        whole.extend([left, right]);
        [left, right, &whole].iter().all(|text| ids.contains_key(*text)).then_some((left, right))
    };
    let expected = "expected two tokens with a space between them that make a third";
    let pairs = merges.iter().enumerate().map(|(rank, merge)| {
        pair(merge).ok_or_else(|| format!("`tokenizer.ggml.merges` {rank} is '{}'; {expected}", shown(merge)))
    });
    pairs.collect()
}

/// The merges that make each token of two others, best score first: `generate_merges` of `transformers`, ties included.
pub(super) fn recovered<'a>(
    texts: &'a [Cow<'_, str>],
    ids: &Vocab,
    scores: &[f32],
) -> Result<Vec<(&'a str, &'a str)>, String> {
    let too_long = Err("`tokenizer.ggml.tokens` are too many or too long for their merges to be found".to_owned());
    let (mut merges, mut work, mut bytes) = (Vec::new(), 0usize, 0usize);
    for (text, score) in texts.iter().zip(scores) {
        let length = text.chars().count();
        work = work.saturating_add(length.saturating_mul(text.len()));
        if work > WORK_MAX {
            return too_long;
        }
        for (left, (at, _)) in text.char_indices().enumerate().skip(1) {
            let pair = text.split_at(at);
            if ids.contains_key(pair.0) && ids.contains_key(pair.1) {
                merges.push((*score + 0.0, left, length - left, pair)); // + 0 makes -0 the 0 that it equals
                bytes += text.len();
            }
        }
        if bytes > TEXT_BYTES_MAX || merges.len() > MERGES_MAX {
            return too_long;
        }
    }
    // Of equal scores the longer left part comes first, then the longer right part, then the token of the lower id.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    Ok(merges.into_iter().map(|(.., pair)| pair).collect())
}
