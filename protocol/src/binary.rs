//! The byte layout that the binary tensor data extension and gRPC's raw contents share: little-endian, row-major, no
//! padding; an element of text is its length in four bytes and then its bytes.

/// Splits length-prefixed text into the ends of its elements and the text without lengths.
///
/// # Errors
/// Says which element does not fit.
pub fn split_text(bytes: &[u8]) -> Result<(Vec<u32>, Vec<u8>), String> {
    let (mut ends, mut text) = (Vec::new(), Vec::with_capacity(bytes.len()));
    let mut rest = bytes;
    while !rest.is_empty() {
        let element = ends.len();
        let Some((length, tail)) = rest.split_first_chunk::<4>() else {
            return Err(format!("element {element} has {} bytes where its length of 4 bytes is expected", rest.len()));
        };
        let length = u32::from_le_bytes(*length) as usize;
        let Some(data) = tail.get(..length) else {
            return Err(format!("element {element} has length {length}, but {} bytes follow", tail.len()));
        };
        text.extend_from_slice(data);
        ends.push(u32::try_from(text.len()).map_err(|_| "more than 4 GiB of text".to_owned())?);
        rest = &tail[length..];
    }
    Ok((ends, text))
}

/// Appends one element of text.
pub fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    // Elements come from tensors, whose text is limited to 4 GiB in all.
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}
