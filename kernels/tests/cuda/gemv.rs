//! Products of one to eight rows against sums in 64 bits, with all that may stand before and after them. Beyond the last
//! row of x and of the weights stand rows that are no numbers, and so are the results before they are written. Where a
//! GPU has not the shared memory that compute capability 9.0 has, there is nothing to test.

use super::wgmma::able;
use super::{device, get, nmse, put, random, zeros};
use kernels::cuda::elementwise::Gate;
use kernels::cuda::gemv::{GEMV_ROWS, Gemv, Input, Outcome, gemv, suits};
use kernels::cuda::{Bf16, Device, Slice};

const NO_NUMBER: Bf16 = Bf16(0x7fc0);
const EPS: f32 = 1e-5;
/// Rows after the last that nobody may look at.
const BEYOND: usize = 3;

/// Numbers of one product on the host.
struct Numbers {
    rows: usize,
    outputs: usize,
    inputs: usize,
    /// The residual stream; rounded where x is taken as it is.
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    norm: Vec<f32>,
}

fn rounded(numbers: Vec<f32>) -> Vec<f32> {
    numbers.into_iter().map(|number| Bf16::from_f32(number).to_f32()).collect()
}

fn bf16(numbers: &[f32]) -> Vec<Bf16> {
    numbers.iter().map(|number| Bf16::from_f32(*number)).collect()
}

impl Numbers {
    fn new(rows: usize, outputs: usize, inputs: usize) -> Self {
        let seed = (rows * 1_000_003 + outputs * 1009 + inputs) as u64;
        Numbers {
            rows,
            outputs,
            inputs,
            x: rounded(random(seed, rows * inputs)),
            weight: rounded(random(seed + 1, outputs * inputs)),
            bias: random(seed + 2, outputs),
            norm: random(seed + 3, inputs),
        }
    }

    /// The products of rows of x as the kernel is to have them: as they are, or normed with `offset` by these rows.
    fn wanted(&self, normed: Option<(f32, &[i32])>) -> Vec<f64> {
        let mut all = Vec::new();
        for row in 0..self.rows {
            let of = normed.map_or(row as i32, |(_, index)| index[row]);
            let there = of >= 0 && (of as usize) < self.rows;
            let from = if there { of as usize } else { 0 };
            let mut x: Vec<f64> =
                self.x[from * self.inputs..][..self.inputs].iter().map(|number| f64::from(*number)).collect();
            if !there {
                x.fill(0.0);
            }
            if let Some((offset, _)) = normed {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / self.inputs as f64;
                let inverse = (mean + f64::from(EPS)).sqrt().recip();
                x.iter_mut().zip(&self.norm).for_each(|(x, w)| *x *= inverse * f64::from(w + offset));
            }
            for weights in self.weight.chunks_exact(self.inputs) {
                all.push(x.iter().zip(weights).map(|(x, w)| x * f64::from(*w)).sum());
            }
        }
        all
    }

    /// The product in 32 bits, of x as it is, on a device.
    fn on(&self, device: &mut dyn Device) -> Gemv {
        let nothing = vec![NO_NUMBER; BEYOND * self.inputs];
        Gemv {
            x: Input::Rows(put(device, &[bf16(&self.x), nothing.clone()].concat())),
            weight: put(device, &[bf16(&self.weight), nothing].concat()),
            bias: None,
            y: Outcome::F32(put(device, &vec![f32::NAN; self.rows * self.outputs])),
            rows: self.rows,
            outputs: self.outputs,
            inputs: self.inputs,
        }
    }

    /// Of the norm, by the rows of an index.
    fn normed(&self, device: &mut dyn Device, offset: f32, index: Option<&[i32]>) -> Input {
        let x = match index {
            Some(_) => put(device, &self.x),
            None => put(device, &[&self.x[..], &vec![f32::NAN; BEYOND * self.inputs]].concat()),
        };
        let (weight, row_index) = (put(device, &self.norm), index.map(|index| put(device, index)));
        Input::Normed { x, weight, eps: EPS, offset, row_index }
    }
}

