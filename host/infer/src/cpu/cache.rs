//! The KV cache on the processor.

use super::kernels::{CacheElement, HeadCache};
use crate::memory::HugeSlice;
use crate::ops::{CacheShape, PAGE_TOKENS};
use crate::{Error, Result};

/// The KV cache. In each page, layer and kv head: the first elements of the keys of the page's tokens, then the second
/// ones and so on, so that the products with 8 keys are formed side by side; and the values of one token after the other.
pub(crate) enum Cache {
    /// Half precision.
    Half(Planes<u16>),
    /// Single precision, for comparisons.
    Single(Planes<f32>),
}

/// Keys and values of one element type.
pub(crate) struct Planes<E> {
    shape: CacheShape,
    keys: HugeSlice<E>,
    values: HugeSlice<E>,
}

impl<E: CacheElement> Planes<E> {
    pub(super) fn new(shape: CacheShape) -> Result<Self> {
        let elements = shape.layers * shape.pages * shape.kv_heads * PAGE_TOKENS * shape.head_dim;
        let plane = || {
            HugeSlice::zeroed(elements)
                .map_err(|error| Error::Device(format!("no memory for the KV cache: {error}")))
        };
        Ok(Self {
            shape,
            keys: plane()?,
            values: plane()?,
        })
    }

    /// Elements of a page: those of all layers, so that a page that is not in use costs no memory.
    fn page_stride(&self) -> usize {
        self.shape.layers * self.layer_stride()
    }

    fn layer_stride(&self) -> usize {
        self.shape.kv_heads * PAGE_TOKENS * self.shape.head_dim
    }

    pub(super) fn store(&mut self, layer: usize, page: usize, slot: usize, k: &[f32], v: &[f32]) {
        let dim = self.shape.head_dim;
        let base = page * self.page_stride() + layer * self.layer_stride();
        let values = self.values.as_mut_slice();
        for (head, source) in v.chunks_exact(dim).enumerate() {
            let at = base + head * PAGE_TOKENS * dim + slot * dim;
            E::narrow_all(source, &mut values[at..at + dim]);
        }
        let keys = self.keys.as_mut_slice();
        for (head, source) in k.chunks_exact(dim).enumerate() {
            let at = base + head * PAGE_TOKENS * dim + slot;
            let mut narrow = [E::narrow(0.0); 64];
            for (part, source) in source.chunks(narrow.len()).enumerate() {
                E::narrow_all(source, &mut narrow);
                let from = at + part * narrow.len() * PAGE_TOKENS;
                let places = keys[from..].iter_mut().step_by(PAGE_TOKENS);
                for (place, value) in places.zip(&narrow[..source.len()]) {
                    *place = *value;
                }
            }
        }
    }

    pub(super) fn head<'a>(
        &'a self,
        layer: usize,
        kv_head: usize,
        table: &'a [u32],
    ) -> HeadCache<'a, E> {
        let dim = self.shape.head_dim;
        HeadCache {
            keys: &self.keys,
            values: &self.values,
            table,
            stride: self.page_stride(),
            offset: layer * self.layer_stride() + kv_head * PAGE_TOKENS * dim,
            head_dim: dim,
        }
    }
}
