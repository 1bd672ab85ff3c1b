//! `codec`: reading requests and writing replies, without sockets and without a model.
//!
//! Through the functions that the routes call. Each call gets another request than the one before: a processor learns
//! the digits of one. A request is rows of 50 features; a reply is timed as wide as the request, which compares the two
//! directions, and with one number a row, which is what a regression answers.

use crate::Failure;
use crate::repeat::{PerCall, repeat};
use crate::trivial::{COLUMNS, INPUT, Numbers, servable};
use backends::{Limits, Tensor};
use bytes::Bytes;
use serde::Serialize;
use server::codec::{v1, v2};
use server::dataplane::{Infer, Inferred, Servable};
use server::error::Error;
use server::profile::Profile;
use std::sync::Arc;
use std::time::Duration;

/// Arguments of `codec`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rows of a message; may be repeated
    #[arg(long = "batch", default_values_t = [1, 64, 1024])]
    batches: Vec<usize>,
    /// Time spent on each kind of message
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One kind of message in one direction.
#[derive(Serialize)]
struct Timed {
    format: &'static str,
    direction: &'static str,
    rows: usize,
    columns: usize,
    /// Length of a message.
    bytes: usize,
    #[serde(flatten)]
    time: PerCall,
    /// Of messages, in the fastest run.
    megabytes_per_second: f64,
}

/// A request as it comes from the connection.
struct Wire {
    body: Bytes,
    header_length: Option<usize>,
}

/// A request as the data plane takes it, and the form it wants its reply in.
type Decoded = Result<(Infer, v2::Form), Error>;

/// Writes a reply; gives its length.
type Encode = fn(&Inferred, &v2::Form) -> Result<usize, Error>;

/// A way to write tensors. The reply takes the form that the request asks for.
struct Format {
    name: &'static str,
    request: fn(rows: usize, values: &[f32]) -> Result<Wire, Failure>,
    decode: fn(&Wire, &Servable) -> Decoded,
    /// None where replies are those of another format.
    encode: Option<Encode>,
}

const FORMATS: [Format; 4] = [
    Format { name: "V2 JSON", request: v2_json, decode: decode_v2, encode: Some(encode_v2) },
    // What Python's json makes of a 32-bit float.
    Format { name: "V2 JSON, 17 digits", request: v2_digits, decode: decode_v2, encode: None },
    Format { name: "V2 binary", request: v2_binary, decode: decode_v2, encode: Some(encode_v2) },
    Format { name: "V1", request: v1_json, decode: decode_v1, encode: Some(encode_v1) },
];

