//! Embedding, norms and gated activations.

use super::{device, get, nmse, put, random, run, zeros};
use kernels::cuda::elementwise::{
    AddNorm, Delta, Embed, Gate, Gated, Norm, ShapeLogits, add_norm, add_norm_bytes, embed, embed_bytes, gated,
    gated_bytes, shape_logits, shape_logits_bytes,
};
use kernels::cuda::rounded::{Rounded, Rows, round};
use kernels::cuda::{Bf16, Device, E4m3, Slice};

/// Of numbers that are rounded to bf16.
const ROUNDED: f64 = 1e-5;
/// Of numbers that stay f32.
const EXACT: f64 = 1e-12;

fn rounded(numbers: &[f32]) -> Vec<Bf16> {
    numbers.iter().map(|number| Bf16::from_f32(*number)).collect()
}

fn wide(numbers: &[Bf16]) -> Vec<f32> {
    numbers.iter().map(|number| number.to_f32()).collect()
}

#[test]
fn tokens_are_looked_up() {
    let mut device = device();
    let (vocab, scale) = (50, 2.5f32);
    for hidden in [8, 264, 1160] {
        let table = rounded(&random(1, vocab * hidden));
        // Tokens of slots, one that each slot may not have, one of a slot that is not there.
        let tokens = [3, -1, 49, 50, -1, -1, i32::MAX];
        let slots = [0, 2, 0, 0, 1, i32::MAX, -5];
        let last = [5, 51, 41];
        let want: Vec<f32> = [3, 41, 49, 0, 0, 0, 0]
            .iter()
            .flat_map(|token| &table[token * hidden..(token + 1) * hidden])
            .map(|number| number.to_f32() * scale)
            .collect();
        let job = Embed {
            table: put(&mut *device, &table),
            tokens: put(&mut *device, &tokens),
            slots: put(&mut *device, &slots),
            last: put(&mut *device, &last),
            x: zeros(&mut *device, want.len()),
            rows: tokens.len(),
            hidden,
            vocab,
            scale,
        };
        run(&mut *device, embed(&job));
        assert_eq!(get(&mut *device, job.x), want);
        assert_eq!(embed_bytes(&job), tokens.len() * hidden * 6);
        assert!(embed(&Embed { rows: 8, ..job }).is_err());
        assert!(embed(&Embed { hidden: hidden + 1, ..job }).is_err());
    }
}

/// What [`add_norm`] is given, on the host.
#[derive(Clone, Debug, Default)]
struct Given {
    x: Vec<f32>,
    delta: Vec<f32>,
    delta_bias: Vec<f32>,
    delta_weight: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    centred: bool,
    offset: f32,
    scale: f32,
    hidden: usize,
}

const EPS: f32 = 1e-3;

impl Given {
    /// The parts that the bits of `parts` ask for.
    fn new(hidden: usize, rows: usize, parts: u32) -> Self {
        let some = |bit: u32, seed: u64, len: usize| match parts >> bit & 1 {
            1 => random(seed, len),
            _ => Vec::new(),
        };
        let larger = |numbers: Vec<f32>| numbers.iter().map(|number| number * 3.0 + 0.5).collect();
        Given {
            x: larger(random(1, rows * hidden)),
            delta: larger(some(0, 2, rows * hidden)),
            delta_bias: some(1, 3, hidden),
            delta_weight: some(2, 4, hidden),
            weight: some(3, 5, hidden),
            bias: some(4, 6, hidden),
            centred: parts & 0b101000 == 0b101000,
            offset: if parts & 0b1000000 == 0 { 0.0 } else { 1.0 },
            scale: if parts & 0b10000000 == 0 { 1.0 } else { 0.22 },
            hidden,
        }
    }

