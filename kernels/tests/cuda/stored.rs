//! Products with weights that are stored as codes, against sums in 64 bits of what the codes mean. Beyond the last code
//! stands what is no number, and so are the results before they are written.

use super::{device, get, nmse, put, random, zeros};
use kernels::cuda::experts::{self, Choices, Choose, choose};
use kernels::cuda::gemm::{Output, Workspace, counters_len, sums_len};
use kernels::cuda::packing::{Packed, Plain, pack};
use kernels::cuda::setup::{MakeUp, make_up_f32};
use kernels::cuda::stored::{
    Kind, Layout, Matrix, OfExperts, Product, SLICED_ROWS, make_up, of_experts, product, widen,
};
use kernels::cuda::{Bf16, Device, E4m3, Launch, Slice};

/// Codes, scales and minima of a matrix, and rows of x, on the host.
struct Numbers {
    layout: Layout,
    outputs: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    minima: Vec<f32>,
    x: Vec<Bf16>,
    bias: Vec<f32>,
}

fn meaning(kind: Kind, code: u8) -> f32 {
    match kind {
        Kind::Int8 => f32::from(code as i8),
        Kind::Uint8 | Kind::Uint4 => f32::from(code),
        Kind::Int4 => f32::from(code) - 8.0,
        Kind::E4m3 => E4m3(code).to_f32(),
        Kind::E2m1 => {
            let size = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
            if code > 7 { -size } else { size }
        }
    }
}

/// Makes up numbers: all codes occur, and scales of a row are up to a thousand times larger than each other.
fn numbers(kind: Kind, group: usize, (rows, outputs, inputs): (usize, usize, usize)) -> Numbers {
    let layout = Layout { kind, group, inputs };
    // A group of all inputs is as large as can be.
    let seed = (rows * 1_000_003 + outputs * 1009 + inputs).wrapping_add(group) as u64;
    let all = random(seed, outputs * inputs);
    let mask = if kind.bits() == 8 { 255 } else { 15 };
    let code = |(index, number): (usize, &f32)| {
        let code = (index as u64 * 37 + (number.abs() * 100.0) as u64) as u8 & mask;
        // What is no number stands nowhere.
        if kind == Kind::E4m3 && code & 0x7f == 0x7f { code - 1 } else { code }
    };
    let codes = all.iter().enumerate().map(code).collect();
    let count = outputs * layout.groups();
    let scale = |number: &f32| number * 0.01 * if number.abs() > 1.5 { 1000.0 } else { 1.0 };
    let scales: Vec<f32> = random(seed + 1, count).iter().map(scale).collect();
    // About where the middle of the codes is.
    let middle = if kind.bits() == 8 { 128.0 } else { 8.0 };
    let minima = random(seed + 2, count).iter().zip(&scales).map(|(a, scale)| scale * (middle + a)).collect();
    let minima = if kind.minima() { minima } else { Vec::new() };
    let x = random(seed + 3, rows * inputs).into_iter().map(Bf16::from_f32).collect();
    Numbers { layout, outputs, codes, scales, minima, x, bias: random(seed + 4, outputs) }
}

impl Numbers {
    /// The weights themselves.
    fn weights(&self) -> Vec<f32> {
        let (inputs, groups) = (self.layout.inputs, self.layout.groups());
        let number = |(index, code): (usize, &u8)| {
            let group = index / inputs * groups + index % inputs / self.layout.group.min(inputs);
            let scaled = self.scales[group] * meaning(self.layout.kind, *code);
            scaled - self.minima.get(group).copied().unwrap_or(0.0)
        };
        self.codes.iter().enumerate().map(number).collect()
    }

    fn rows(&self) -> usize {
        self.x.len() / self.layout.inputs
    }

    /// What is to come out.
    fn wanted(&self, bias: bool) -> Vec<f32> {
        let (weights, inputs) = (self.weights(), self.layout.inputs);
        let mut all = Vec::with_capacity(self.rows() * self.outputs);
        for row in self.x.chunks_exact(inputs) {
            for (weights, of) in weights.chunks_exact(inputs).zip(&self.bias) {
                let sum: f64 = row.iter().zip(weights).map(|(a, b)| f64::from(a.to_f32()) * f64::from(*b)).sum();
                all.push((sum + if bias { f64::from(*of) } else { 0.0 }) as f32);
            }
        }
        all
    }