fn results(device: &mut dyn Device, job: &Gemv) -> Vec<f32> {
    device.launch(&gemv(job).unwrap()).unwrap();
    match job.y {
        Outcome::F32(y) | Outcome::Added(y, _) => get(device, y),
        Outcome::Bf16(y) | Outcome::Gated(y, _) => get::<Bf16>(device, y).into_iter().map(Bf16::to_f32).collect(),
    }
}

fn near(got: &[f32], want: &[f64], most: f64, what: &str) {
    let want: Vec<f32> = want.iter().map(|number| *number as f32).collect();
    let error = nmse(got, &want);
    assert!(error < most, "{what}: {error:e}");
}

/// One, two and four groups together; blocks of whole groups and of rests; whole stages and rests of them, and more
/// warps than stages.
const SIZES: [(usize, usize); 7] =
    [(40, 32), (1056, 96), (1057, 288), (2100, 64), (3200, 160), (4300, 32), (101, 1184)];

#[test]
fn rows_as_they_are() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    for (turn, (outputs, inputs)) in SIZES.into_iter().enumerate() {
        let numbers = Numbers::new([1, 8, 3][turn % 3], outputs, inputs);
        let (job, want) = (numbers.on(device), numbers.wanted(None));
        near(&results(device, &job), &want, 1e-11, "in 32 bits");
        let bias = Some(put(device, &numbers.bias));
        let biased: Vec<f64> =
            want.iter().enumerate().map(|(at, y)| y + f64::from(numbers.bias[at % outputs])).collect();
        let y = Outcome::Bf16(put(device, &vec![NO_NUMBER; numbers.rows * outputs]));
        near(&results(device, &Gemv { y, bias, ..job }), &biased, 6e-6, "in 16 bits");
        let stream = random(9, numbers.rows * outputs);
        let added: Vec<f64> = biased.iter().zip(&stream).map(|(y, x)| f64::from(*x) + 0.5 * y).collect();
        let y = Outcome::Added(put(device, &stream), 0.5);
        near(&results(device, &Gemv { y, bias, ..job }), &added, 1e-11, "added");
    }
}

#[test]
fn rows_that_are_normed() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    for (rows, offset) in [(1, 0.0), (2, 1.0), (3, 0.0), (8, 1.0)] {
        let numbers = Numbers::new(rows, 70, 1312);
        let whole: Vec<i32> = (0..rows as i32).collect();
        let job = Gemv { x: numbers.normed(device, offset, None), ..numbers.on(device) };
        near(&results(device, &job), &numbers.wanted(Some((offset, &whole))), 6e-6, "normed");
    }
    // Rows by an index: in another order, twice, and none.
    let (numbers, index) = (Numbers::new(4, 70, 96), [2, -1, 2, 4]);
    let job = Gemv { x: numbers.normed(device, 0.0, Some(&index)), ..numbers.on(device) };
    let (got, want) = (results(device, &job), numbers.wanted(Some((0.0, &index))));
    near(&got, &want, 6e-6, "by an index");
    assert!(got[70..140].iter().chain(&got[210..]).all(|number| *number == 0.0), "rows that are not there");
}

#[test]
fn gates_of_all_kinds() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    let gates = [Gate::Silu, Gate::Gelu, Gate::GeluTanh, Gate::ClampedSwiglu { limit: 1.5 }];
    for (turn, gate) in gates.into_iter().enumerate() {
        // 2, 4, 6 and more groups of a block.
        let (rows, width) = ([1, 5, 8, 2][turn], [1056, 1064, 2120, 4232][turn]);
        let numbers = Numbers::new(rows, 2 * width, 32);
        let bias = Some(put(device, &numbers.bias));
        let y = Outcome::Gated(put(device, &vec![NO_NUMBER; rows * width]), gate);
        let job = Gemv { bias, y, ..numbers.on(device) };
        let got = results(device, &job);
        let (all, mut want) = (numbers.wanted(None), Vec::new());
        for row in all.chunks_exact(2 * width) {
            for at in 0..width {
                let of = |at: usize| row[at] + f64::from(numbers.bias[at]);
                want.push(gated(gate, of(at), of(width + at)));
            }
        }
        near(&got, &want, 6e-6, &format!("{gate:?}"));
    }
}

