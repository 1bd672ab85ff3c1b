//! The steps of an executor that are under way: launched, and not collected. What computes them is the executor's own.

use super::executor::{Failure, Ticket};
use super::plan::{Logprobs, Plan, Sampled};

/// Steps under way, at most: the one that is computed, and the next.
const FLIGHTS_MAX: usize = 2;

/// A step that was launched.
#[derive(Debug)]
pub(super) struct Flight<T> {
    pub(super) plan: Plan,
    /// What has come of it so far, chunk by chunk.
    pub(super) sampled: Vec<Sampled>,
    /// What its executor has of it besides.
    pub(super) own: T,
}

/// Those of one executor.
#[derive(Debug)]
pub(super) struct Flights<T>(Vec<Flight<T>>);

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Flights(Vec::with_capacity(FLIGHTS_MAX))
    }
}

impl<T> Flights<T> {
    /// May another step be launched?
    ///
    /// # Errors
    /// Two are under way already.
    pub(super) fn check_room(&self) -> Result<(), Failure> {
        match self.0.len() < FLIGHTS_MAX {
            true => Ok(()),
            false => Err(Failure::Contract("two steps are under way already".into())),
        }
    }

    /// A step was launched. `told` is what is known of its prompts, chunk by chunk.
    pub(super) fn begin(&mut self, plan: &Plan, told: Vec<Vec<Logprobs>>, own: T) -> Ticket {
        let sampled = plan.chunks.iter().zip(told).map(|(chunk, told)| Sampled::of(chunk, told)).collect();
        self.0.push(Flight { plan: plan.clone(), sampled, own });
        Ticket { step: plan.step }
    }

    /// Takes out the step of a ticket: where whoever does so fails, it is gone, and the ticket void.
    ///
    /// # Errors
    /// It was not launched, or is gone.
    pub(super) fn take(&mut self, ticket: &Ticket) -> Result<Flight<T>, Failure> {
        let place = self.0.iter().position(|flight| flight.plan.step == ticket.step);
        let place = place.ok_or_else(|| Failure::Contract(format!("step {} was not launched", ticket.step)))?;
        Ok(self.0.remove(place))
    }

    /// Puts it back.
    pub(super) fn put_back(&mut self, flight: Flight<T>) {
        self.0.push(flight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(step: u64) -> Plan {
        Plan { step, chunks: Vec::new(), stale: Vec::new(), preempted: Vec::new() }
    }

    #[test]
    fn two_steps_are_under_way_at_most_and_each_is_taken_by_its_ticket() {
        let mut flights = Flights::default();
        let tickets = [1, 2].map(|step| {
            flights.check_room().unwrap();
            flights.begin(&plan(step), Vec::new(), step)
        });
        assert!(matches!(flights.check_room(), Err(Failure::Contract(_))));
        // In whatever order they lie.
        let first = flights.take(&tickets[0]).unwrap();
        flights.put_back(first);
        for (ticket, step) in tickets.iter().zip([1, 2]) {
            assert_eq!(flights.take(ticket).unwrap().own, step);
        }
        assert!(matches!(flights.take(&tickets[0]), Err(Failure::Contract(_))), "it is gone");
        flights.check_room().unwrap();
    }
}