    fn matrix(&self, device: &mut dyn Device) -> Matrix {
        let plain = Plain { codes: &self.codes, scales: &self.scales, minima: &self.minima };
        let Packed { mut codes, mut scales, factors } = pack(&self.layout, &plain).unwrap();
        codes.extend([0x7f; 4096]);
        scales.extend([0x7fff; 1024]);
        let (codes, scales, factors) = (put(device, &codes), put(device, &scales), put(device, &factors));
        Matrix { layout: self.layout, outputs: self.outputs, codes, scales, factors }
    }

    /// The product of some rows in 32 bits on a device.
    fn on(&self, device: &mut dyn Device, first: usize, rows: usize) -> Product {
        let inputs = self.layout.inputs;
        let x = [&self.x[first * inputs..(first + rows) * inputs], &vec![Bf16(0x7fc0); 3 * inputs]].concat();
        Product {
            x: put(device, &x).into(),
            matrix: self.matrix(device),
            bias: None,
            y: Output::F32(put(device, &vec![f32::NAN; rows * self.outputs])),
            workspace: Workspace {
                sums: put(device, &vec![f32::NAN; sums_len(self.outputs, inputs).max(1)]),
                counters: zeros(device, counters_len(self.outputs, inputs).max(1)),
            },
            wide: Some(put(device, &vec![Bf16(0x7fc0); self.outputs * inputs])),
            rows,
            deterministic: false,
        }
    }
}

/// What a product's launches write, as 32 bits.
fn results(device: &mut dyn Device, job: &Product) -> Vec<f32> {
    for launch in product(job).unwrap() {
        device.launch(&launch).unwrap();
    }
    let counters: Vec<i32> = get(device, job.workspace.counters);
    assert!(counters.iter().all(|counter| *counter == 0), "the counters are as before");
    match job.y {
        Output::F32(y) => get(device, y),
        Output::Bf16(y) => get::<Bf16>(device, y).into_iter().map(Bf16::to_f32).collect(),
    }
}

/// Rounding weights to sixteen bits is an error of about 2.7e-6; some kinds round scales so before.
fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::Int8 | Kind::Uint8 | Kind::E4m3 => 5e-6,
        Kind::E2m1 | Kind::Int4 | Kind::Uint4 => 1.2e-5,
    }
}

fn check(numbers: &Numbers) {
    let mut device = device();
    let device = device.as_mut();
    let Numbers { layout, outputs, .. } = numbers;
    let (rows, kind) = (numbers.rows(), layout.kind);
    let what = format!("{rows} x {outputs} x {layout:?}");
    let job = numbers.on(device, 0, rows);
    let error = nmse(&results(device, &job), &numbers.wanted(false));
    assert!(error < tolerance(kind), "{what} in 32 bits: {error:e}");
    let y = Output::Bf16(put(device, &vec![Bf16(0x7fc0); rows * outputs]));
    let job = Product { y, bias: Some(put(device, &numbers.bias)), ..job };
    let error = nmse(&results(device, &job), &numbers.wanted(true));
    assert!(error < tolerance(kind) + 6e-6, "{what} in 16 bits: {error:e}");
}

#[test]
fn few_rows_of_every_kind_and_group() {
    // One part of the inputs and several, whole steps and half ones; outputs of one block and of several.
    let sizes = [(1, 101, 96), (5, 134, 512), (17, 260, 32), (64, 33, 1056), (8, 40, 128), (33, 96, 384)];
    let mut turn = 0;
    for kind in Kind::ALL {
        for group in [16, 32, 64, 128, usize::MAX] {
            for _ in 0..2 {
                check(&numbers(kind, group, sizes[turn % sizes.len()]));
                turn += 1;
            }
            turn += 1;
        }
    }
}

#[test]
fn every_number_of_rows() {
    for (kind, group) in [(Kind::Int8, 32), (Kind::Uint4, 32), (Kind::E4m3, 128)] {
        for rows in [1, 5, 17, 64, 100] {
            check(&numbers(kind, group, (rows, 101, 288)));
        }
    }
}

