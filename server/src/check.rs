//! What an inference request must hold, whichever protocol it came by: everything that can be told without running it.

use crate::dataplane::{Infer, Servable};
use crate::describe::{is_batched, most_rows};
use crate::error::{self, Error};
use backends::{Limits, Parameter, Parameters, Port, Signature, Tensor};
use std::collections::BTreeSet;

/// Inputs as the model lists them, those that may be left out last: requests with the same inputs are alike, and their
/// rows are those of the first.
pub(crate) fn put_in_order(signature: &Signature, inputs: &mut [Tensor]) {
    // More of them than there are is an error in any order.
    if signature.strict && (2..=signature.inputs.len()).contains(&inputs.len()) {
        inputs.sort_by_cached_key(|input| {
            let found = signature.inputs.iter().position(|port| port.name == input.name());
            // One that is not known comes last, where it is found soon enough.
            found.map_or((true, usize::MAX), |place| (signature.inputs[place].optional, place))
        });
    }
}

/// Checks a request.
///
/// # Errors
/// Says what is wrong with it, and what would be right.
pub(crate) fn check(servable: &Servable, request: &Infer, limits: &Limits) -> Result<(), Error> {
    let Signature { inputs: takes, outputs: gives, .. } = &servable.signature;
    for (count, known) in [(request.inputs.len(), takes.len()), (request.outputs.len(), gives.len())] {
        // As many as the model has may always be there.
        let most = limits.tensors.max(known);
        if count > most {
            return Err(Error::Invalid(format!("more than {most} tensors in a request")));
        }
    }
    check_parameters(&request.parameters)?;
    if let Some(name) = repeated(request.inputs.iter().map(Tensor::name)) {
        return Err(error::repeated("input", name));
    }
    if let Some(name) = repeated(request.outputs.iter().map(|output| output.name.as_str())) {
        return Err(error::repeated("output", name));
    }
    let mut known = Ports::of(gives);
    for output in &request.outputs {
        if known.find(&output.name).is_none() {
            let known: Vec<_> = gives.iter().map(|port| port.name.as_str()).collect();
            return Err(error::unknown_output(&output.name, &servable.name, &known));
        }
    }
    if request.inputs.is_empty() && servable.signature.inputs.iter().any(|port| !port.optional) {
        return Err(Error::Invalid(format!(
            "expected {} inputs but got 0 inputs for model '{}'",
            servable.signature.inputs.len(),
            servable.name
        )));
    }
    let rows = needed(&servable.signature.inputs, &request.inputs).map(Tensor::rows);
    let (count, most) = (rows.max().unwrap_or(1), most_rows(servable));
    if count > most as usize && is_batched(servable) {
        return Err(Error::Invalid(format!(
            "inference request batch-size must be <= {most} for '{}', got {count}",
            servable.name
        )));
    }
    if servable.signature.strict { check_strictly(servable, request) } else { Ok(()) }
}

/// Parameters that mean something must mean it: what is of the wrong type, or asks for what no model does, is refused and
/// not passed over.
///
/// # Errors
/// Names the parameter.
pub(crate) fn check_parameters(parameters: &Parameters) -> Result<(), Error> {
    let reserved = |key: &&String| key.starts_with("triton_") && *key != "triton_enable_empty_final_response";
    if let Some(key) = parameters.keys().find(reserved) {
        return Err(Error::Invalid(format!("parameter keys starting with 'triton_' are reserved, got '{key}'")));
    }
    for (key, value) in parameters {
        let wanted = match (key.as_str(), value) {
            // Whole numbers beyond 63 bits are longer than any request lasts, and behind any other priority.
            ("timeout" | "priority", Parameter::Int(0..) | Parameter::Uint(_)) => continue,
            ("timeout", _) => "a whole number of microseconds",
            ("priority", _) => "a whole number from 0",
            ("binary_data_output", Parameter::Bool(_)) => continue,
            ("binary_data_output", _) => "true or false",
            ("sequence_id", Parameter::Int(0)) | ("sequence_start" | "sequence_end", Parameter::Bool(false)) => {
                continue;
            }
            ("sequence_id", Parameter::String(id)) if id.is_empty() => continue,
            ("sequence_id" | "sequence_start" | "sequence_end", _) => {
                return Err(Error::Unsupported(format!(
                    "parameter '{key}': no model remembers a sequence of requests"
                )));
            }
            _ => continue,
        };
        return Err(Error::Invalid(format!("parameter '{key}' is not {wanted}")));
    }
    Ok(())
}

