//! What timing comes to for one event after another, without a store: for replay.

use super::{Memory, Remember, Slot, admit, gather};
use crate::id::DeliveryId;
use crate::store::{Delivery, State};
use std::collections::HashMap;
use std::convert::Infallible;

/// After how many deliveries what is over is forgotten.
const FORGET_EVERY: usize = 4_096;

/// Remembers what the engine would, of one rule's deliveries in their order.
#[derive(Default)]
pub struct Rehearsal {
    memories: HashMap<Slot, Memory>,
    /// Digests that others may join.
    open: HashMap<DeliveryId, Delivery>,
    admitted: usize,
}

impl Rehearsal {
    /// The delivery as it begins, and the one that escalates it. `clock_ms` is when its event came in.
    pub fn admit(&mut self, mut delivery: Delivery, clock_ms: i64) -> (Delivery, Option<Delivery>) {
        self.admitted += 1;
        if self.admitted.is_multiple_of(FORGET_EVERY) {
            self.memories.retain(|_, it| it.over_ms() > clock_ms);
            self.open.retain(|_, digest| is_open(digest, clock_ms));
        }
        let Ok(escalation) = admit(&mut delivery, clock_ms, self);
        if !delivery.gathered.is_empty() {
            self.open.insert(delivery.id, delivery.clone());
        }
        (delivery, escalation)
    }
}

/// Whether it has not gone out yet: a replay delivers at the very moment at which something is due.
fn is_open(digest: &Delivery, clock_ms: i64) -> bool {
    matches!(digest.state, State::Pending { due_ms } if due_ms > clock_ms)
}

impl Remember for Rehearsal {
    type Error = Infallible;

    fn get(&mut self, slot: &Slot) -> Result<Option<Memory>, Infallible> {
        Ok(self.memories.get(slot).cloned())
    }

    fn put(&mut self, slot: Slot, memory: Memory) -> Result<(), Infallible> {
        self.memories.insert(slot, memory);
        Ok(())
    }

    fn join(
        &mut self,
        digest: DeliveryId,
        new: &Delivery,
        clock_ms: i64,
    ) -> Result<bool, Infallible> {
        let open = self.open.get_mut(&digest);
        let open = open.filter(|digest| is_open(digest, clock_ms));
        Ok(open.is_some_and(|digest| gather(digest.as_digest(), new, clock_ms)))
    }
}