fn v2_with(rows: usize, data: &str) -> Wire {
    let head = format!(r#"{{"id":"1","inputs":[{{"name":"{INPUT}","shape":[{rows},{COLUMNS}],"datatype":"FP32""#);
    Wire { body: format!("{head},\"data\":{data}}}]}}").into(), header_length: None }
}

fn v2_json(rows: usize, values: &[f32]) -> Result<Wire, Failure> {
    Ok(v2_with(rows, &serde_json::to_string(values)?))
}

fn v2_digits(rows: usize, values: &[f32]) -> Result<Wire, Failure> {
    let wide: Vec<f64> = values.iter().copied().map(f64::from).collect();
    Ok(v2_with(rows, &serde_json::to_string(&wide)?))
}

fn v2_binary(rows: usize, values: &[f32]) -> Result<Wire, Failure> {
    let size = size_of_val(values);
    let mut header = format!(
        r#"{{"id":"1","parameters":{{"binary_data_output":true}},"inputs":[{{"name":"{INPUT}","shape":[{rows},{COLUMNS}],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}]}}"#
    );
    // Clients align nothing. Three requests of four are like this one, whose tensor has to be copied to be aligned.
    while header.len() % 4 != 1 {
        header.push(' ');
    }
    let mut body = header.clone().into_bytes();
    body.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    Ok(Wire { body: body.into(), header_length: Some(header.len()) })
}

fn v1_json(_: usize, values: &[f32]) -> Result<Wire, Failure> {
    let rows: Vec<&[f32]> = values.chunks_exact(COLUMNS).collect();
    Ok(Wire { body: format!("{{\"instances\":{}}}", serde_json::to_string(&rows)?).into(), header_length: None })
}

fn decode_v2(wire: &Wire, servable: &Servable) -> Decoded {
    v2::decode(&wire.body, wire.header_length, &servable.signature, &Limits::default())
}

fn decode_v1(wire: &Wire, servable: &Servable) -> Decoded {
    Ok((v1::decode(&wire.body, &servable.signature)?, v2::Form::default()))
}

fn encode_v2(inferred: &Inferred, form: &v2::Form) -> Result<usize, Error> {
    let encoded = v2::encode(inferred, form, Profile::default().not_finite())?;
    Ok(std::hint::black_box(encoded.body).len())
}

fn encode_v1(inferred: &Inferred, _: &v2::Form) -> Result<usize, Error> {
    let body = v1::encode(inferred, Profile::default().not_finite())?;
    Ok(std::hint::black_box(body).len())
}

/// Times all formats and prints the report.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let bench = Bench { servable: Arc::new(servable()), duration: Duration::try_from_secs_f64(args.seconds)? };
    let mut report = Vec::new();
    for &rows in &args.batches {
        for format in &FORMATS {
            bench.format(format, rows, &mut report).map_err(|error| format!("{}: {error}", format.name))?;
        }
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    for timed in &report {
        let Timed { format, direction, rows, columns, bytes, time, megabytes_per_second } = timed;
        println!(
            "{format:<18} {direction} {rows:>5} x {columns:<2}: {:>11.0} ns (median {:.0}), {bytes} bytes, {megabytes_per_second:.0} MB/s",
            time.min_ns, time.median_ns
        );
    }
    Ok(())
}

struct Bench {
    servable: Arc<Servable>,
    duration: Duration,
}

impl Bench {
    /// Both directions of a format.
    fn format(&self, format: &Format, rows: usize, report: &mut Vec<Timed>) -> Result<(), Failure> {
        let mut numbers = Numbers::new();
        // Small messages are many, large ones few: all together stay within a processor's caches.
        let values: Vec<Vec<f32>> = (0..(256 / rows).clamp(4, 64)).map(|_| numbers.take(rows * COLUMNS)).collect();
        let requests = values.iter().map(|values| (format.request)(rows, values)).collect::<Result<Vec<_>, _>>()?;
        let said = |error: Error| error.message();
        let (infer, form) = (format.decode)(&requests[0], &self.servable).map_err(said)?;
        if infer.inputs.first().and_then(Tensor::values::<f32>) != Some(&values[0]) {
            return Err("what was read is not what was written".into());
        }
        let bytes = requests.iter().map(|request| request.body.len()).sum::<usize>() / requests.len();
        let time = repeat(self.duration, |number| {
            let request = std::hint::black_box(&requests[number % requests.len()]);
            std::hint::black_box((format.decode)(request, &self.servable).map_err(said)?);
            Ok(())
        })?;
        report.push(timed(format.name, "decode", (rows, COLUMNS), bytes, time));
        let Some(encode) = format.encode else { return Ok(()) };
        for columns in [COLUMNS, 1] {
            let replies =
                values.iter().map(|values| self.reply(rows, columns, values)).collect::<Result<Vec<_>, Failure>>()?;
            let mut bytes = 0;
            for reply in &replies {
                bytes += encode(reply, &form).map_err(said)?;
            }
            let time = repeat(self.duration, |number| {
                encode(std::hint::black_box(&replies[number % replies.len()]), &form).map_err(said)?;
                Ok(())
            })?;
            report.push(timed(format.name, "encode", (rows, columns), bytes / replies.len(), time));
        }
        Ok(())
    }

    fn reply(&self, rows: usize, columns: usize, values: &[f32]) -> Result<Inferred, Failure> {
        let shape = if columns == 1 { vec![rows] } else { vec![rows, columns] };
        let values = values[..rows * columns].to_vec();
        let output = Tensor::from_vec("output-0", shape, values).map_err(|misfit| misfit.to_string())?;
        Ok(Inferred { servable: self.servable.clone(), id: Some("1".into()), outputs: vec![output] })
    }
}

fn timed(
    format: &'static str,
    direction: &'static str,
    (rows, columns): (usize, usize),
    bytes: usize,
    time: PerCall,
) -> Timed {
    let megabytes_per_second = bytes as f64 * 1e3 / time.min_ns;
    Timed { format, direction, rows, columns, bytes, time, megabytes_per_second }
}

#[cfg(test)]
mod tests {
    use super::{Bench, FORMATS};
    use crate::trivial::servable;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn every_format_reads_back_what_it_wrote() {
        let bench = Bench { servable: Arc::new(servable()), duration: Duration::ZERO };
        let mut report = Vec::new();
        for format in &FORMATS {
            bench.format(format, 3, &mut report).unwrap();
        }
        assert_eq!(report.len(), 10);
        assert!(report.iter().all(|timed| timed.bytes > 0 && timed.time.min_ns > 0.0));
    }
}