/// What is widened for many rows, and the products with it.
#[test]
fn many_rows_go_through_wide_weights() {
    for (turn, kind) in Kind::ALL.into_iter().enumerate() {
        let group = [32, 16, 128, usize::MAX, 64, 32][turn];
        let numbers = numbers(kind, group, (SLICED_ROWS + 1, 75, 288));
        let mut device = device();
        let device = device.as_mut();
        let job = numbers.on(device, 0, SLICED_ROWS + 1);
        let names: Vec<&str> = product(&job).unwrap().iter().map(Launch::kernel).collect();
        assert!(names.len() == 2 && names[0].starts_with("stored_widen"), "{names:?}");
        let wide: Slice<Bf16> = put(device, &vec![Bf16(0x7fc0); 75 * 288]);
        device.launch(&widen(&job.matrix, wide).unwrap()).unwrap();
        let wide: Vec<f32> = get::<Bf16>(device, wide).into_iter().map(Bf16::to_f32).collect();
        let error = nmse(&wide, &numbers.weights());
        assert!(error < tolerance(kind), "{kind:?}: {error:e}");
        check(&numbers);
    }
}

/// With scales of all inputs nothing is rounded but the weights of many rows: codes are exact.
#[test]
fn codes_alone_are_exact() {
    for kind in [Kind::Int8, Kind::E4m3, Kind::Int4, Kind::E2m1] {
        let numbers = numbers(kind, usize::MAX, (3, 64, 160));
        let mut device = device();
        let device = device.as_mut();
        let job = numbers.on(device, 0, 3);
        let error = nmse(&results(device, &job), &numbers.wanted(false));
        assert!(error < 1e-11, "{kind:?}: {error:e}");
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn a_row_alone_has_the_bits_that_it_has_among_others() {
    let mut device = device();
    let device = device.as_mut();
    for (kind, group, outputs, inputs) in
        [(Kind::Int8, 16, 101, 544), (Kind::Uint4, 32, 140, 192), (Kind::E4m3, 128, 40, 512)]
    {
        let numbers = numbers(kind, group, (130, outputs, inputs));
        let job = numbers.on(device, 0, 130);
        let all = bits(&results(device, &job));
        for (first, rows) in [(0, 1), (129, 1), (30, 2), (5, 8), (40, 9), (1, 16), (9, 17), (20, 33), (0, 63), (60, 65)]
        {
            let job = numbers.on(device, first, rows);
            let some = bits(&results(device, &job));
            assert!(some == all[first * outputs..(first + rows) * outputs], "rows {first} to {}", first + rows);
        }
    }
}

/// As exact as wide weights are: factors are powers of two, and what is added in which order is the same.
#[test]
fn experts_have_the_bits_of_wide_weights() {
    let mut device = device();
    let device = device.as_mut();
    let (experts, outputs, inputs, top_k) = (5, 160, 288, 2);
    for (turn, kind) in Kind::ALL.into_iter().enumerate() {
        let group = [32, 32, 128, 16, 32, 32][turn];
        let numbers = numbers(kind, group, (140, experts * outputs, inputs));
        let matrix = numbers.matrix(device);
        let wide: Slice<Bf16> = put(device, &vec![Bf16(0x7fc0); experts * outputs * inputs]);
        device.launch(&widen(&matrix, wide).unwrap()).unwrap();
        for (rows, of_pairs) in [(1, false), (9, true), (64, false), (70, true)] {
            let choices = choices(device, rows, top_k, experts);
            let y = |device: &mut dyn Device| Output::F32(put(device, &vec![0.0; rows * top_k * outputs]));
            let (x, bias) = (put(device, &numbers.x), Some(put(device, &numbers.bias)));
            let workspace = Workspace {
                sums: put(device, &vec![f32::NAN; experts::sums_len(outputs, inputs, top_k).max(4)]),
                counters: zeros(device, experts::counters_len(outputs, inputs, top_k).max(1)),
            };
            let job = OfExperts { x, of_pairs, matrix, bias, y: y(device), workspace, choices };
            let y = y(device);
            let plain = experts::Product { x, of_pairs, weight: wide, bias, y, workspace, choices, outputs, inputs };
            device.launch(&of_experts(&job).unwrap()).unwrap();
            device.launch(&experts::product(&plain).unwrap()).unwrap();
            let (Output::F32(got), Output::F32(want)) = (job.y, plain.y) else { unreachable!("as made") };
            let (got, want) = (get(device, got), get(device, want));
            if rows <= 64 {
                assert!(bits(&got) == bits(&want), "{kind:?}, {rows} rows");
            } else {
                let error = nmse(&got, &want);
                assert!(error < 1e-11, "{kind:?}, {rows} rows: {error:e}");
            }
            let few = Matrix { outputs: matrix.outputs - 5, ..matrix };
            assert!(of_experts(&OfExperts { matrix: few, ..job }).is_err(), "experts begin among others");
        }
    }
}

/// Rows that have chosen, some of which are padding.
fn choices(device: &mut dyn Device, rows: usize, top_k: usize, experts: usize) -> Choices {
    let choices = Choices {
        chosen: zeros(device, rows * top_k),
        shares: zeros(device, rows * top_k),
        list: zeros(device, rows * top_k),
        offsets: zeros(device, experts + 1),
        rows,
        top_k,
        experts,
    };
    let logits = put(device, &random(rows as u64, rows * experts));
    let positions: Vec<i32> = (0..rows as i32).map(|row| if row % 7 == 3 { -1 } else { row }).collect();
    let positions = put(device, &positions);
    for launch in choose(&Choose { logits, positions, choices, of_chosen: true }).unwrap() {
        device.launch(&launch).unwrap();
    }
    choices
}

/// Made-up weights are what a host would pack: the numbers of [`make_up_f32`], with 64 times their deviation as codes.
#[test]
fn made_up_codes_are_those_of_a_host() {
    let mut device = device();
    let device = device.as_mut();
    let (outputs, inputs) = (70, 96);
    let job = MakeUp { key: 77, first: 5 * 96, mean: 0.0, sigma: 64.0 };
    let made: Slice<f32> = zeros(device, outputs * inputs);
    device.launch(&make_up_f32(made, &job).unwrap()).unwrap();
    let codes: Vec<u8> = get(device, made).into_iter().map(|number: f32| E4m3::from_f32(number).0).collect();
    let layout = Layout { kind: Kind::E4m3, group: inputs, inputs };
    let scales = vec![0.25 / 64.0; outputs];
    let wanted = pack(&layout, &Plain { codes: &codes, scales: &scales, minima: &[] }).unwrap();
    let to = Matrix {
        layout,
        outputs,
        codes: put(device, &vec![0xff; layout.codes_len(outputs)]),
        scales: zeros(device, layout.scales_len(outputs)),
        factors: zeros(device, layout.factors_len(outputs)),
    };
    device.launch(&make_up(&to, &MakeUp { sigma: 0.25, ..job }).unwrap()).unwrap();
    assert!(get(device, to.codes) == wanted.codes, "codes");
    // What is beyond the last output does not matter.
    let in_order = |scales: &[u16]| scales[..128].to_vec();
    assert_eq!(in_order(&get(device, to.scales)), in_order(&wanted.scales));
    assert_eq!(get(device, to.factors)[..outputs], wanted.factors[..outputs]);
}

#[test]
fn what_cannot_be_right_is_told() {
    let mut device = device();
    let device = device.as_mut();
    let numbers = numbers(Kind::Int8, 32, (65, 100, 256));
    let job = numbers.on(device, 0, 65);
    let (matrix, layout) = (job.matrix, job.matrix.layout);
    let with = |layout: Layout| Product { matrix: Matrix { layout, ..matrix }, ..job };
    assert!(product(&job).is_ok());
    assert!(product(&with(Layout { group: 24, ..layout })).is_err(), "no power of two");
    assert!(product(&with(Layout { inputs: 40, ..layout })).is_err(), "no multiple of 32");
    assert!(product(&with(Layout { inputs: 512, ..layout })).is_err(), "more inputs than there are");
    assert!(product(&Product { matrix: Matrix { outputs: 1000, ..matrix }, ..job }).is_err(), "more outputs");
    assert!(product(&Product { rows: 0, ..job }).is_err(), "no rows");
    let none: Slice<f32> = zeros(device, 1);
    assert!(product(&Product { y: Output::F32(none), ..job }).is_err(), "no room for results");
    assert!(product(&Product { bias: Some(none), ..job }).is_err(), "not a bias for each");
    assert!(widen(&matrix, zeros(device, 100 * 256 - 1)).is_err(), "no room for wide weights");
}
