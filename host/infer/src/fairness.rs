//! Whose request leaves the queue next: the service that each tenant has had, in tokens.
//!
//! This is the virtual token counter of "Fairness in Serving Large Language Models" (arXiv:2401.00588). A tenant's
//! counter rises by what was computed for it. Of those that wait, the one with the lowest counter is served. A
//! tenant that comes back is lifted to the lowest counter among those that wait, so nobody saves up service by
//! being away, and a tenant that floods the queue waits behind its own flood only.

use std::collections::HashMap;
use std::sync::Arc;

/// What a computed prompt token and a generated one count.
pub(crate) const PROMPT_COST: u64 = 1;
/// A generated token takes a step of its own, which a prompt's tokens share.
pub(crate) const ANSWER_COST: u64 = 2;

/// The counters of all tenants that were here lately.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    all: HashMap<Arc<str>, Tenant>,
    /// The tenant that was served last, and its counter.
    last: Option<Arc<str>>,
    floor: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    counter: u64,
    /// Its requests in the queue.
    waiting: usize,
    /// Of those, the ones that are to make room for others' requests.
    yielding: usize,
}

impl Tenants {
    /// A request comes into the queue.
    pub(crate) fn arrive(&mut self, name: &Arc<str>) {
        let least = self
            .all
            .values()
            .filter(|tenant| tenant.waiting > 0)
            .map(|tenant| tenant.counter)
            .min()
            .unwrap_or(self.floor);
        if !self.all.contains_key(name) {
            // Those who would be lifted anyway can be forgotten.
            self.all
                .retain(|_, tenant| tenant.waiting > 0 || tenant.counter > least);
        }
        let tenant = self.all.entry(Arc::clone(name)).or_default();
        if tenant.waiting == 0 {
            tenant.counter = tenant.counter.max(least);
        }
        tenant.waiting += 1;
    }

    /// A request that was set back waits again.
    pub(crate) fn come_back(&mut self, name: &Arc<str>) {
        self.all.entry(Arc::clone(name)).or_default().waiting += 1;
    }

    /// A request leaves the queue unserved.
    pub(crate) fn give_up(&mut self, name: &Arc<str>) {
        if let Some(tenant) = self.all.get_mut(name) {
            tenant.waiting = tenant.waiting.saturating_sub(1);
        }
    }

    /// A request leaves the queue to be served.
    pub(crate) fn serve(&mut self, name: &Arc<str>) {
        self.give_up(name);
        self.floor = self.floor.max(self.counter(name));
        self.last = Some(Arc::clone(name));
    }

    /// Something was computed for a tenant.
    pub(crate) fn charge(&mut self, name: &Arc<str>, cost: u64) {
        let tenant = self.all.entry(Arc::clone(name)).or_default();
        tenant.counter = tenant.counter.saturating_add(cost);
        if self.last.as_ref() == Some(name) {
            self.floor = self.floor.max(tenant.counter);
        }
    }

    /// Something that was charged need not be computed.
    pub(crate) fn refund(&mut self, name: &Arc<str>, cost: u64) {
        if let Some(tenant) = self.all.get_mut(name) {
            tenant.counter = tenant.counter.saturating_sub(cost);
        }
    }

    /// The service that a tenant has had; the lowest goes first.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.all
            .get(name)
            .map_or(self.floor, |tenant| tenant.counter)
    }

    /// The queue is full: whether a request of this tenant may come in for one of the tenant that has the most,
    /// which then is to leave. It may where that leaves neither worse off than the other.
    pub(crate) fn displace(&mut self, name: &Arc<str>) -> bool {
        let mine = self.all.get(name).map_or(0, Tenant::staying);
        let heaviest = self
            .all
            .iter_mut()
            .max_by(|(a, x), (b, y)| x.staying().cmp(&y.staying()).then_with(|| b.cmp(a)));
        match heaviest {
            Some((_, heaviest)) if heaviest.staying() > mine + 1 => {
                heaviest.yielding += 1;
                true
            }
            _ => false,
        }
    }

    /// Which tenants' requests are to leave, and how many. They are told once.
    pub(crate) fn take_displaced(&mut self) -> Vec<(Arc<str>, usize)> {
        self.all
            .iter_mut()
            .filter(|(_, tenant)| tenant.yielding > 0)
            .map(|(name, tenant)| (Arc::clone(name), std::mem::take(&mut tenant.yielding)))
            .collect()
    }
}

impl Tenant {
    fn staying(&self) -> usize {
        self.waiting.saturating_sub(self.yielding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> [Arc<str>; 3] {
        ["a", "b", "c"].map(Arc::from)
    }

    #[test]
    fn service_is_equal_while_all_wait_whatever_the_sizes() {
        let (mut tenants, names, sizes) = (Tenants::default(), names(), [10, 3, 40]);
        for name in &names {
            (0..2000).for_each(|_| tenants.arrive(name));
        }
        let mut served = [0u64; 3];
        for _ in 0..2000 {
            let next = (0..3).min_by_key(|i| tenants.counter(&names[*i])).unwrap();
            tenants.serve(&names[next]);
            tenants.charge(&names[next], sizes[next]);
            served[next] += sizes[next];
        }
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(most - least <= 40, "{served:?}");
    }

    #[test]
    fn being_away_saves_nothing_up() {
        let (mut tenants, [a, b, _]) = (Tenants::default(), names());
        tenants.arrive(&a);
        tenants.charge(&a, 5000);
        tenants.arrive(&b);
        assert_eq!(tenants.counter(&b), 5000);
        // Nor with an empty queue; but a debt stays.
        tenants.serve(&a);
        tenants.serve(&b);
        tenants.charge(&a, 200);
        tenants.charge(&b, 10);
        let c = Arc::from("c");
        tenants.arrive(&c);
        assert_eq!(tenants.counter(&c), 5010, "as the one served last");
        tenants.arrive(&a);
        assert_eq!(tenants.counter(&a), 5200);
    }

    #[test]
    fn tenants_of_long_ago_are_forgotten() {
        let mut tenants = Tenants::default();
        for number in 0..1000 {
            let name = Arc::from(format!("tenant {number}"));
            tenants.arrive(&name);
            tenants.serve(&name);
            tenants.charge(&name, 1);
        }
        assert!(tenants.all.len() < 10, "{}", tenants.all.len());
    }

    #[test]
    fn the_tenant_with_most_in_a_full_queue_makes_room_for_others() {
        let (mut tenants, [a, b, c]) = (Tenants::default(), names());
        (0..6).for_each(|_| tenants.arrive(&a));
        assert!(!tenants.displace(&a), "for itself it does not");
        for round in 0..3 {
            assert!(tenants.displace(&b), "{round}");
            tenants.arrive(&b);
        }
        // Three each: nobody has more than a fair share.
        assert!(!tenants.displace(&b));
        assert_eq!(tenants.take_displaced(), [(Arc::clone(&a), 3)]);
        (0..3).for_each(|_| tenants.give_up(&a));
        assert!(tenants.take_displaced().is_empty());
        assert!(tenants.displace(&c));
    }
}