    /// The residual stream after, and its norm.
    fn want(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut sums, mut normed) = (Vec::new(), Vec::new());
        for (row, x) in self.x.chunks(self.hidden).enumerate() {
            let mut sum: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            if !self.delta.is_empty() {
                let delta = self.delta[row * self.hidden..][..self.hidden].iter().map(|delta| f64::from(*delta));
                let mut delta: Vec<f64> = delta.collect();
                shift(&mut delta, &self.delta_bias);
                self.scale(&mut delta, &self.delta_weight);
                sum.iter_mut().zip(delta).for_each(|(sum, delta)| *sum += f64::from(self.scale) * delta);
            }
            sums.extend(sum.iter().map(|sum| *sum as f32));
            if self.centred {
                let mean = sum.iter().sum::<f64>() / self.hidden as f64;
                sum.iter_mut().for_each(|sum| *sum -= mean);
            }
            self.scale(&mut sum, &self.weight);
            shift(&mut sum, &self.bias);
            normed.extend(sum.iter().map(|sum| *sum as f32));
        }
        (sums, normed)
    }

    /// A root-mean-square norm, where there are weights.
    fn scale(&self, x: &mut [f64], weight: &[f32]) {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let inverse = 1.0 / (mean + f64::from(EPS)).sqrt();
        for (x, weight) in x.iter_mut().zip(weight) {
            *x *= inverse * (f64::from(*weight) + f64::from(self.offset));
        }
    }

    fn job(&self, device: &mut dyn Device) -> AddNorm {
        let rows = self.x.len() / self.hidden;
        let mut some = |numbers: &Vec<f32>| (!numbers.is_empty()).then(|| put(device, numbers));
        let (bias, weight) = (some(&self.delta_bias), some(&self.delta_weight));
        let delta = some(&self.delta).map(|numbers| Delta { numbers, bias, weight, scale: self.scale });
        let (weight, bias) = (some(&self.weight), some(&self.bias));
        AddNorm {
            x: put(device, &self.x),
            delta,
            norm: Norm { weight, bias, centred: self.centred, eps: EPS, offset: self.offset },
            out: Some(zeros::<Bf16>(device, rows * self.hidden).into()),
            row_index: None,
            rows,
            hidden: self.hidden,
        }
    }
}

/// What a norm has written.
fn written(device: &mut dyn Device, job: &AddNorm) -> Vec<Bf16> {
    get(device, job.out.unwrap().bf16().unwrap())
}

fn shift(x: &mut [f64], bias: &[f32]) {
    x.iter_mut().zip(bias).for_each(|(x, bias)| *x += f64::from(*bias));
}

#[test]
fn norms_with_all_parts() {
    let mut device = device();
    for parts in 0..256 {
        let given = Given::new(40, 3, parts);
        let (sums, normed) = given.want();
        let job = given.job(&mut *device);
        run(&mut *device, add_norm(&job));
        assert!(nmse(&get(&mut *device, job.x), &sums) < EXACT, "{parts:b}");
        assert!(nmse(&wide(&written(&mut *device, &job)), &normed) < ROUNDED, "{parts:b}");
    }
}

#[test]
fn norms_of_all_widths() {
    let mut device = device();
    for hidden in [8, 128, 1000, 1024, 1032, 2048, 2056, 4096, 5000, 8192, 16_376, 16_384] {
        for parts in [0b1001, 0b101001, 0b1101] {
            let given = Given::new(hidden, 2, parts);
            let (sums, normed) = given.want();
            let job = given.job(&mut *device);
            run(&mut *device, add_norm(&job));
            assert!(nmse(&get(&mut *device, job.x), &sums) < EXACT, "{hidden} {parts:b}");
            assert!(nmse(&wide(&written(&mut *device, &job)), &normed) < ROUNDED, "{hidden} {parts:b}");
        }
    }
}

#[test]
fn a_row_alone_is_a_row_of_many() {
    let mut device = device();
    for hidden in [72, 2560] {
        let given = Given::new(hidden, 9, 0b1111);
        let job = given.job(&mut *device);
        run(&mut *device, add_norm(&job));
        let (sums, normed) = (get(&mut *device, job.x), written(&mut *device, &job));
        let row = 7 * hidden..8 * hidden;
        let mut alone = given.clone();
        alone.x = given.x[row.clone()].to_vec();
        alone.delta = given.delta[row.clone()].to_vec();
        let job = alone.job(&mut *device);
        run(&mut *device, add_norm(&job));
        assert_eq!(get(&mut *device, job.x), sums[row.clone()]);
        assert_eq!(written(&mut *device, &job), normed[row]);
    }
}

#[test]
fn rows_by_an_index() {
    let mut device = device();
    let (hidden, index) = (96, [4, -1, 0, 4, 5, i32::MIN]);
    let given = Given::new(hidden, 5, 0b1000);
    let all = given.job(&mut *device);
    run(&mut *device, add_norm(&all));
    let normed = written(&mut *device, &all);
    let row_index = Some(put(&mut *device, &index));
    let out: Slice<Bf16> = zeros(&mut *device, index.len() * hidden);
    let job = AddNorm { out: Some(out.into()), row_index, rows: index.len(), ..all };
    run(&mut *device, add_norm(&job));
    for (row, from) in get(&mut *device, out).chunks(hidden).zip(index) {
        match usize::try_from(from) {
            Ok(from @ ..5) => assert_eq!(row, &normed[from * hidden..(from + 1) * hidden]),
            _ => assert_eq!(row, vec![Bf16(0); hidden]),
        }
    }
    assert_eq!(get(&mut *device, all.x), given.x);
}

