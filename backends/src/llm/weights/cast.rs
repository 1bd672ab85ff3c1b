//! Weights in another float format than their file's: `--dtype`. Tensors in blocks stay as they are.

use super::groups::{Groups, Stored};
use super::{Format, Info, MadeUp, Weights, blocks, put};
use crate::error::LoadError;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Weights whose floats become numbers of one format.
pub struct Cast {
    from: Box<dyn Weights>,
    to: Format,
    /// Tensors that change.
    infos: BTreeMap<String, Info>,
}

impl std::fmt::Debug for Cast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cast").field("file", &self.from.file()).field("to", &self.to).finish_non_exhaustive()
    }
}

impl Cast {
    /// `from`, with its floats as `to`, which is a float.
    pub fn new(from: Box<dyn Weights>, to: Format) -> Self {
        let changes = |name: &&str| from.info(name).is_some_and(|info| info.format.is_float() && info.format != to);
        let infos = from.names().into_iter().filter(changes).filter_map(|name| {
            let shape = from.info(name)?.shape.clone();
            Some((name.to_owned(), Info { format: to, shape }))
        });
        let infos = infos.collect();
        Cast { from, to, infos }
    }
}

impl Weights for Cast {
    fn file(&self) -> &Path {
        self.from.file()
    }

    fn names(&self) -> Vec<&str> {
        self.from.names()
    }

    fn info(&self, name: &str) -> Option<&Info> {
        self.infos.get(name).or_else(|| self.from.info(name))
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let Some(before) = self.from.info(name).filter(|_| self.infos.contains_key(name)) else {
            return self.from.read(name, range);
        };
        let (old, new) = (before.format.block().1, self.to.block().1);
        let place = |byte: usize| byte / new * old;
        let numbers = blocks::dequantise(before.format, &self.from.read(name, place(range.start)..place(range.end))?);
        let mut bytes = Vec::with_capacity(range.len());
        for number in numbers {
            match self.to {
                Format::F16 => {
                    let short = f16::from_f32(number);
                    if number.is_finite() && !short.is_finite() {
                        let reason = format!("'{name}' has the number {number}, which float16 has not; use bfloat16");
                        return Err(LoadError::new(self.file(), reason));
                    }
                    bytes.extend(short.to_le_bytes());
                }
                Format::Bf16 => bytes.extend(bf16::from_f32(number).to_le_bytes()),
                _ => bytes.extend(number.to_le_bytes()),
            }
        }
        Ok(bytes)
    }

    fn read_into(&self, name: &str, start: usize, to: &mut [u8]) -> Result<(), LoadError> {
        if !self.infos.contains_key(name) {
            return self.from.read_into(name, start, to);
        }
        put(self.file(), &self.read(name, start..start.saturating_add(to.len()))?, to)
    }

    fn in_order(&self, name: &str) -> bool {
        self.from.in_order(name)
    }

    fn fetch(&self, name: &str, range: Range<usize>) -> bool {
        !self.infos.contains_key(name) && self.from.fetch(name, range)
    }

    fn check_unchanged(&self) -> Result<(), LoadError> {
        self.from.check_unchanged()
    }

    /// Codes are no floats that could be rounded.
    fn stored(&self, name: &str) -> Option<Stored> {
        self.from.stored(name)
    }

    fn read_groups(&self, name: &str, rows: Range<usize>) -> Result<Option<Groups>, LoadError> {
        self.from.read_groups(name, rows)
    }

    /// As before, where they are rounded once all the same.
    fn made_up(&self, name: &str) -> Option<MadeUp> {
        self.from.made_up(name).filter(|_| self.to == Format::Bf16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Two(Vec<(&'static str, Info, Vec<u8>)>);

    impl Weights for Two {
        fn file(&self) -> &Path {
            Path::new("two")
        }
        fn names(&self) -> Vec<&str> {
            self.0.iter().map(|(name, ..)| *name).collect()
        }
        fn info(&self, name: &str) -> Option<&Info> {
            self.0.iter().find(|(each, ..)| *each == name).map(|(_, info, _)| info)
        }
        fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
            let found = self.0.iter().find(|(each, ..)| *each == name);
            Ok(found.map(|(.., bytes)| bytes[range].to_vec()).unwrap_or_default())
        }
    }

    fn two(numbers: &[f32]) -> Box<Two> {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let floats = Info { format: Format::F32, shape: vec![numbers.len()] };
        let blocks = Info { format: Format::Q8_0, shape: vec![32] };
        Box::new(Two(vec![("floats", floats, bytes), ("blocks", blocks, (0..34).collect())]))
    }

    #[test]
    fn floats_change_and_blocks_do_not() {
        let cast = Cast::new(two(&[1.0, -2.5, 1e-3, 3e38]), Format::Bf16);
        assert_eq!(cast.info("floats").unwrap(), &Info { format: Format::Bf16, shape: vec![4] });
        let expected: Vec<u8> = [-2.5, 1e-3].iter().flat_map(|n| bf16::from_f32(*n).to_le_bytes()).collect();
        assert_eq!(cast.read("floats", 2..6).unwrap(), expected);
        assert_eq!(cast.info("blocks").unwrap().format, Format::Q8_0);
        assert_eq!(cast.read("blocks", 1..3).unwrap(), [1, 2]);
    }

    #[test]
    fn what_a_format_lacks_is_an_error() {
        let error = Cast::new(two(&[1.0, 1e6]), Format::F16).read("floats", 0..4).unwrap_err();
        assert!(error.to_string().contains("'floats' has the number 1000000"), "{error}");
    }
}
