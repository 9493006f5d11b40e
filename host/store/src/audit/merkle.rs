//! Merkle trees after RFC 6962 (2.1): roots that name a whole log, proofs that an entry is in it
//! (inclusion) and that an older log is a beginning of it (consistency), and their verification
//! after RFC 9162 (2.1.3.2 and 2.1.4.2). Nothing here knows what a leaf holds.

use sha2::{Digest, Sha256};

/// A hash of the tree.
pub type Hash = [u8; 32];

/// The hash of a leaf that holds `data`.
pub fn leaf_hash(data: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(data)
        .finalize()
        .into()
}

/// The hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// The root of the tree without leaves.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// A full subtree: the leaves `index << level .. (index + 1) << level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// 0 for a leaf.
    pub level: u32,
    /// Its place among the nodes of its level.
    pub index: u64,
}

/// The right edge of a growing tree: the roots of its full subtrees, the largest first. It is all
/// that appending needs.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    size: u64,
    roots: Vec<Hash>,
}

impl Frontier {
    /// The frontier of a tree of `size` leaves whose full subtrees `node` knows.
    pub fn load<E>(
        size: u64,
        mut node: impl FnMut(Node) -> Result<Hash, E>,
    ) -> Result<Frontier, E> {
        let mut roots = Vec::new();
        for level in (0..u64::BITS).rev() {
            if size >> level & 1 == 1 {
                roots.push(node(Node {
                    level,
                    index: (size >> level) - 1,
                })?);
            }
        }
        Ok(Frontier { size, roots })
    }