#[test]
fn a_sum_without_a_norm() {
    let mut device = device();
    let given = Given::new(64, 2, 0b1);
    let job = AddNorm { out: None, ..given.job(&mut *device) };
    run(&mut *device, add_norm(&job));
    assert!(nmse(&get(&mut *device, job.x), &given.want().0) < EXACT);
    assert_eq!(add_norm_bytes(&job), 2 * 64 * 12);
    let weight = job.delta.map(|delta| delta.numbers);
    assert!(add_norm(&AddNorm { norm: Norm { weight, ..job.norm }, ..job }).is_err());
    assert!(add_norm(&AddNorm { rows: 3, ..job }).is_err());
    assert!(add_norm(&AddNorm { x: job.x.part(1..127).unwrap(), rows: 1, ..job }).is_err());
}

/// Room for rows as codes, with what is no number in it, and more than is needed.
fn room_for_codes(device: &mut dyn Device, rows: usize, width: usize) -> Rounded {
    let scales = Rounded::scales_len(rows, width) + 1;
    Rounded { codes: put(device, &vec![E4m3(0x7f); rows * width + 32]), scales: put(device, &vec![f32::NAN; scales]) }
}

/// Are `got` what rounding makes of `rows` that are bf16, and nothing else written?
fn check_codes(device: &mut dyn Device, got: Rounded, rows: Slice<Bf16>, (count, width): (usize, usize)) {
    let want = room_for_codes(device, count, width);
    run(device, round(want, rows, count, width));
    assert!(get(device, got.codes) == get(device, want.codes), "{count} x {width}");
    let [got, want] = [got.scales, want.scales].map(|scales| get(device, scales));
    assert!(got.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits()), "{count} x {width}");
}

#[test]
fn norms_as_codes() {
    let mut device = device();
    let device = &mut *device;
    for (hidden, rows, parts) in [(128, 3, 0b1001), (896, 2, 0b11_1111), (1152, 2, 0b1000), (5120, 2, 0b1001)] {
        let mut given = Given::new(hidden, rows, parts);
        // Numbers that share a scale and are all 0.
        if parts & 1 == 0 {
            given.x[..128].fill(0.0);
        }
        let (plain, same) = (given.job(device), given.job(device));
        let to = room_for_codes(device, rows, hidden);
        let job = AddNorm { out: Some(Rows::Rounded(to)), ..same };
        run(device, add_norm(&plain));
        run(device, add_norm(&job));
        assert_eq!(get(device, job.x), get(device, plain.x));
        check_codes(device, to, plain.out.unwrap().bf16().unwrap(), (rows, hidden));
        let moved = add_norm_bytes(&plain) - add_norm_bytes(&job);
        assert_eq!(moved, rows * hidden - rows * hidden / 32);
        let row_index = Some(zeros(device, rows));
        assert!(add_norm(&AddNorm { delta: None, row_index, ..job }).is_err(), "codes by an index");
        assert!(add_norm(&AddNorm { rows: rows + 1, ..job }).is_err());
    }
    let odd = Given::new(64, 2, 0b1000).job(device);
    let to = Rows::Rounded(room_for_codes(device, 2, 128));
    assert!(add_norm(&AddNorm { out: Some(to), ..odd }).unwrap_err().0.contains("no multiple of 128"));
}

#[test]
fn gates_as_codes() {
    let mut device = device();
    let device = &mut *device;
    let kinds = [Gate::Silu, Gate::Gelu, Gate::GeluTanh, Gate::ClampedSwiglu { limit: 1.5 }];
    // Of the first, the last warp has numbers of one scale and none of another.
    for ((rows, width), gate) in [(1, 128), (3, 384), (7, 640), (2, 2176)].into_iter().zip(kinds) {
        let mut input = rounded(&random(1, 2 * rows * width));
        input[..128].fill(Bf16(0));
        let (input, bias) = (put(device, &input), Some(put(device, &random(2, 2 * width))));
        let out = zeros(device, rows * width);
        let plain = Gated { input, bias, out: Rows::Bf16(out), gate, rows, width };
        let to = room_for_codes(device, rows, width);
        let job = Gated { out: Rows::Rounded(to), ..plain };
        run(device, gated(&plain));
        run(device, gated(&job));
        check_codes(device, to, out, (rows, width));
        assert_eq!(gated_bytes(&plain) - gated_bytes(&job), rows * width - rows * width / 32);
        assert!(gated(&Gated { rows: rows + 1, ..job }).is_err());
    }
}

fn erf(x: f64) -> f64 {
    // Abramowitz and Stegun 7.1.5 and 7.1.14, where each is good.
    let power = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x.abs() < 3.0 {
        let terms = (0..100).scan(x, |term, n| {
            let this = *term / f64::from(2 * n + 1);
            *term *= -x * x / f64::from(n + 1);
            Some(this)
        });
        return terms.sum::<f64>() * 2.0 / std::f64::consts::PI.sqrt();
    }
    let fraction = (1..60).rev().fold(x.abs(), |below, k| x.abs() + f64::from(k) / 2.0 / below);
    (1.0 - power / fraction).copysign(x)
}