/// Names, types and shapes as the signature has them.
fn check_strictly(servable: &Servable, request: &Infer) -> Result<(), Error> {
    let (model, ports) = (&servable.name, &servable.signature.inputs);
    let required = ports.iter().filter(|port| !port.optional).count();
    let (mut known, mut given) = (Ports::of(ports), vec![false; ports.len()]);
    for input in &request.inputs {
        let Some((place, port)) = known.find(input.name()) else {
            let known: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
            return Err(Error::Invalid(format!(
                "unexpected inference input '{}' for model '{model}'; it has {}",
                input.name(),
                known.join(", ")
            )));
        };
        if port.datatype != input.datatype() && !port.also.contains(&input.datatype()) {
            return Err(Error::Invalid(format!(
                "inference input '{}' data-type is '{}', but model '{model}' expects '{}'",
                input.name(),
                input.datatype(),
                port.datatype
            )));
        }
        if !shape_fits(port, input) {
            return Err(Error::Invalid(format!(
                "unexpected shape for input '{}' for model '{model}'. Expected {}, got {}.",
                input.name(),
                bracketed(&port.shape),
                bracketed(input.shape())
            )));
        }
        if let Some(given) = given.get_mut(place) {
            *given = true;
        }
    }
    let missing = missing(ports, &given);
    if request.inputs.len() < required {
        return Err(Error::Invalid(format!(
            "expected {required} inputs but got {} inputs for model '{model}': missing required input(s) {missing:?}",
            request.inputs.len()
        )));
    }
    if !missing.is_empty() {
        return Err(Error::Invalid(format!("missing required input(s) {missing:?} for model '{model}'")));
    }
    check_rows(servable, &request.inputs)
}

/// Where the first dimension is a batch, all inputs have as many rows, unless the model itself spreads one over another.
fn check_rows(servable: &Servable, inputs: &[Tensor]) -> Result<(), Error> {
    let mut inputs = needed(&servable.signature.inputs, inputs);
    let Some(first) = inputs.next() else { return Ok(()) };
    let spreads = || servable.batcher().is_ok_and(|batcher| batcher.predictor().spreads_rows());
    match inputs.find(|input| input.rows() != first.rows()).filter(|_| is_batched(servable) && !spreads()) {
        Some(other) => Err(Error::Invalid(format!(
            "input '{}' has {} rows, but input '{}' of the same request has {}, for model '{}'",
            other.name(),
            other.rows(),
            first.name(),
            first.rows(),
            servable.name
        ))),
        None => Ok(()),
    }
}

/// Inputs but for those that may be left out, whose first dimension is their own.
fn needed<'a>(ports: &'a [Port], inputs: &'a [Tensor]) -> impl Iterator<Item = &'a Tensor> {
    inputs.iter().filter(move |input| !ports.iter().any(|port| port.optional && port.name == input.name()))
}

/// Inputs that a request lacks, of which it is known which are given: there may be as many as are required, and one of these
/// not among them.
fn missing<'a>(ports: &'a [Port], given: &[bool]) -> Vec<&'a str> {
    let lacks = ports.iter().zip(given).filter(|(port, given)| !port.optional && !**given);
    lacks.map(|(port, _)| port.name.as_str()).collect()
}

/// A name that is there twice.
fn repeated<'a>(mut names: impl ExactSizeIterator<Item = &'a str>) -> Option<&'a str> {
    if names.len() < 2 {
        return None;
    }
    let mut seen = BTreeSet::new();
    names.find(|name| !seen.insert(*name))
}

/// Ports that are looked for by their names. Who asks mostly asks in their order, and a model may have many of them.
struct Ports<'a> {
    ports: &'a [Port],
    next: usize,
}

impl<'a> Ports<'a> {
    fn of(ports: &'a [Port]) -> Self {
        Ports { ports, next: 0 }
    }

    /// The port of this name, and its place.
    fn find(&mut self, name: &str) -> Option<(usize, &'a Port)> {
        let (before, after) = self.ports.split_at_checked(self.next)?;
        let mut places = (self.next..).zip(after).chain((0..).zip(before));
        let found = places.find(|(_, port)| port.name == name)?;
        self.next = found.0 + 1;
        Some(found)
    }
}

