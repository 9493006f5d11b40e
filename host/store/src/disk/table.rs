//! A table: the writes that the tree does not have yet, in memory and in order; and the merge of
//! tables and tree that a scan reads.

use crate::error::Result;
use crate::store::{Order, Pair};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;

/// Newest writes by key; `None` is a delete, which hides what the tree has.
#[derive(Default)]
pub struct Table {
    map: BTreeMap<Box<[u8]>, Option<Box<[u8]>>>,
    bytes: usize,
}

/// A rough price of an entry beyond its bytes.
const OVERHEAD: usize = 64;

impl Table {
    /// Records a write.
    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        let size = value.map_or(0, <[u8]>::len);
        match self.map.get_mut(key) {
            Some(slot) => {
                self.bytes -= slot.as_ref().map_or(0, |value| value.len());
                *slot = value.map(Box::from);
            }
            None => {
                self.bytes += key.len() + OVERHEAD;
                self.map.insert(key.into(), value.map(Box::from));
            }
        }
        self.bytes += size;
    }

    /// `None` if it knows nothing of `key`, `Some(None)` if it knows that it was deleted.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.map.get(key).map(Option::as_deref)
    }

    /// Its size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its writes, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.map
            .iter()
            .map(|(key, value)| (key.as_ref(), value.as_deref()))
    }

    /// A layer for [`merge`].
    pub fn layer<'a>(&'a self, from: Bound<&[u8]>, to: Bound<&[u8]>, order: Order) -> Layer<'a> {
        let range = self.map.range::<[u8], _>((from, to));
        let range = range.map(|(key, value)| (key.as_ref(), value.as_deref()));
        let copy =
            |(key, value): (&[u8], Option<&[u8]>)| Ok((key.to_vec(), value.map(<[u8]>::to_vec)));
        match order {
            Order::Ascending => Box::new(range.map(copy)),
            Order::Descending => Box::new(range.rev().map(copy)),
        }
    }
}

/// Writes in the order of a scan; `None` is a delete.
pub type Layer<'a> = Box<dyn Iterator<Item = Result<(Vec<u8>, Option<Vec<u8>>)>> + 'a>;

/// Joins layers, the newest first: of each key the newest write counts.
pub fn merge(layers: Vec<Layer<'_>>, order: Order, limit: usize) -> Result<Vec<Pair>> {
    let mut layers: Vec<Peekable<Layer<'_>>> = layers.into_iter().map(Iterator::peekable).collect();
    let mut pairs = Vec::new();
    while pairs.len() < limit {
        let Some(newest) = next_layer(&mut layers, order) else {
            break;
        };
        let Some((key, value)) = layers
            .get_mut(newest)
            .and_then(Iterator::next)
            .transpose()?
        else {
            break;
        };
        for older in layers.iter_mut().skip(newest + 1) {
            older.next_if(|write| matches!(write, Ok((same, _)) if *same == key));
        }
        pairs.extend(value.map(|value| (key, value)));
    }
    Ok(pairs)
}

/// The layer that has the next key, the newest of those that have it. An error comes first.
fn next_layer(layers: &mut [Peekable<Layer<'_>>], order: Order) -> Option<usize> {
    let mut best: Option<(usize, &[u8])> = None;
    for (index, layer) in layers.iter_mut().enumerate() {
        match layer.peek() {
            None => {}
            Some(Err(_)) => return Some(index),
            Some(Ok((key, _))) => {
                let sooner = best.is_none_or(|(_, other)| match order {
                    Order::Ascending => key.as_slice().cmp(other) == Ordering::Less,
                    Order::Descending => key.as_slice().cmp(other) == Ordering::Greater,
                });
                if sooner {
                    best = Some((index, key));
                }
            }
        }
    }
    best.map(|(index, _)| index)
}
