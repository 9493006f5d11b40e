//! KV pages, and the tree of token prefixes in which full ones are shared.
//!
//! A page in the tree holds the keys and values of [`PAGE_TOKENS`] tokens that follow the tokens of its parent.
//! Sequences that begin with the same tokens have the same pages at the beginning of their tables, each counted
//! as one use. Pages are shared only when they are full, so nobody ever writes to a shared one. What a finished
//! or set-back sequence leaves in the tree stays until the memory is wanted; then the leaf that was left longest
//! ago goes first (after "RadixAttention", arXiv:2312.07104, with pages for edges).
//!
//! The tree compares tokens, not their hashes: no collision gives one request the keys of another.

use std::collections::{BTreeSet, HashMap};

use crate::ops::PAGE_TOKENS;

/// What keys and values depend on beside the tokens, and who may share them. Pages of different namespaces are
/// never shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Namespace {
    /// [`crate::GenerateRequest::cache_salt`].
    pub(crate) salt: u64,
    /// The adapter that the tokens are computed with; 0 is the model itself.
    pub(crate) adapter: u64,
}

/// How a page hangs in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Edge {
    parent: Option<u32>,
    namespace: Namespace,
    tokens: [u32; PAGE_TOKENS],
}

impl Edge {
    /// The edge to the page at `index` of a sequence; `None` where its tokens do not fill it.
    fn at(namespace: Namespace, table: &[u32], tokens: &[u32], index: usize) -> Option<Self> {
        let tokens = tokens.get(index * PAGE_TOKENS..)?.first_chunk()?;
        let parent = index.checked_sub(1).map(|before| table[before]);
        Some(Self {
            parent,
            namespace,
            tokens: *tokens,
        })
    }
}

#[derive(Debug, Clone, Default)]
struct Page {
    /// Tables that hold it.
    users: u32,
    /// Pages of the tree that follow it.
    children: u32,
    /// `None`: it is not in the tree.
    edge: Option<Box<Edge>>,
    /// When its last user left.
    left: u64,
}

/// All pages of an engine: free, in use, or kept for the next request with the same prefix.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: Vec<Page>,
    tree: HashMap<Edge, u32>,
    free: Vec<u32>,
    /// Leaves of the tree without a user, the one that was left longest ago first.
    leaves: BTreeSet<(u64, u32)>,
    /// Pages of the tree without a user. A page's users also use its parent, so all of these can be had.
    idle: usize,
    clock: u64,
    evictions: u64,
}