    /// Adds a leaf and gives every node that became full by it, the leaf itself first.
    pub fn push(&mut self, leaf: Hash) -> Vec<(Node, Hash)> {
        let mut node = Node {
            level: 0,
            index: self.size,
        };
        let mut hash = leaf;
        let mut full = vec![(node, hash)];
        while node.index & 1 == 1 {
            let Some(left) = self.roots.pop() else { break };
            hash = node_hash(&left, &hash);
            node = Node {
                level: node.level + 1,
                index: node.index >> 1,
            };
            full.push((node, hash));
        }
        self.roots.push(hash);
        self.size += 1;
        full
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The tree's root.
    pub fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev();
        let Some(last) = roots.next() else {
            return empty_root();
        };
        roots.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// Computes proofs from a source of full subtrees.
pub struct Prover<F>(pub F);

impl<E, F: FnMut(Node) -> Result<Hash, E>> Prover<F> {
    /// The proof that leaf `index` is in the tree of the first `size` leaves; empty if it is not.
    pub fn inclusion(&mut self, index: u64, size: u64) -> Result<Vec<Hash>, E> {
        let mut proof = Vec::new();
        if index >= size {
            return Ok(proof);
        }
        let (mut start, mut end) = (0, size);
        while end - start > 1 {
            let middle = start + split(end - start);
            if index < middle {
                proof.push(self.root(middle, end)?);
                end = middle;
            } else {
                proof.push(self.root(start, middle)?);
                start = middle;
            }
        }
        proof.reverse();
        Ok(proof)
    }

    /// The proof that the tree of the first `old` leaves is a beginning of that of the first `new`;
    /// empty for equal sizes and for `old` 0, where there is nothing to prove.
    pub fn consistency(&mut self, old: u64, new: u64) -> Result<Vec<Hash>, E> {
        let mut proof = Vec::new();
        if old == 0 || old >= new {
            return Ok(proof);
        }
        let (mut start, mut end, mut whole) = (0, new, true);
        while old != end {
            let middle = start + split(end - start);
            if old <= middle {
                proof.push(self.root(middle, end)?);
                end = middle;
            } else {
                proof.push(self.root(start, middle)?);
                start = middle;
                whole = false;
            }
        }
        // The old tree itself is known to who checks; a part of it is not.
        if !whole {
            proof.push(self.root(start, end)?);
        }
        proof.reverse();
        Ok(proof)
    }

    /// The root over the leaves `start..end`, where `start` is a multiple of a power of two that is
    /// at least their number.
    fn root(&mut self, start: u64, end: u64) -> Result<Hash, E> {
        let count = end - start;
        if count.is_power_of_two() {
            let level = count.trailing_zeros();
            return self.0(Node {
                level,
                index: start >> level,
            });
        }
        let middle = start + split(count);
        let (left, right) = (self.root(start, middle)?, self.root(middle, end)?);
        Ok(node_hash(&left, &right))
    }
}

/// The largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// Whether `proof` shows that `leaf` is leaf `index` of the tree of `size` leaves with root `root`.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for step in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(step, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, step);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree of `old` leaves with root `old_root` is a beginning of that
/// of `new` leaves with root `new_root`.
pub fn verify_consistency(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> bool {
    if old > new {
        return false;
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == empty_root();
    }
    let mut steps = proof.iter();
    let first = if old.is_power_of_two() {
        Some(old_root)
    } else {
        steps.next()
    };
    let Some(first) = first else { return false };
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut old_hash, mut new_hash) = (*first, *first);
    for step in steps {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(step, &old_hash);
            new_hash = node_hash(step, &new_hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, step);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && old_hash == *old_root && new_hash == *new_root
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// RFC 6962's definition, word for word.
    fn definition(leaves: &[Vec<u8>]) -> Hash {
        match leaves.len() {
            0 => empty_root(),
            1 => leaf_hash(&leaves[0]),
            count => {
                let (left, right) = leaves.split_at(split(count as u64) as usize);
                node_hash(&definition(left), &definition(right))
            }
        }
    }

    /// A tree of the leaves "0", "1", …: its leaves, its full subtrees, and the root at each size.
    fn grow(count: u64) -> (Vec<Vec<u8>>, HashMap<Node, Hash>, Vec<Hash>) {
        let leaves: Vec<Vec<u8>> = (0..count)
            .map(|number| number.to_string().into_bytes())
            .collect();
        let (mut frontier, mut nodes, mut roots) =
            (Frontier::default(), HashMap::new(), vec![empty_root()]);
        for leaf in &leaves {
            nodes.extend(frontier.push(leaf_hash(leaf)));
            roots.push(frontier.root());
        }
        (leaves, nodes, roots)
    }

    #[test]
    fn the_roots_are_those_of_the_test_vectors_of_certificate_transparency() {
        let leaves = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut frontier = Frontier::default();
        for (leaf, root) in leaves.iter().zip(roots) {
            frontier.push(leaf_hash(&hex::decode(leaf).unwrap()));
            assert_eq!(hex::encode(frontier.root()), root);
        }
    }

    #[test]
    fn every_size_has_the_root_of_the_definition_and_loads_back() {
        let (leaves, nodes, roots) = grow(70);
        for (size, root) in roots.iter().enumerate() {
            assert_eq!(*root, definition(&leaves[..size]));
            let loaded =
                Frontier::load(size as u64, |node| nodes.get(&node).copied().ok_or(())).unwrap();
            assert_eq!(loaded.root(), *root);
        }
    }

    #[test]
    fn every_inclusion_proof_holds_and_no_other_leaf_passes() {
        let (leaves, nodes, roots) = grow(40);
        let mut prover = Prover(|node| nodes.get(&node).copied().ok_or(()));
        for size in 1..=40u64 {
            let root = &roots[size as usize];
            for index in 0..size {
                let proof = prover.inclusion(index, size).unwrap();
                let leaf = leaf_hash(&leaves[index as usize]);
                assert!(verify_inclusion(&leaf, index, size, &proof, root));
                assert!(!verify_inclusion(
                    &leaf_hash(b"other"),
                    index,
                    size,
                    &proof,
                    root
                ));
                assert!(!verify_inclusion(
                    &leaf,
                    index,
                    size,
                    &proof,
                    &roots[size as usize - 1]
                ));
                if index + 1 < size {
                    assert!(!verify_inclusion(&leaf, index + 1, size, &proof, root));
                }
            }
        }
    }

    #[test]
    fn every_consistency_proof_holds_and_no_other_past_passes() {
        let (_, nodes, roots) = grow(40);
        let mut prover = Prover(|node| nodes.get(&node).copied().ok_or(()));
        for new in 0..=40u64 {
            for old in 0..=new {
                let proof = prover.consistency(old, new).unwrap();
                let (old_root, new_root) = (&roots[old as usize], &roots[new as usize]);
                assert!(
                    verify_consistency(old, old_root, new, new_root, &proof),
                    "{old} of {new}"
                );
                assert!(!verify_consistency(
                    old,
                    &leaf_hash(b"other"),
                    new,
                    new_root,
                    &proof
                ));
                if old < new && old > 0 {
                    assert!(!verify_consistency(
                        old,
                        old_root,
                        new,
                        &leaf_hash(b"other"),
                        &proof
                    ));
                    assert!(!verify_consistency(
                        old,
                        old_root,
                        new,
                        new_root,
                        &proof[1..]
                    ));
                }
            }
        }
    }
}