/// The error function by its power series, for the arguments of this test.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn gated(gate: Gate, x: f64, up: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match gate {
        Gate::Silu => x * sigmoid(x) * up,
        Gate::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) * up,
        Gate::GeluTanh => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh()) * up,
        Gate::ClampedSwiglu { limit } => {
            let limit = f64::from(limit);
            let x = x.min(limit);
            x * sigmoid(1.702 * x) * (up.clamp(-limit, limit) + 1.0)
        }
    }
}

#[test]
fn a_row_alone_has_the_bits_that_it_has_among_others() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    let (outputs, inputs) = (1100, 1056);
    let numbers = Numbers::new(GEMV_ROWS, outputs, inputs);
    let job = numbers.on(device);
    let (x, stream): (Slice<Bf16>, Slice<f32>) = (put(device, &bf16(&numbers.x)), put(device, &numbers.x));
    let weight = put(device, &numbers.norm);
    let bits = |numbers: Vec<f32>| numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let mut all = Vec::new();
    for (first, rows) in [(0, GEMV_ROWS), (0, 1), (7, 1), (2, 2), (1, 3), (3, 5)] {
        let of_x = first * inputs..(first + rows) * inputs;
        let stream = stream.part(of_x.clone()).unwrap();
        let normed = Input::Normed { x: stream, weight, eps: EPS, offset: 0.0, row_index: None };
        for (turn, x) in [Input::Rows(x.part(of_x).unwrap()), normed].into_iter().enumerate() {
            let y = Outcome::F32(put(device, &vec![f32::NAN; rows * outputs]));
            let some = bits(results(device, &Gemv { x, y, rows, ..job }));
            if rows == GEMV_ROWS {
                all.push(some);
            } else {
                let same = some == all[turn][first * outputs..(first + rows) * outputs];
                assert!(same, "rows {first} to {}", first + rows);
            }
        }
    }
}

#[test]
fn what_cannot_be_right_is_told() {
    let mut device = device();
    let device = device.as_mut();
    let numbers = Numbers::new(8, 104, 64);
    let job = numbers.on(device);
    let (none, short): (Slice<f32>, Slice<Bf16>) = (zeros(device, 1), zeros(device, 8 * 52 - 1));
    assert!(gemv(&Gemv { rows: 9, ..job }).is_err(), "more rows than it knows");
    assert!(gemv(&Gemv { rows: 0, ..job }).is_err(), "no rows");
    assert!(gemv(&Gemv { inputs: 40, ..job }).is_err(), "no multiple of 32");
    assert!(gemv(&Gemv { outputs: 108, ..job }).is_err(), "more outputs than there are weights");
    assert!(gemv(&Gemv { bias: Some(none), ..job }).is_err(), "not a bias for each");
    assert!(gemv(&Gemv { y: Outcome::Added(none, 1.0), ..job }).is_err(), "no room for results");
    assert!(gemv(&Gemv { y: Outcome::Gated(short, Gate::Silu), ..job }).is_err(), "no room for half of them");
    let y: Slice<Bf16> = zeros(device, 8 * 52);
    assert!(gemv(&Gemv { y: Outcome::Gated(y, Gate::Silu), ..job }).is_err(), "half of a unit");
    assert!(!suits(8, 14_336) && gemv(&Gemv { inputs: 14_336, ..job }).is_err(), "no room for so much of x");
}