/// `[-1,4]`, as Triton prints shapes.
fn bracketed(shape: &[impl ToString]) -> String {
    format!("[{}]", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

fn shape_fits(port: &Port, input: &Tensor) -> bool {
    let fits = |(wanted, got): (&i64, &usize)| *wanted < 0 || *wanted as usize == *got;
    port.any_shape || port.shape.len() == input.shape().len() && port.shape.iter().zip(input.shape()).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backends::DataType;

    fn checked(key: &str, value: Parameter) -> Result<(), Error> {
        check_parameters(&[(key.to_owned(), value)].into())
    }

    #[test]
    fn inputs_that_are_required_are_there() {
        let port = |name: &str, optional| Port {
            name: name.into(),
            datatype: DataType::Fp32,
            also: Vec::new(),
            shape: vec![-1],
            optional,
            any_shape: false,
            labels: Vec::new(),
        };
        let ports = [port("a", false), port("b", false), port("c", true)];
        assert_eq!(missing(&ports, &[true, true, false]).join(", "), "");
        assert_eq!(missing(&ports, &[true, true, true]).join(", "), "");
        assert_eq!(missing(&ports, &[true, false, true]).join(", "), "b");
        assert_eq!(missing(&ports, &[false, false, true]).join(", "), "a, b");
        for names in [&["a", "b", "c"][..], &["c", "b", "a"], &["c", "c"]] {
            let mut known = Ports::of(&ports);
            for name in names {
                assert_eq!(known.find(name).map(|(place, _)| ports[place].name.as_str()), Some(*name));
            }
            assert!(known.find("d").is_none());
        }
        assert_eq!(repeated(["a", "b", "c"].into_iter()), None);
        assert_eq!(repeated(["a", "b", "a", "b"].into_iter()), Some("a"));
    }

    #[test]
    fn shapes_are_as_long_as_they_are_stated() {
        let port = |shape: &[i64]| Port {
            name: "x".into(),
            datatype: DataType::Bytes,
            also: Vec::new(),
            shape: shape.into(),
            optional: false,
            any_shape: false,
            labels: Vec::new(),
        };
        let text = |shape: Vec<usize>| Tensor::from_strings("x", shape, vec!["a"]).unwrap();
        assert!(shape_fits(&port(&[]), &text(vec![])));
        assert!(!shape_fits(&port(&[]), &text(vec![1])));
        assert!(shape_fits(&port(&[-1, 1]), &text(vec![1, 1])));
        assert!(!shape_fits(&port(&[-1, 2]), &text(vec![1, 1])));
    }

    #[test]
    fn parameters_mean_something_or_are_refused() {
        let text = |text: &str| Parameter::String(text.into());
        for key in ["timeout", "priority"] {
            for value in [Parameter::Int(0), Parameter::Int(7), Parameter::Uint(1 << 63)] {
                assert_eq!(checked(key, value), Ok(()), "{key}");
            }
            for value in [Parameter::Int(-5), Parameter::Double(1.5), Parameter::Bool(true), text("abc")] {
                let refused = checked(key, value.clone()).unwrap_err();
                assert!(matches!(&refused, Error::Invalid(what) if what.contains(key)), "{value:?}: {refused:?}");
            }
        }
        assert_eq!(checked("binary_data_output", Parameter::Bool(false)), Ok(()));
        assert!(matches!(checked("binary_data_output", text("yes")), Err(Error::Invalid(_))));
        for (key, nothing) in [
            ("sequence_id", Parameter::Int(0)),
            ("sequence_id", text("")),
            ("sequence_start", Parameter::Bool(false)),
            ("sequence_end", Parameter::Bool(false)),
        ] {
            assert_eq!(checked(key, nothing), Ok(()), "{key}");
            for value in [Parameter::Int(1), text("a"), Parameter::Bool(true)] {
                let refused = checked(key, value.clone()).unwrap_err();
                assert!(matches!(&refused, Error::Unsupported(what) if what.contains(key)), "{value:?}: {refused:?}");
            }
        }
        assert_eq!(checked("anything", text("else")), Ok(()));
        assert_eq!(checked("triton_enable_empty_final_response", Parameter::Bool(true)), Ok(()));
        assert!(matches!(checked("triton_foo", text("a")), Err(Error::Invalid(what)) if what.contains("triton_foo")));
    }
}
