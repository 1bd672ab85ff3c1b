//! The check on every value that a template binds to a name (see [`super::rewrite`]): bounded depth, no sequences that are
//! computed anew each time they are looked at, and nothing in a namespace that could hold the namespace.

use super::values::{MAX_DEPTH, invalid};
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};

/// Values visited per unit of fuel.
const VISITS_PER_FUEL: usize = 2;

/// The filter [`super::rewrite::KEEP`]: a value that is about to get a name. Lazy sequences become lists, as in Python
/// slices are; what is nested too deep is an error.
pub(super) fn keep(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    Keeper { state, visits: 0, attribute: false }
        .check(value, 0)
        .map(|changed| changed.unwrap_or_else(|| value.clone()))
}

/// The filter [`super::rewrite::KEEP_ATTRIBUTE`]: the same for an attribute of a namespace, which must not come to hold
/// itself: it would never be freed.
pub(super) fn keep_attribute(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    Keeper { state, visits: 0, attribute: true }.check(value, 0).map(|changed| changed.unwrap_or_else(|| value.clone()))
}

/// Is it one of minijinja's own objects, which cannot be told by their kind?
fn is_engines(value: &Value) -> bool {
    let own = |name: &str| name.starts_with("minijinja::vm::") || name.ends_with("::Namespace");
    value.as_object().is_some_and(|object| own(object.type_name()))
}

struct Keeper<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    visits: usize,
    attribute: bool,
}

impl Keeper<'_, '_, '_> {
    /// None where the value may stay as it is.
    fn check(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.visits += 1;
        if self.visits.is_multiple_of(VISITS_PER_FUEL) {
            self.state.consume_fuel(1)?;
        }
        if depth > MAX_DEPTH {
            return Err(invalid(format!("values are nested more than {MAX_DEPTH} deep")));
        }
        match value.kind() {
            _ if is_engines(value) && self.attribute => Err(invalid("a namespace cannot hold namespaces or loops")),
            // A namespace holds only what was checked when it was put there.
            _ if is_engines(value) => Ok(None),
            ValueKind::Map => self.check_map(value, depth),
            ValueKind::Seq => self.check_items(value, depth),
            ValueKind::Iterable => self.list(value, depth).map(Some),
            ValueKind::Invalid | ValueKind::Plain if self.attribute => {
                Err(invalid("a namespace cannot hold functions"))
            }
            _ => Ok(None),
        }
    }

    fn check_items(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let mut changed = false;
        for item in value.try_iter()?.checked() {
            changed |= self.check(&item?, depth + 1)?.is_some();
        }
        // The pairs of `groupby` have names for their parts.
        changed &= !value.as_object().is_some_and(|object| object.type_name().ends_with("::GroupTuple"));
        changed.then(|| self.list(value, depth)).transpose()
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<Value, Error> {
        let mut items = Vec::new();
        for item in value.try_iter()?.checked() {
            let item = item?;
            items.push(self.check(&item, depth + 1)?.unwrap_or(item));
        }
        Ok(if value.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) })
    }

    fn check_map(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let mut changed = false;
        let mut entries = Vec::new();
        for key in value.try_iter()?.checked() {
            let key = key?;
            let item = value.get_item(&key)?;
            let kept = self.check(&item, depth + 1)?;
            changed |= kept.is_some();
            entries.push((key, kept.unwrap_or(item)));
        }
        Ok(changed.then(|| entries.into_iter().collect()))
    }
}
