//! What is kept of the events: sketches by slices of time.
//!
//! Time is cut into slices of fixed width. The reference is the earliest slices that hold enough
//! events, the current window the latest ones; what lies between is forgotten. All of it is a
//! function of the set of events, not of the order in which they or their parts came:
//!
//! * slices add up, and so do the sketches in them;
//! * a part forgets only what the whole forgets too: its own reference reaches at least as far as
//!   that of the whole, which has more events, and its own latest slice is no later.

use alloc::collections::BTreeMap;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::sketch::Sketch;
use crate::tally::Tally;

/// Columns that a slice keeps of either kind: the first in the order of their names.
const MOST_COLUMNS: usize = 64;

/// How time is cut, and what becomes the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Milliseconds of a slice.
    pub slice_ms: u64,
    /// Slices of the current window, the one that is still filling among them.
    pub window_slices: u64,
    /// Events that make a reference; 0 where it is given in the config.
    pub reference_events: u64,
}

/// Sketches of some events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// How many events.
    pub events: u64,
    /// The numbers, by column.
    pub numbers: BTreeMap<String, Sketch>,
    /// The categories, by column.
    pub categories: BTreeMap<String, Tally>,
}

impl Slice {
    /// Counts a number.
    pub fn add_number(&mut self, column: &str, value: f64) {
        entry(&mut self.numbers, column, |sketch| sketch.add(value));
    }

    /// Counts a category.
    pub fn add_category(&mut self, column: &str, category: &str) {
        entry(&mut self.categories, column, |tally| tally.add(category, 1));
    }

    /// Adds the counts of another slice.
    pub fn merge(&mut self, other: &Self) {
        self.events = self.events.saturating_add(other.events);
        for (column, sketch) in &other.numbers {
            entry(&mut self.numbers, column, |sum| sum.merge(sketch));
        }
        for (column, tally) in &other.categories {
            entry(&mut self.categories, column, |sum| sum.merge(tally));
        }
    }
}

fn entry<T: Default>(columns: &mut BTreeMap<String, T>, name: &str, change: impl FnOnce(&mut T)) {
    match columns.get_mut(name) {
        Some(column) => change(column),
        None => {
            let mut column = T::default();
            change(&mut column);
            columns.insert(name.into(), column);
            if columns.len() > MOST_COLUMNS {
                columns.pop_last();
            }
        }
    }
}

/// The slices that matter, and how late it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    shape: Shape,
    now_ms: u64,
    slices: BTreeMap<u64, Slice>,
}

impl History {
    /// Nothing yet.
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            now_ms: 0,
            slices: BTreeMap::new(),
        }
    }

    /// The shape that it was made with.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Counts an event of this time; `fill` adds its columns.
    pub fn add(&mut self, at_ms: u64, fill: impl FnOnce(&mut Slice)) {
        self.now_ms = self.now_ms.max(at_ms);
        let slice = self.slices.entry(at_ms / self.shape.slice_ms).or_default();
        slice.events += 1;
        fill(slice);
    }

    /// It is at least this late.
    pub fn advance(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// The number of the slice that is filling.
    pub fn latest_slice(&self) -> u64 {
        self.now_ms / self.shape.slice_ms
    }

    /// Adds another history of the same shape.
    pub fn merge(&mut self, other: &Self) {
        self.now_ms = self.now_ms.max(other.now_ms);
        for (number, slice) in &other.slices {
            self.slices.entry(*number).or_default().merge(slice);
        }
        self.forget();
    }

    /// Forgets what is neither reference nor window. To be called after events were added.
    pub fn forget(&mut self) {
        // While the reference is not complete everything belongs to it.
        let Some(end) = self.reference_end() else {
            return;
        };
        let start = self.window_start();
        self.slices
            .retain(|&number, _| end.is_some_and(|end| number <= end) || number >= start);
    }

    /// The reference, once it is complete.
    pub fn reference(&self) -> Option<Slice> {
        let end = self.reference_end()??;
        // The slice that completes it may still be filling.
        (end < self.latest_slice()).then(|| sum(self.slices.range(..=end)))
    }

    /// How many events there are towards a reference.
    pub fn reference_progress(&self) -> u64 {
        self.slices.values().map(|slice| slice.events).sum()
    }

    /// The current window, without what belongs to the reference.
    pub fn window(&self) -> Slice {
        let after = match self.reference_end() {
            Some(Some(end)) => end + 1,
            Some(None) => 0,
            None => return Slice::default(),
        };
        sum(self.slices.range(self.window_start().max(after)..))
    }

    fn window_start(&self) -> u64 {
        (self.latest_slice() + 1).saturating_sub(self.shape.window_slices)
    }

    /// The last slice of the reference. `None`: not enough events yet. `Some(None)`: it is given in
    /// the config, no slice belongs to it.
    fn reference_end(&self) -> Option<Option<u64>> {
        if self.shape.reference_events == 0 {
            return Some(None);
        }
        let mut events: u64 = 0;
        let end = self.slices.iter().find(|(_, slice)| {
            events = events.saturating_add(slice.events);
            events >= self.shape.reference_events
        })?;
        Some(Some(*end.0))
    }
}

