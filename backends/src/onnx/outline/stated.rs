//! Shapes that a file states of what it computes. ONNX Runtime believes them where it cannot tell by itself: it folds the
//! Shape of such a tensor into a constant, and joins nodes whose inputs are said to be alike, so that a false one may end
//! the process (an LSTM, or SkipLayerNormalization, over a tensor that has become empty). So they are hidden from it: the
//! keys of their fields are turned into ones that no message has, in place, and protobuf passes over those.
//!
//! Shapes of the model's inputs stay, since each request is held against them; so do types, which are checked when a graph
//! is loaded.

use super::types::TYPES_DEEP;
use super::wire::Message;

/// What turns the key of a field into one of a field that its message does not have: 2 into 6 in the types of tensors; 1
/// into 5 and 2 into 6 in dimensions. The wire type, and the length of a key, stay.
const HIDES: u8 = 4 << 3;

/// How much is hidden of a shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Hidden {
    /// All of it.
    #[default]
    Whole,
    /// Lengths: how many dimensions there are is kept, which Loop and Scan ask of their bodies.
    Lengths,
}

/// Bytes of a file that [`conceal`] turns.
pub(super) type Places = Vec<usize>;

/// Hides from ONNX Runtime what was found by [`hide`].
pub(in crate::onnx) fn conceal(file: &mut [u8], places: &[usize]) {
    for &place in places {
        if let Some(key) = file.get_mut(place) {
            *key ^= HIDES;
        }
    }
}

/// Notes where shapes stand in the type of a value that is described in `info`.
pub(super) fn hide(info: Message<'_>, hidden: Hidden, places: &mut Places) -> Result<(), String> {
    for field in info.fields() {
        let field = field?;
        if field.number == 2 {
            hide_in(field.message()?, hidden, places, 1)?;
        }
    }
    Ok(())
}

/// The same of a type.
pub(super) fn hide_in(kind: Message<'_>, hidden: Hidden, places: &mut Places, depth: usize) -> Result<(), String> {
    for field in kind.fields() {
        let field = field?;
        let inner = match field.number {
            1 | 8 => {
                for shape in field.message()?.fields() {
                    let shape = shape?;
                    match (shape.number, hidden) {
                        (2, Hidden::Whole) => places.push(shape.at),
                        (2, Hidden::Lengths) => lengths(shape.message()?, places)?,
                        _ => {}
                    }
                }
                continue;
            }
            4 | 9 => 1,
            5 => 2,
            _ => continue,
        };
        for field in field.message()?.fields() {
            let field = field?;
            if field.number == inner && depth < TYPES_DEEP {
                hide_in(field.message()?, hidden, places, depth + 1)?;
            }
        }
    }
    Ok(())
}

fn lengths(shape: Message<'_>, places: &mut Places) -> Result<(), String> {
    for dimension in shape.fields() {
        let dimension = dimension?;
        if dimension.number == 1 {
            for length in dimension.message()?.fields() {
                let length = length?;
                if matches!(length.number, 1 | 2) {
                    places.push(length.at);
                }
            }
        }
    }
    Ok(())
}

/// A dimension as a file states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::onnx) struct Dimension {
    /// -1 where it is open.
    pub(in crate::onnx) length: i64,
    /// Empty where it has none.
    pub(in crate::onnx) name: String,
}

/// The shape that `info` states, of a tensor or of those in a sequence.
pub(super) fn shape(info: Message<'_>) -> Result<Option<Vec<Dimension>>, String> {
    for field in info.fields() {
        let field = field?;
        if field.number == 2 {
            return within(field.message()?, 1);
        }
    }
    Ok(None)
}

