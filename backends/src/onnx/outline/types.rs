//! Types of values: walked for their form alone, since what they mean is asked of ONNX Runtime.

use super::shown;
use super::wire::{Message, once};

/// Types within types.
pub(super) const TYPES_DEEP: usize = 8;

/// The name of an input, an output or a value between nodes, whose type is in order; and whether a tensor's shape is
/// stated, be it that of a scalar.
pub(super) fn value_info<'a>(message: Message<'a>, what: &str) -> Result<(&'a str, bool), String> {
    let (mut name, mut kind) = ("", None);
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => name = field.text()?,
            2 => once(&mut kind, &field)?,
            _ => {}
        }
    }
    kind.map_or(Ok(()), |kind| types(kind, 1)).map_err(|e| format!("{what} {}: {e}", shown(name)))?;
    Ok((name, kind.map_or(Ok(true), has_shape)?))
}

/// Is it a type of tensors of a stated shape, or none of tensors?
fn has_shape(kind: Message<'_>) -> Result<bool, String> {
    for field in kind.fields() {
        let field = field?;
        if field.number == 1 {
            let mut fields = field.message()?.fields();
            return Ok(fields.any(|field| field.is_ok_and(|field| field.number == 2)));
        }
    }
    Ok(true)
}

/// A type: of tensors, or of sequences, maps and optional values of other types.
pub(super) fn types(message: Message<'_>, depth: usize) -> Result<(), String> {
    if depth > TYPES_DEEP {
        return Err(format!("a type is nested more than {TYPES_DEEP} deep"));
    }
    let mut one = None;
    for field in message.fields() {
        let field = field?;
        if matches!(field.number, 1 | 4 | 5 | 8 | 9) {
            once(&mut one, &field)?;
        }
        // Where the inner type is: what is in a map stands behind the type of its keys.
        let inner = match field.number {
            1 | 8 => {
                shape(field.message()?)?;
                continue;
            }
            4 | 9 => 1,
            5 => 2,
            _ => continue,
        };
        let mut one = None;
        for field in field.message()?.fields() {
            let field = field?;
            if field.number == inner {
                once(&mut one, &field)?;
                types(field.message()?, depth + 1)?;
            }
        }
    }
    Ok(())
}

/// The type of a tensor: of its elements, and its dimensions.
fn shape(message: Message<'_>) -> Result<(), String> {
    let mut one = None;
    for field in message.fields() {
        let field = field?;
        if field.number != 2 {
            continue;
        }
        once(&mut one, &field)?;
        for field in field.message()?.fields() {
            let field = field?;
            if field.number == 1 {
                dimension(field.message()?)?;
            }
        }
    }
    Ok(())
}

/// A dimension: a number, or a name.
fn dimension(message: Message<'_>) -> Result<(), String> {
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => field.whole().map(|_| ())?,
            2 => field.text().map(|_| ())?,
            _ => {}
        }
    }
    Ok(())
}
