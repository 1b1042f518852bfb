//! The rows of an event's decisions and of its deliveries.
//!
//! A delivery's payload is an action of its decision, and its event's attributes are those of all its
//! siblings. So the row of a delivery, which is written anew at every attempt, holds neither: they
//! stand in the row of the decisions, which is written once.

use crate::id::{DeliveryId, EventId, Name};
use crate::store::{About, Attempt, DecisionRecord, Delivery, Line, Outcome, RedriveOf, State};
use crate::timing;
use hooksieve_sdk::wire::{Payload, Timing};
use serde::{Deserialize, Serialize};

/// What was made of an event.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Made {
    /// The event's attributes, once there are deliveries that tell of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) about: Option<About>,
    pub(super) decisions: Vec<DecisionRecord>,
    pub(super) deliveries: Vec<DeliveryId>,
}

impl Made {
    /// The reason and the payload of an action.
    fn action(&self, rule: &Name, position: u32) -> Option<(&str, &Payload)> {
        let of_rule = self.decisions.iter().find(|it| it.rule == *rule)?;
        let Outcome::Decided(decision) = &of_rule.outcome else {
            return None;
        };
        let action = decision.actions.get(position as usize)?;
        Some((&decision.reason, &action.payload))
    }
}

/// A delivery without what [`Made`] says of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) tenant: Name,
    pub(super) event: EventId,
    rule: Name,
    position: u32,
    channel: Name,
    pub(super) state: State,
    pub(super) attempts: Vec<Attempt>,
    created_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) timing: Option<Box<Timing>>,
    #[serde(default)]
    held_back: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gathered: Vec<timing::Line>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redrive_of: Option<RedriveOf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fallback_of: Option<DeliveryId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) escalation_of: Option<DeliveryId>,
    /// Where they are not those of an action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    own: Option<Own>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Own {
    reason: String,
    payload: Payload,
    about: About,
}

impl Row {
    /// The row; what all siblings share goes into `made`, if nothing is there yet.
    pub(super) fn of(delivery: &Delivery, made: &mut Made) -> Self {
        let about = made.about.get_or_insert_with(|| delivery.about.clone());
        let same_about = *about == delivery.about;
        let action = made.action(&delivery.rule, delivery.position);
        let same = same_about
            && action.is_some_and(|(reason, payload)| {
                *reason == delivery.reason && *payload == delivery.payload
            });
        Self {
            tenant: delivery.tenant.clone(),
            event: delivery.event,
            rule: delivery.rule.clone(),
            position: delivery.position,
            channel: delivery.channel.clone(),
            state: delivery.state.clone(),
            attempts: delivery.attempts.clone(),
            created_ms: delivery.created_ms,
            timing: delivery.timing.clone(),
            held_back: delivery.held_back,
            gathered: delivery.gathered.clone(),
            redrive_of: delivery.redrive_of.clone(),
            fallback_of: delivery.fallback_of,
            escalation_of: delivery.escalation_of,
            own: (!same).then(|| Own {
                reason: delivery.reason.clone(),
                payload: delivery.payload.clone(),
                about: delivery.about.clone(),
            }),
        }
    }

    /// The delivery again.
    pub(super) fn into_delivery(self, id: DeliveryId, made: &Made) -> Delivery {
        let own = self.own.or_else(|| {
            let (reason, payload) = made.action(&self.rule, self.position)?;
            Some(Own {
                reason: reason.to_owned(),
                payload: payload.clone(),
                about: made.about.clone()?,
            })
        });
        // A store whose rows of decisions are gone still tells what it knows.
        let own = own.unwrap_or_else(|| Own {
            reason: String::new(),
            payload: Payload::Message(hooksieve_sdk::wire::Message::default()),
            about: About {
                source: self.rule.clone(),
                kind: String::new(),
                subject: None,
                time: String::new(),
            },
        });
        Delivery {
            id,
            tenant: self.tenant,
            event: self.event,
            rule: self.rule,
            position: self.position,
            channel: self.channel,
            reason: own.reason,
            payload: own.payload,
            about: own.about,
            state: self.state,
            attempts: self.attempts,
            created_ms: self.created_ms,
            timing: self.timing,
            held_back: self.held_back,
            gathered: self.gathered,
            redrive_of: self.redrive_of,
            fallback_of: self.fallback_of,
            escalation_of: self.escalation_of,
        }
    }

    /// It as a digest that others may join. (Not by way of the delivery: while an event is committed, the
    /// row with its decisions is not there yet.)
    pub(super) fn as_digest(&mut self) -> timing::Digest<'_> {
        timing::Digest {
            timing: self.timing.as_deref(),
            state: &mut self.state,
            attempted: !self.attempts.is_empty(),
            gathered: &mut self.gathered,
        }
    }

    pub(super) fn line(&self) -> Line {
        Line {
            tenant: self.tenant.clone(),
            channel: self.channel.clone(),
        }
    }
}
