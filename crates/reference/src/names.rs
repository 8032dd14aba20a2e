//! Hides the names of ONNX nodes that are also names of values.
//!
//! ONNX keeps the two apart, `rten` has one table for both and would take the node for the value.
//! Invariant: the file keeps its length, nothing but one-byte field tags changes, and bytes that are
//! not a model stay as they are.

use std::collections::BTreeSet;
use std::ops::Range;

// Field numbers of onnx.proto (ONNX IR, `ModelProto`, `GraphProto`, `NodeProto`, `ValueInfoProto`).
const MODEL_GRAPH: u64 = 7;
const GRAPH_NODE: u64 = 1;
const GRAPH_INITIALIZER: u64 = 5;
const TENSOR_NAME: u64 = 8;
const NODE_INPUT: u64 = 1;
const NODE_OUTPUT: u64 = 2;
const NODE_NAME: u64 = 3;
/// `NodeProto.doc_string` as a tag: what a hidden name becomes.
const DOC_STRING_TAG: u8 = (6 << 3) | LENGTH_DELIMITED;
const LENGTH_DELIMITED: u8 = 2;

/// One length-delimited field: its number, the place of its tag's first byte, and its contents.
struct Field {
    number: u64,
    tag: Range<usize>,
    contents: Range<usize>,
}

/// Turns each clashing name of a node of the main graph into its documentation string. False when the
/// bytes are no complete model; they are then unchanged.
#[must_use]
pub(crate) fn hide_clashing_node_names(bytes: &mut [u8]) -> bool {
    let Some(tags) = clashing_tags(bytes) else {
        return false;
    };
    for tag in tags {
        bytes[tag] = DOC_STRING_TAG;
    }
    true
}

/// Places of the tags to change; `None` when the bytes are no model.
fn clashing_tags(bytes: &[u8]) -> Option<Vec<usize>> {
    let mut value_names = BTreeSet::new();
    let mut node_names = Vec::new();
    for graph in fields(bytes, 0..bytes.len())? {
        if graph.number != MODEL_GRAPH {
            continue;
        }
        for part in fields(bytes, graph.contents)? {
            if part.number == GRAPH_NODE {
                for field in fields(bytes, part.contents)? {
                    match field.number {
                        NODE_INPUT | NODE_OUTPUT => {
                            value_names.insert(&bytes[field.contents]);
                        }
                        NODE_NAME => node_names.push(field),
                        _ => {}
                    }
                }
            } else if part.number == GRAPH_INITIALIZER {
                let names = fields(bytes, part.contents)?;
                let names = names
                    .into_iter()
                    .filter(|field| field.number == TENSOR_NAME);
                value_names.extend(names.map(|field| &bytes[field.contents]));
            }
        }
    }
    // A tag of more than one byte would be a needlessly long encoding, which nobody writes.
    node_names
        .retain(|name| name.tag.len() == 1 && value_names.contains(&bytes[name.contents.clone()]));
    Some(node_names.into_iter().map(|name| name.tag.start).collect())
}

/// The length-delimited fields of the message in `range`; `None` when it is damaged.
fn fields(bytes: &[u8], range: Range<usize>) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    let (mut at, end) = (range.start, range.end);
    while at < end {
        let tag_start = at;
        let tag = varint(bytes, &mut at, end)?;
        let tag_range = tag_start..at;
        let length = match tag & 7 {
            0 => {
                varint(bytes, &mut at, end)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(bytes, &mut at, end)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let next = at.checked_add(length).filter(|&next| next <= end)?;
        if tag & 7 == u64::from(LENGTH_DELIMITED) {
            found.push(Field {
                number: tag >> 3,
                tag: tag_range,
                contents: at..next,
            });
        }
        at = next;
    }
    Some(found)
}

/// A base-128 number of at most ten bytes.
fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes[..end].get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{clashing_tags, hide_clashing_node_names};
    use proptest::prelude::*;

    /// Two nodes, `a -> b` named "b" and `b -> c` named "n".
    const MODEL: &[u8] =
        b"\x3a\x16\x0a\x09\x0a\x01a\x12\x01b\x1a\x01b\x0a\x09\x0a\x01b\x12\x01c\x1a\x01n";

    #[test]
    fn only_the_clashing_name_is_hidden() {
        let mut bytes = MODEL.to_vec();
        assert!(hide_clashing_node_names(&mut bytes));
        let mut expected = MODEL.to_vec();
        expected[10] = 0x32;
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_cut_file_is_left_alone() {
        for len in 1..MODEL.len() {
            assert_eq!(clashing_tags(&MODEL[..len]), None, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let before = bytes.clone();
            if !hide_clashing_node_names(&mut bytes) {
                prop_assert_eq!(bytes, before);
            }
        }
    }
}