fn activated(kind: Gate, gate: f64, up: f64) -> f64 {
    match kind {
        Gate::Silu => gate / (1.0 + (-gate).exp()) * up,
        Gate::Gelu => 0.5 * gate * (1.0 + erf(gate / 2f64.sqrt())) * up,
        Gate::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
            0.5 * gate * (1.0 + inner.tanh()) * up
        }
        Gate::ClampedSwiglu { limit } => {
            let (gate, up) = (gate.min(f64::from(limit)), up.clamp(f64::from(-limit), f64::from(limit)));
            gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
        }
    }
}

#[test]
fn gates() {
    let mut device = device();
    let kinds = [Gate::Silu, Gate::Gelu, Gate::GeluTanh, Gate::ClampedSwiglu { limit: 1.5 }];
    for (rows, width) in [(1, 8), (5, 264), (2, 2056), (40, 64)] {
        let input: Vec<f32> = random(1, 2 * rows * width).iter().map(|number| number * 4.0).collect();
        let input = rounded(&input);
        let bias = random(2, 2 * width);
        for (kind, with_bias) in kinds.iter().flat_map(|kind| [(*kind, false), (*kind, true)]) {
            let number = |row: usize, at: usize| {
                let bias = if with_bias { bias[at] } else { 0.0 };
                f64::from(input[row * 2 * width + at].to_f32()) + f64::from(bias)
            };
            let places = (0..rows).flat_map(|row| (0..width).map(move |at| (row, at)));
            let want = places.map(|(row, at)| activated(kind, number(row, at), number(row, width + at)) as f32);
            let want: Vec<f32> = want.collect();
            let job = Gated {
                input: put(&mut *device, &input),
                bias: with_bias.then(|| put(&mut *device, &bias)),
                out: zeros::<Bf16>(&mut *device, rows * width).into(),
                gate: kind,
                rows,
                width,
            };
            run(&mut *device, gated(&job));
            // Each number by itself, for the large ones say little: half a step of bf16, and what f32 may lose.
            let close = |got: &f32, want: &f32| (got - want).abs() <= want.abs() / 250.0 + 1e-6;
            let got = wide(&get(&mut *device, job.out.bf16().unwrap()));
            assert!(got.iter().zip(&want).all(|(got, want)| close(got, want)), "{kind:?} {rows} x {width}");
            assert_eq!(gated_bytes(&job), rows * width * 6);
            assert!(gated(&Gated { rows: rows + 1, ..job }).is_err());
        }
    }
}

#[test]
fn gates_far_out() {
    let mut device = device();
    let ends: [f32; 8] = [-3e38, -1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4];
    let input: Vec<Bf16> = rounded(&ends.iter().copied().chain([1.0; 8]).collect::<Vec<_>>());
    for kind in [Gate::Silu, Gate::Gelu, Gate::GeluTanh, Gate::ClampedSwiglu { limit: 7.0 }] {
        let job = Gated {
            input: put(&mut *device, &input),
            bias: None,
            out: zeros::<Bf16>(&mut *device, 8).into(),
            gate: kind,
            rows: 1,
            width: 8,
        };
        run(&mut *device, gated(&job));
        let got = wide(&get(&mut *device, job.out.bf16().unwrap()));
        assert!(got[..5].iter().all(|number| number.abs() < 1e-30), "{kind:?} {got:?}");
        if !matches!(kind, Gate::ClampedSwiglu { .. }) {
            assert_eq!(got[5..], wide(&input[5..8]), "{kind:?}");
        }
    }
}

#[test]
fn logits_are_scaled_and_capped() {
    let mut device = device();
    for count in [1, 3, 4, 1023, 1025, 5002] {
        for cap in [0.0, 1.5] {
            let logits = random(1, count + 9);
            let want = logits[..count].iter().map(|logit| match cap {
                0.0 => 0.3 * logit,
                _ => cap * (0.3 * logit / cap).tanh(),
            });
            let job = ShapeLogits { logits: put(&mut *device, &logits), count, scale: 0.3, cap };
            run(&mut *device, shape_logits(&job));
            let got = get(&mut *device, job.logits);
            assert!(nmse(&got[..count], &want.collect::<Vec<f32>>()) < EXACT);
            assert_eq!(got[count..], logits[count..]);
            assert_eq!(shape_logits_bytes(&job), 8 * count);
            assert!(shape_logits(&ShapeLogits { count: count + 10, ..job }).is_err());
        }
    }
}