impl Pages {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            pages: vec![Page::default(); count],
            tree: HashMap::new(),
            free: (0..count as u32).rev().collect(),
            leaves: BTreeSet::new(),
            idle: 0,
            clock: 0,
            evictions: 0,
        }
    }

    /// Pages that [`Self::take`] can give.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle
    }

    /// Pages that no table holds, but that the tree keeps.
    pub(crate) fn cached(&self) -> usize {
        self.idle
    }

    /// Pages in tables.
    pub(crate) fn used(&self) -> usize {
        self.pages.len() - self.available()
    }

    /// Cached pages that were given to other tokens.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// How many pages of a sequence the tree has, and how many of those have no user.
    pub(crate) fn find(&self, namespace: Namespace, tokens: &[u32]) -> (usize, usize) {
        let (mut table, mut idle) = (Vec::new(), 0);
        while let Some(page) = Edge::at(namespace, &table, tokens, table.len())
            .and_then(|edge| self.tree.get(&edge).copied())
        {
            idle += usize::from(self.pages[page as usize].users == 0);
            table.push(page);
        }
        (table.len(), idle)
    }

    /// Appends the pages of the tree that follow those of the table, all of which are in the tree. Gives their
    /// number.
    pub(crate) fn extend(
        &mut self,
        namespace: Namespace,
        table: &mut Vec<u32>,
        tokens: &[u32],
    ) -> usize {
        let before = table.len();
        while let Some(page) = Edge::at(namespace, table, tokens, table.len())
            .and_then(|edge| self.tree.get(&edge).copied())
        {
            self.add_user(page);
            table.push(page);
        }
        table.len() - before
    }

    /// Puts the page at `index` of a table into the tree; its tokens are computed, and the pages before it are in
    /// the tree. Where the tree has one like it, the table gets that one.
    pub(crate) fn share(
        &mut self,
        namespace: Namespace,
        table: &mut [u32],
        tokens: &[u32],
        index: usize,
    ) {
        let Some(edge) = Edge::at(namespace, table, tokens, index) else {
            return;
        };
        let own = table[index];
        if let Some(other) = self.tree.get(&edge).copied() {
            self.add_user(other);
            self.drop_user(own);
            table[index] = other;
            return;
        }
        if let Some(parent) = edge.parent {
            // It has a user, so it is no leaf without one.
            self.pages[parent as usize].children += 1;
        }
        self.tree.insert(edge.clone(), own);
        self.pages[own as usize].edge = Some(Box::new(edge));
    }

    /// A page for new tokens: a free one, or the cached one that was left longest ago.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => self.evict()?,
        };
        self.pages[page as usize].users = 1;
        Some(page)
    }

    /// Gives back the pages of a table beyond the first `keep`.
    pub(crate) fn release(&mut self, table: &mut Vec<u32>, keep: usize) {
        // The last page first: it is the one to be evicted first.
        while table.len() > keep {
            if let Some(page) = table.pop() {
                self.drop_user(page);
            }
        }
    }

    fn add_user(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        if state.users == 0 {
            self.idle -= 1;
            self.leaves.remove(&(state.left, page));
        }
        state.users += 1;
    }

    fn drop_user(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        state.users -= 1;
        if state.users > 0 {
            return;
        }
        if state.edge.is_none() {
            self.free.push(page);
            return;
        }
        self.clock += 1;
        state.left = self.clock;
        self.idle += 1;
        if state.children == 0 {
            self.leaves.insert((state.left, page));
        }
    }

    fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.leaves.pop_first()?;
        self.idle -= 1;
        self.evictions += 1;
        let edge = self.pages[page as usize].edge.take()?;
        self.tree.remove(&edge);
        if let Some(parent) = edge.parent {
            let state = &mut self.pages[parent as usize];
            state.children -= 1;
            if state.children == 0 && state.users == 0 {
                self.leaves.insert((state.left, parent));
            }
        }
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: Namespace = Namespace {
        salt: 0,
        adapter: 0,
    };

    /// A sequence whose every page holds one token again and again.
    fn tokens(blocks: &[u32]) -> Vec<u32> {
        blocks.iter().flat_map(|b| [*b; PAGE_TOKENS]).collect()
    }

    /// Takes and shares a page for each block.
    fn fill(pages: &mut Pages, namespace: Namespace, blocks: &[u32]) -> Vec<u32> {
        let (tokens, mut table) = (tokens(blocks), Vec::new());
        pages.extend(namespace, &mut table, &tokens);
        for index in table.len()..blocks.len() {
            table.push(pages.take().unwrap());
            pages.share(namespace, &mut table, &tokens, index);
        }
        table
    }

    #[test]
    fn equal_prefixes_share_pages_and_different_namespaces_do_not() {
        let mut pages = Pages::new(16);
        let first = fill(&mut pages, HERE, &[1, 2, 3]);
        let second = fill(&mut pages, HERE, &[1, 2, 4]);
        assert_eq!(first[..2], second[..2]);
        assert_ne!(first[2], second[2]);
        let salted = Namespace { salt: 1, ..HERE };
        let adapted = Namespace { adapter: 1, ..HERE };
        for other in [salted, adapted] {
            assert_eq!(pages.find(other, &tokens(&[1, 2, 3])), (0, 0));
            assert!(
                !fill(&mut pages, other, &[1, 2, 3])
                    .iter()
                    .any(|page| first.contains(page))
            );
        }
        // A part of a page is not shared.
        assert_eq!(pages.find(HERE, &tokens(&[1, 2])[..63]), (1, 0));
    }

    #[test]
    fn the_page_left_longest_ago_goes_first_and_never_before_its_children() {
        let mut pages = Pages::new(4);
        let mut old = fill(&mut pages, HERE, &[1, 2]);
        let mut young = fill(&mut pages, HERE, &[3, 4]);
        let (kept_old, kept_young) = (old.clone(), young.clone());
        pages.release(&mut old, 0);
        pages.release(&mut young, 0);
        assert_eq!((pages.used(), pages.cached(), pages.available()), (0, 4, 4));
        let taken: Vec<u32> = std::iter::from_fn(|| pages.take()).collect();
        assert_eq!(
            taken,
            [kept_old[1], kept_old[0], kept_young[1], kept_young[0]]
        );
        assert_eq!(pages.evictions(), 4);
    }

    #[test]
    fn a_page_computed_twice_is_kept_once() {
        let mut pages = Pages::new(4);
        let all = tokens(&[7]);
        let mut tables = [vec![pages.take().unwrap()], vec![pages.take().unwrap()]];
        for table in &mut tables {
            pages.share(HERE, table, &all, 0);
        }
        assert_eq!(tables[0], tables[1]);
        assert_eq!((pages.used(), pages.available()), (1, 3));
    }

    /// One thing that happens to a sequence.
    #[derive(Debug, Clone)]
    enum Act {
        /// Begins a sequence of these blocks in a namespace.
        Begin(Vec<u32>, u64),
        /// Takes a page for the next block of a sequence.
        Grow(usize),
        /// Shares the next page that was taken.
        Share(usize),
        /// Looks for more pages in the tree.
        Extend(usize),
        /// Takes a sequence back to some pages, with another block to follow.
        Rewind(usize, usize, u32),
        /// Ends a sequence.
        End(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let any = 0usize..64;
        let act = prop_oneof![
            2 => (prop::collection::vec(0u32..3, 1..6), 0u64..2).prop_map(|(b, n)| Act::Begin(b, n)),
            6 => any.clone().prop_map(Act::Grow),
            6 => any.clone().prop_map(Act::Share),
            2 => any.clone().prop_map(Act::Extend),
            1 => (any.clone(), 0usize..6, 0u32..3).prop_map(|(s, k, b)| Act::Rewind(s, k, b)),
            2 => any.prop_map(Act::End),
        ];
        prop::collection::vec(act, 1..200)
    }

    struct Model {
        blocks: Vec<u32>,
        namespace: Namespace,
        table: Vec<u32>,
        shared: usize,
    }

    /// What the pages are said to hold must be what the sequences put there.
    fn check(
        pages: &Pages,
        sequences: &[Model],
        content: &HashMap<u32, (Namespace, Vec<u32>)>,
    ) -> Result<(), TestCaseError> {
        let mut users = vec![0; pages.pages.len()];
        for sequence in sequences {
            prop_assert!(sequence.shared <= sequence.table.len());
            for (index, page) in sequence.table.iter().enumerate() {
                users[*page as usize] += 1;
                let shared = pages.pages[*page as usize].edge.is_some();
                prop_assert_eq!(shared, index < sequence.shared);
                if shared {
                    let wanted = (sequence.namespace, sequence.blocks[..=index].to_vec());
                    prop_assert_eq!(&content[page], &wanted);
                }
            }
        }
        let mut children = vec![0; pages.pages.len()];
        for (edge, page) in &pages.tree {
            prop_assert_eq!(pages.pages[*page as usize].edge.as_deref(), Some(edge));
            if let Some(parent) = edge.parent {
                children[parent as usize] += 1;
            }
        }
        let (mut free, mut used, mut cached) = (0, 0, 0);
        for (index, page) in pages.pages.iter().enumerate() {
            prop_assert_eq!((page.users, page.children), (users[index], children[index]));
            let listed = pages.free.iter().filter(|p| **p as usize == index).count();
            let leaf = pages.leaves.contains(&(page.left, index as u32));
            let idle = page.users == 0 && page.edge.is_some();
            prop_assert_eq!(listed, usize::from(page.users == 0 && page.edge.is_none()));
            prop_assert_eq!(leaf, idle && page.children == 0);
            // A sequence's page is one of no other sequence unless it is shared.
            prop_assert!(page.users <= 1 || page.edge.is_some());
            free += listed;
            used += usize::from(page.users > 0);
            cached += usize::from(idle);
        }
        prop_assert_eq!((used, cached), (pages.used(), pages.cached()));
        prop_assert_eq!(free + cached, pages.available());
        prop_assert_eq!(free + used + cached, pages.pages.len());
        prop_assert_eq!(
            pages.tree.len(),
            pages.pages.iter().filter(|p| p.edge.is_some()).count()
        );
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn pages_are_where_a_naive_model_has_them_after_every_step(acts in acts(), count in 1usize..14) {
            let mut pages = Pages::new(count);
            let mut sequences: Vec<Model> = Vec::new();
            let mut content: HashMap<u32, (Namespace, Vec<u32>)> = HashMap::new();
            for act in acts {
                let among = sequences.len().max(1);
                match act {
                    Act::Begin(blocks, salt) => {
                        let namespace = Namespace { salt, adapter: 0 };
                        let (all, mut table) = (tokens(&blocks), Vec::new());
                        let (found, idle) = pages.find(namespace, &all);
                        let before = pages.available();
                        let shared = pages.extend(namespace, &mut table, &all);
                        prop_assert_eq!((shared, before - pages.available()), (found, idle));
                        // The longest prefix that the model knows, and no longer one.
                        let known = |length: usize| {
                            pages.pages.iter().enumerate().any(|(page, state)| {
                                state.edge.is_some() && content[&(page as u32)] == (namespace, blocks[..length].to_vec())
                            })
                        };
                        prop_assert!((1..=shared).all(known) && (shared == blocks.len() || !known(shared + 1)));
                        sequences.push(Model { blocks, namespace, table, shared });
                    }
                    Act::Grow(at) => {
                        if let Some(sequence) = sequences.get_mut(at % among)
                            && sequence.table.len() < sequence.blocks.len()
                        {
                            let had = pages.available() > 0;
                            let page = pages.take();
                            prop_assert_eq!(page.is_some(), had);
                            sequence.table.extend(page);
                        }
                    }
                    Act::Share(at) => {
                        if let Some(sequence) = sequences.get_mut(at % among)
                            && sequence.shared < sequence.table.len()
                        {
                            let all = tokens(&sequence.blocks);
                            pages.share(sequence.namespace, &mut sequence.table, &all, sequence.shared);
                            let holds = (sequence.namespace, sequence.blocks[..=sequence.shared].to_vec());
                            content.insert(sequence.table[sequence.shared], holds);
                            sequence.shared += 1;
                        }
                    }
                    Act::Extend(at) => {
                        if let Some(sequence) = sequences.get_mut(at % among)
                            && sequence.shared == sequence.table.len()
                        {
                            let all = tokens(&sequence.blocks);
                            sequence.shared += pages.extend(sequence.namespace, &mut sequence.table, &all);
                        }
                    }
                    Act::Rewind(at, keep, block) => {
                        if let Some(sequence) = sequences.get_mut(at % among)
                            && keep < sequence.blocks.len()
                        {
                            sequence.blocks.truncate(keep);
                            sequence.blocks.push(block);
                            pages.release(&mut sequence.table, keep);
                            sequence.shared = sequence.shared.min(keep);
                        }
                    }
                    Act::End(at) => {
                        if !sequences.is_empty() {
                            let mut sequence = sequences.swap_remove(at % among);
                            pages.release(&mut sequence.table, 0);
                        }
                    }
                }
                check(&pages, &sequences, &content)?;
            }
            for mut sequence in sequences.drain(..) {
                pages.release(&mut sequence.table, 0);
            }
            check(&pages, &sequences, &content)?;
            prop_assert_eq!((pages.used(), pages.available()), (0, count));
        }
    }
}