fn sum<'a>(slices: impl Iterator<Item = (&'a u64, &'a Slice)>) -> Slice {
    let mut sum = Slice::default();
    for (_, slice) in slices {
        sum.merge(slice);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHAPE: Shape = Shape {
        slice_ms: 10,
        window_slices: 4,
        reference_events: 30,
    };

    fn history(events: &[(u64, u32)], batch: usize) -> History {
        let mut history = History::new(SHAPE);
        for events in events.chunks(batch.max(1)) {
            for (at_ms, value) in events {
                history.add(*at_ms, |slice| {
                    slice.add_number("latency-ms", f64::from(*value));
                    slice.add_category("finish-reason", &(value % 3).to_string());
                });
            }
            history.forget();
        }
        history
    }

    proptest! {
        #[test]
        fn any_parts_in_any_order_give_the_same_state_to_the_bit(
            mut events in prop::collection::vec((0u64..400, 0u32..1000, 0usize..5), 0..200),
            batch in 1usize..50,
        ) {
            let all: Vec<(u64, u32)> = events.iter().map(|&(at, value, _)| (at, value)).collect();
            let whole = history(&all, all.len());
            // In batches, as they came.
            prop_assert_eq!(&history(&all, batch), &whole);
            // In batches, oldest first.
            events.sort();
            let sorted: Vec<(u64, u32)> = events.iter().map(|&(at, value, _)| (at, value)).collect();
            prop_assert_eq!(&history(&sorted, batch), &whole);
            // In five parts, merged forwards, backwards and as a tree.
            let parts: Vec<History> = (0..5)
                .map(|part| {
                    let own = events.iter().filter(|event| event.2 == part);
                    history(&own.map(|&(at, value, _)| (at, value)).collect::<Vec<_>>(), batch)
                })
                .collect();
            let merged = |order: &[usize]| {
                let mut sum = History::new(SHAPE);
                for &part in order {
                    sum.merge(&parts[part]);
                }
                sum
            };
            prop_assert_eq!(&merged(&[0, 1, 2, 3, 4]), &whole);
            prop_assert_eq!(&merged(&[4, 2, 0, 3, 1]), &whole);
            let mut tree = merged(&[0, 1]);
            tree.merge(&merged(&[2, 3, 4]));
            prop_assert_eq!(&tree, &whole);
        }
    }

    #[test]
    fn the_reference_is_the_first_events_and_the_middle_is_forgotten() {
        let events: Vec<(u64, u32)> = (0..400).map(|at| (at, 1)).collect();
        let history = history(&events, 7);
        assert_eq!(history.reference().unwrap().events, 30);
        assert_eq!(history.window().events, 40);
        assert_eq!(history.reference_progress(), 70);
    }

    #[test]
    fn a_reference_that_is_still_filling_is_none() {
        let mut history = history(&[(5, 1); 40], 40);
        assert_eq!(history.reference(), None);
        history.advance(10);
        assert_eq!(history.reference().unwrap().events, 40);
        assert_eq!(history.window().events, 0);
    }

    #[test]
    fn time_without_events_empties_the_window() {
        let mut history = history(&(0..100).map(|at| (at, 1)).collect::<Vec<_>>(), 100);
        assert!(history.window().events > 0);
        history.advance(1000);
        assert_eq!(history.window().events, 0);
    }
}