/// The shape in a type: of tensors, or of sequences and optional values of others.
fn within(kind: Message<'_>, depth: usize) -> Result<Option<Vec<Dimension>>, String> {
    for field in kind.fields() {
        let field = field?;
        match field.number {
            1 => return tensor(field.message()?),
            4 | 9 if depth < TYPES_DEEP => {
                for inner in field.message()?.fields() {
                    let inner = inner?;
                    if inner.number == 1 {
                        return within(inner.message()?, depth + 1);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// The shape in the type of a tensor.
fn tensor(kind: Message<'_>) -> Result<Option<Vec<Dimension>>, String> {
    for field in kind.fields() {
        let field = field?;
        if field.number != 2 {
            continue;
        }
        let mut dimensions = Vec::new();
        for field in field.message()?.fields() {
            let field = field?;
            if field.number == 1 {
                dimensions.push(dimension(field.message()?)?);
            }
        }
        return Ok(Some(dimensions));
    }
    Ok(None)
}

/// Does `info` state that there is nothing in it?
pub(super) fn is_empty(info: Message<'_>) -> Result<bool, String> {
    Ok(shape(info)?.is_some_and(|shape| shape.iter().any(|dimension| dimension.length == 0)))
}

/// The type of the elements of a tensor; `None` of what is none.
pub(super) fn element(info: Message<'_>) -> Result<Option<i64>, String> {
    for field in info.fields() {
        let field = field?;
        if field.number != 2 {
            continue;
        }
        for field in field.message()?.fields() {
            let field = field?;
            if field.number != 1 {
                continue;
            }
            for field in field.message()?.fields() {
                let field = field?;
                if field.number == 1 {
                    return field.whole().map(Some);
                }
            }
        }
    }
    Ok(None)
}

fn dimension(message: Message<'_>) -> Result<Dimension, String> {
    let mut found = Dimension { length: -1, name: String::new() };
    for field in message.fields() {
        let field = field?;
        // Either of them: the last one counts.
        match field.number {
            1 => found = Dimension { length: field.whole()?.max(-1), name: String::new() },
            2 => found = Dimension { length: -1, name: field.text()?.to_owned() },
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field that holds `bytes`.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat()
    }

    /// The description of a value of this shape: of a tensor, `wrapped` in types.
    fn info(wrapped: &[u8]) -> Vec<u8> {
        let dimensions = [field(1, &[0x08, 3]), field(1, &field(2, b"b")), field(1, &[])].concat();
        let mut kind = field(1, &[&[0x08, 1][..], &field(2, &dimensions)].concat());
        for number in wrapped {
            kind = field(*number, &field(1, &kind));
        }
        [field(1, b"x"), field(2, &kind)].concat()
    }

    #[test]
    fn shapes_are_read_wherever_they_stand() {
        for wrapped in [&[][..], &[4], &[9], &[4, 9]] {
            let text = info(wrapped);
            let found = shape(Message::file(&text)).unwrap().unwrap();
            let found: Vec<_> = found.iter().map(|dimension| (dimension.length, dimension.name.as_str())).collect();
            assert_eq!(found, [(3, ""), (-1, "b"), (-1, "")]);
        }
    }

    #[test]
    fn a_hidden_shape_is_none_and_nothing_else_changes() {
        for wrapped in [&[][..], &[4], &[9]] {
            let mut text = info(wrapped);
            let mut places = Places::new();
            hide(Message::file(&text), Hidden::Whole, &mut places).unwrap();
            let before = text.clone();
            conceal(&mut text, &places);
            assert_eq!(text.iter().zip(&before).filter(|(a, b)| a != b).count(), 1);
            assert_eq!(shape(Message::file(&text)).unwrap(), None);
            conceal(&mut text, &places);
            assert_eq!(text, before);
        }
    }

    #[test]
    fn hidden_lengths_leave_as_many_dimensions() {
        let mut text = info(&[]);
        let mut places = Places::new();
        hide(Message::file(&text), Hidden::Lengths, &mut places).unwrap();
        conceal(&mut text, &places);
        let open = Dimension { length: -1, name: String::new() };
        assert_eq!(shape(Message::file(&text)).unwrap(), Some(vec![open; 3]));
    }

    #[test]
    fn a_key_that_is_longer_than_it_need_be_is_turned_too() {
        // The shape's key in two bytes.
        let kind = field(1, &[0x92, 0x00, 2, 0x0a, 0x00]);
        let mut text = field(2, &kind);
        let mut places = Places::new();
        hide(Message::file(&text), Hidden::Whole, &mut places).unwrap();
        conceal(&mut text, &places);
        assert_eq!(shape(Message::file(&text)).unwrap(), None);
    }
}
