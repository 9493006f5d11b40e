//! Where a model's weights come from: the tensors of a GGUF file or of a Hugging Face folder, under GGUF's names
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), and the reading of them onto a device.

use std::collections::HashSet;

use crate::ops::{Device, Weights};
use crate::quant::TensorType;
use crate::{Error, Result};

/// One tensor: its type, shape and place, all checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorInfo {
    pub(crate) kind: TensorType,
    /// Elements of a row: the contiguous dimension.
    pub(crate) columns: usize,
    /// Rows: the product of the other dimensions.
    pub(crate) rows: usize,
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// Tensors by name.
pub(crate) trait Source {
    /// A tensor that may be there: what it is, and its bytes.
    fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])>;
    /// Every tensor.
    fn tensors(&self) -> Box<dyn Iterator<Item = (&str, &TensorInfo)> + '_>;
    /// The error of a field that lies.
    fn invalid(&self, what: String) -> Error;
}

/// A tensor that must be there.
pub(crate) fn tensor<'a>(source: &'a dyn Source, name: &str) -> Result<(&'a TensorInfo, &'a [u8])> {
    source
        .tensor(name)
        .ok_or_else(|| source.invalid(format!("tensor {name} is missing")))
}

/// A vector of a known length, widened.
pub(crate) fn vector(source: &dyn Source, name: &str, len: usize) -> Result<Vec<f32>> {
    let (info, bytes) = tensor(source, name)?;
    if info.rows * info.columns != len {
        let found = info.rows * info.columns;
        return Err(source.invalid(format!(
            "tensor {name}: {found} elements, but the model needs {len}"
        )));
    }
    let mut out = vec![0.0; len];
    info.kind.dequantise(bytes, &mut out);
    Ok(out)
}

/// Reads tensors onto a device and notes which, so that one that the graph does not know is found.
pub(crate) struct Loader<'a, D> {
    source: &'a dyn Source,
    device: &'a D,
    read: HashSet<String>,
}

impl<'a, D: Device> Loader<'a, D> {
    /// `known` names tensors that the graph uses elsewhere, or may leave out.
    pub(crate) fn new(source: &'a dyn Source, device: &'a D, known: &[&str]) -> Self {
        Self {
            source,
            device,
            read: known.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.tensor(name).is_some()
    }

    /// Stacks matrices of `columns` columns.
    pub(crate) fn matrix(
        &mut self,
        names_and_rows: &[(String, usize)],
        columns: usize,
    ) -> Result<D::Matrix> {
        let mut parts = Vec::new();
        for (name, rows) in names_and_rows {
            let (info, bytes) = tensor(self.source, name)?;
            if (info.rows, info.columns) != (*rows, columns) {
                return Err(self.source.invalid(format!(
                    "tensor {name}: its shape is {} x {}, but the model's keys ask for {rows} x {columns}",
                    info.rows, info.columns
                )));
            }
            parts.push(Weights {
                kind: info.kind,
                rows: *rows,
                columns,
                bytes,
            });
            self.read.insert(name.clone());
        }
        self.device.matrix(&parts)
    }

    /// A vector, with `offset` added to each element.
    pub(crate) fn vector(&mut self, name: String, len: usize, offset: f32) -> Result<D::Vector> {
        let mut values = vector(self.source, &name, len)?;
        values.iter_mut().for_each(|value| *value += offset);
        self.read.insert(name);
        self.device.vector(&values)
    }

    /// Stacked biases; all or none of them are there.
    pub(crate) fn biases(
        &mut self,
        names_and_lens: &[(String, usize)],
    ) -> Result<Option<D::Vector>> {
        if !names_and_lens.iter().any(|(name, _)| self.has(name)) {
            return Ok(None);
        }
        let mut values = Vec::new();
        for (name, len) in names_and_lens {
            values.extend(vector(self.source, name, *len)?);
            self.read.insert(name.clone());
        }
        self.device.vector(&values).map(Some)
    }

    /// A weight that the graph does not use means another graph: better no answer than a wrong one.
    pub(crate) fn finish(self, graph: &str) -> Result<()> {
        match self
            .source
            .tensors()
            .find(|(name, _)| !self.read.contains(*name))
        {
            None => Ok(()),
            Some((name, _)) => Err(Error::Unsupported(format!(
                "tensor {name} has no place in the {graph} graph"
            ))),
        }
    }
}
