//! Products by units that four warps use together, against sums in 64 bits. They are machine code for compute
//! capability 9.0 alone: on other GPUs there is nothing to test.

use super::{device, get, nmse, put, random, zeros};
use kernels::cuda::gemm::{Output, Product, Workspace, counters_len, product_on, sums_len};
use kernels::cuda::packing::{Plain, pack};
use kernels::cuda::rounded::{Rounded, round};
use kernels::cuda::stored::{self, Kind, Layout, Matrix};
use kernels::cuda::wgmma::{Coded, Plan, coded, product, product_after};
use kernels::cuda::{Bf16, Device, E4m3, Launch, Misuse, Slice, Units};

/// Rows after the last that nobody may look at.
const BEYOND: usize = 3;
/// Blocks that do all, where nothing else is said: fewer than there are tiles.
const BLOCKS: u32 = 3;

/// A device that has the units.
pub fn able() -> Option<Box<dyn Device>> {
    let device = device();
    let able = device.name() == "emulator" || device.matrix_units() != Units::Warps;
    able.then_some(device)
}

/// Numbers of one product on the host.
pub(super) struct Numbers {
    pub(super) x: Vec<Bf16>,
    pub(super) weight: Vec<Bf16>,
    pub(super) bias: Vec<f32>,
    rows: usize,
    outputs: usize,
    inputs: usize,
}

/// Makes up numbers of a product.
pub(super) fn numbers(rows: usize, outputs: usize, inputs: usize) -> Numbers {
    let seed = (rows * 1_000_003 + outputs * 1009 + inputs) as u64;
    let rounded = |seed, len| random(seed, len).into_iter().map(Bf16::from_f32).collect();
    let (x, weight) = (rounded(seed, rows * inputs), rounded(seed + 1, outputs * inputs));
    Numbers { x, weight, bias: random(seed + 2, outputs), rows, outputs, inputs }
}

/// `x weight^T`, and the bias where there is one.
pub(super) fn wanted(x: &[f32], weight: &[f32], inputs: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let mut all = Vec::new();
    for row in x.chunks_exact(inputs) {
        for (output, weights) in weight.chunks_exact(inputs).enumerate() {
            let sum: f64 = row.iter().zip(weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            all.push((sum + bias.map_or(0.0, |bias| f64::from(bias[output]))) as f32);
        }
    }
    all
}

pub(super) fn wide(numbers: &[Bf16]) -> Vec<f32> {
    numbers.iter().map(|number| number.to_f32()).collect()
}

/// Room for so many parts of tiles of any size.
pub(super) fn workspace(device: &mut dyn Device, rows: usize, outputs: usize, parts: usize) -> Workspace {
    let (rows, outputs) = (rows.next_multiple_of(256), outputs + 384);
    let sums = parts * rows * outputs;
    Workspace { sums: put(device, &vec![f32::NAN; sums]), counters: zeros(device, rows / 128 * outputs.div_ceil(128)) }
}

impl Numbers {
    /// The product of rows `first` to `first + rows` in 32 bits on a device.
    pub(super) fn on(&self, device: &mut dyn Device, first: usize, rows: usize) -> Product {
        let nothing = vec![Bf16(0x7fc0); BEYOND * self.inputs];
        let x = &self.x[first * self.inputs..(first + rows) * self.inputs];
        Product {
            x: put(device, &[x, &nothing].concat()),
            weight: put(device, &[&self.weight[..], &nothing].concat()),
            bias: None,
            y: Output::F32(put(device, &vec![f32::NAN; rows * self.outputs])),
            workspace: workspace(device, rows, self.outputs, 4),
            rows,
            outputs: self.outputs,
            inputs: self.inputs,
            deterministic: false,
        }
    }

    /// The same as sixteen bits and with a bias.
    pub(super) fn rounded_on(&self, device: &mut dyn Device) -> Product {
        let y = Output::Bf16(put(device, &vec![Bf16(0x7fc0); self.rows * self.outputs]));
        let bias = Some(put(device, &self.bias));
        Product { y, bias, ..self.on(device, 0, self.rows) }
    }
}

/// What a launch writes to `y`, as 32 bits.
pub(super) fn results(device: &mut dyn Device, launch: &Launch, y: Output, workspace: Workspace) -> Vec<f32> {
    device.launch(launch).unwrap();
    let counters: Vec<i32> = get(device, workspace.counters);
    assert!(counters.iter().all(|counter| *counter == 0), "the counters are as before");
    match y {
        Output::F32(y) => get(device, y),
        Output::Bf16(y) => wide(&get::<Bf16>(device, y)),
    }
}

pub(super) fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// Compares both types, in sixteen bits with a bias.
fn check(device: &mut dyn Device, [rows, outputs, inputs]: [usize; 3], plan: Plan) {
    let numbers = numbers(rows, outputs, inputs);
    let (x, weight) = (wide(&numbers.x), wide(&numbers.weight));
    let what = format!("{rows} x {outputs} x {inputs} by {plan:?}");
    let job = numbers.on(device, 0, rows);
    let got = results(device, &product(&job, plan, BLOCKS).unwrap(), job.y, job.workspace);
    let error = nmse(&got, &wanted(&x, &weight, inputs, None));
    assert!(error < 1e-11, "{what} in 32 bits: {error:e}");
    let job = numbers.rounded_on(device);
    let got = results(device, &product_after(&job, plan, 132).unwrap(), job.y, job.workspace);
    let error = nmse(&got, &wanted(&x, &weight, inputs, Some(&numbers.bias)));
    assert!(error < 6e-6, "{what} in 16 bits: {error:e}");
}

#[test]
fn every_tile_and_ragged_sizes() {
    let Some(mut device) = able() else { return };
    for width in Plan::WIDTHS {
        // One step, fewer than stages, and more; one tile and several; rows and outputs that do not fill them.
        for sizes in [[65, 104, 64], [100, 264, 128], [128, 256, 192], [300, 200, 576]] {
            check(device.as_mut(), sizes, Plan { width, parts: 1 });
        }
    }
    // More tiles, one below the other, than go together.
    check(device.as_mut(), [128 * 9 + 5, 136, 64], Plan { width: 128, parts: 1 });
}

#[test]
fn inputs_in_parts() {
    let Some(mut device) = able() else { return };
    for (width, parts) in [(128, 2), (192, 4), (224, 2), (256, 3)] {
        check(device.as_mut(), [130, 200, 448], Plan { width, parts });
    }
}

#[test]
fn a_row_has_the_bits_that_it_has_among_others() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    let outputs = 264;
    let numbers = numbers(200, outputs, 320);
    for parts in [1, 2] {
        let job = numbers.on(device, 0, 200);
        let launch = product(&job, Plan { width: 256, parts }, BLOCKS).unwrap();
        let all = bits(&results(device, &launch, job.y, job.workspace));
        for (width, first, rows, blocks) in [(256, 70, 65, 1), (224, 3, 140, 2), (192, 0, 200, 7), (128, 9, 99, 2)] {
            let job = numbers.on(device, first, rows);
            let launch = product(&job, Plan { width, parts }, blocks).unwrap();
            let some = bits(&results(device, &launch, job.y, job.workspace));
            assert!(some == all[first * outputs..(first + rows) * outputs], "{width} of {first} to {}", first + rows);
        }
    }
}

/// Is it this kernel that units have for a product, and does it what it should?
pub(super) fn check_choice(
    device: &mut dyn Device,
    [rows, outputs, inputs]: [usize; 3],
    (units, deterministic): (Units, bool),
    kernel: &str,
) {
    let numbers = numbers(rows, outputs, inputs);
    let (sums, counters) = (sums_len(outputs, inputs), counters_len(outputs, inputs));
    let room = Workspace { sums: zeros(device, sums.max(1)), counters: zeros(device, counters.max(1)) };
    let job = Product { workspace: room, deterministic, ..numbers.on(device, 0, rows) };
    let launches = product_on(&job, units).unwrap();
    assert_eq!(launches.len(), 1);
    assert!(launches[0].kernel().starts_with(kernel), "{} is not {kernel}", launches[0].kernel());
    let got = results(device, &launches[0], job.y, room);
    let error = nmse(&got, &wanted(&wide(&numbers.x), &wide(&numbers.weight), inputs, None));
    assert!(error < 1e-11, "{kernel}: {error:e}");
}

#[test]
fn the_kernel_follows_from_the_device_and_the_sizes() {
    let Some(mut device) = able() else { return };
    let units = Units::Warpgroups { processors: 132, pairs: false };
    for (sizes, units, kernel) in [
        ([64, 200, 256], units, "gemm_skinny"),
        ([65, 200, 256], units, "gemm_wgmma"),
        ([65, 200, 256], Units::Warps, "gemm_tiled"),
        ([65, 204, 256], units, "gemm_tiled"),
        ([65, 200, 224], units, "gemm_tiled"),
    ] {
        check_choice(device.as_mut(), sizes, (units, false), kernel);
    }
}

/// Where code `input` of a row of 32 lies: in the order that the matrix unit takes pairs in.
fn place(input: usize) -> usize {
    let (half, eight, lane, second) = (input / 16, input / 8 % 2, input % 8 / 2, input % 2);
    8 * lane + 4 * half + 2 * second + eight
}

/// Weights as codes, and what they mean.
struct Codes {
    codes: Vec<u8>,
    scales: Vec<u16>,
    factors: Vec<f32>,
    numbers: Vec<f32>,
}

/// A scale that sixteen bits hold only with a rest.
fn scale_of(output: usize, group: usize) -> f32 {
    1.0 + (output + group) as f32 % 7.0 + 1.0 / 1024.0
}

/// Codes as `cuda/stored.cuh` says, with scales of groups.
fn codes(seed: u64, [outputs, inputs, group]: [usize; 3]) -> Codes {
    let (together, groups) = (outputs.next_multiple_of(32), inputs.div_ceil(group));
    let (mut codes, mut scales) = (vec![0; together * inputs], vec![0; 2 * together * groups]);
    let drawn = random(seed, outputs * inputs);
    let factors: Vec<f32> = random(seed + 1, together).into_iter().map(|x| 0.01 + x.abs()).collect();
    let mut numbers = Vec::with_capacity(outputs * inputs);
    for output in 0..outputs {
        let (block, in_block) = (output / 32, output % 32);
        for of_group in 0..groups {
            let scaled = scale_of(output, of_group) * 2f32.powi(120);
            let (scale, at) =
                (Bf16::from_f32(scaled), (block * groups + of_group) * 64 + in_block % 8 * 8 + in_block / 8);
            scales[at] = scale.0;
            scales[at + 4] = Bf16::from_f32(scaled - scale.to_f32()).0;
        }
        for input in 0..inputs {
            let code = E4m3::from_f32(drawn[output * inputs + input] * 100.0);
            let of_row = in_block / 16 * 512 + in_block % 8 * 64 + in_block / 8 % 2 * 8;
            let at = place(input % 32);
            codes[block * 32 * inputs + input / 32 * 1024 + of_row + at / 8 * 16 + at % 8] = code.0;
            numbers.push(code.to_f32() * scale_of(output, input / group) * factors[output]);
        }
    }
    Codes { codes, scales, factors, numbers }
}

fn room_for_codes(device: &mut dyn Device, len: usize) -> Rounded {
    Rounded { codes: put(device, &vec![E4m3(0x7f); len]), scales: put(device, &vec![f32::NAN; len / 128]) }
}

#[test]
fn rows_are_rounded_in_groups() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    let (rows, inputs) = (5, 384);
    let mut x: Vec<Bf16> = random(3, rows * inputs).into_iter().map(|x| Bf16::from_f32(x * 5.0)).collect();
    x[128..256].fill(Bf16(0));
    let to = room_for_codes(device, rows * inputs);
    let x_there = put(device, &x);
    device.launch(&round(to, x_there, rows, inputs).unwrap()).unwrap();
    let (codes, scales) = (get(device, to.codes), get(device, to.scales));
    for (group, (numbers, scale)) in x.chunks_exact(128).zip(&scales).enumerate() {
        let most = numbers.iter().map(|number| number.to_f32().abs()).fold(0.0, f32::max);
        assert_eq!(*scale, most / 448.0);
        for (input, number) in numbers.iter().enumerate() {
            let code = codes[group * 128 + input / 32 * 32 + place(input % 32)];
            let up = if most > 0.0 { 448.0 / most } else { 0.0 };
            assert_eq!(code, E4m3::from_f32(number.to_f32() * up), "{input} of group {group}");
        }
    }
}

/// How codes are multiplied by a plan on a device of so many multiprocessors.
pub(super) type Multiply = fn(&Coded, Plan, u32) -> Result<Launch, Misuse>;

/// Rounds rows and multiplies them by codes; what comes out, which is what should.
pub(super) fn check_coded(
    device: &mut dyn Device,
    [rows, outputs, inputs, group]: [usize; 4],
    (multiply, plan, blocks): (Multiply, Plan, u32),
) -> Vec<f32> {
    let seed = (rows + outputs + inputs + group) as u64;
    let x: Vec<Bf16> = random(seed, rows * inputs).into_iter().map(Bf16::from_f32).collect();
    let codes = codes(seed + 1, [outputs, inputs, group]);
    let bias = random(seed + 5, outputs);
    let to = room_for_codes(device, rows * inputs);
    let x_there = put(device, &x);
    device.launch(&round(to, x_there, rows, inputs).unwrap()).unwrap();
    let (rounded, scales) = (get(device, to.codes), get(device, to.scales));
    let number = |row: usize, input: usize| {
        let at = row * inputs + input / 32 * 32 + place(input % 32);
        rounded[at].to_f32() * scales[(row * inputs + input) / 128]
    };
    let x: Vec<f32> = (0..rows * inputs).map(|at| number(at / inputs, at % inputs)).collect();
    let y: Slice<f32> = put(device, &vec![f32::NAN; rows * outputs]);
    let mut job = Coded {
        x: to,
        codes: put(device, &codes.codes),
        scales: put(device, &codes.scales),
        factors: put(device, &codes.factors),
        bias: None,
        y: Output::F32(y),
        workspace: workspace(device, rows, outputs, plan.parts),
        rows,
        outputs,
        inputs,
        group,
    };
    let exact = results(device, &multiply(&job, plan, blocks).unwrap(), job.y, job.workspace);
    let error = nmse(&exact, &wanted(&x, &codes.numbers, inputs, None));
    // The units of Hopper add up products of codes with about 13 bits of fraction, relative to the largest of a step of
    // 32 inputs, and cut off the rest, always to the same side: of the four steps that a scale spans up to 4 * 2^-13,
    // which squared is 2.4e-7. The emulator keeps all.
    let tolerance = if device.name() == "emulator" { 1e-11 } else { 1e-6 };
    assert!(error < tolerance, "{rows} x {outputs} x {inputs}, groups of {group}, in 32 bits: {error:e}");
    (job.bias, job.y) = (Some(put(device, &bias)), Output::Bf16(put(device, &vec![Bf16(0x7fc0); rows * outputs])));
    let got = results(device, &multiply(&job, plan, blocks).unwrap(), job.y, job.workspace);
    let error = nmse(&got, &wanted(&x, &codes.numbers, inputs, Some(&bias)));
    assert!(error < 6e-6, "{rows} x {outputs} x {inputs}, groups of {group}, in 16 bits: {error:e}");
    exact
}

#[test]
fn products_with_codes() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    for (sizes, parts, blocks) in [
        ([65, 104, 128, 128], 1, 1),
        ([100, 200, 384, 128], 1, 2),
        ([300, 136, 512, 256], 1, 4),
        ([128, 40, 1152, 1152], 1, 1),
        ([130, 264, 640, 640], 2, 3),
        ([70, 128, 640, 128], 3, 99),
    ] {
        check_coded(device, sizes, (coded, Plan { width: 128, parts }, blocks));
    }
}

/// Weights as they are stored take the units, too: as they are where they can, and else widened.
#[test]
fn stored_weights() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    let units = Units::Warpgroups { processors: 3, pairs: false };
    let (outputs, inputs) = (136, 256);
    for (kind, group, rows, names, tolerance) in [
        (Kind::E4m3, 128, 70, ["round_rows", "gemm_wgmma_e4m3_groups_f32"], 2e-3),
        (Kind::E4m3, inputs, 300, ["round_rows", "gemm_wgmma_e4m3_f32"], 2e-3),
        (Kind::Int8, 64, 300, ["stored_widen_int8", "gemm_wgmma_128_f32"], 1e-4),
    ] {
        let layout = Layout { kind, group, inputs };
        // What is no number stands nowhere.
        let code = |at: usize| if at * 37 % 251 == 127 { 126 } else { (at * 37 % 251) as u8 };
        let codes: Vec<u8> = (0..outputs * inputs).map(code).collect();
        let scales: Vec<f32> = random(5, outputs * layout.groups()).iter().map(|x| 0.01 + x.abs()).collect();
        let packed = pack(&layout, &Plain { codes: &codes, scales: &scales, minima: &[] }).unwrap();
        let x: Vec<Bf16> = random(6, rows * inputs).into_iter().map(Bf16::from_f32).collect();
        let meaning = |code: u8| if kind == Kind::E4m3 { E4m3(code).to_f32() } else { f32::from(code as i8) };
        let number = |at: usize| scales[at / inputs * layout.groups() + at % inputs / group] * meaning(codes[at]);
        let weights: Vec<f32> = (0..outputs * inputs).map(number).collect();
        let y = put(device, &vec![f32::NAN; rows * outputs]);
        let job = stored::Product {
            x: put(device, &x).into(),
            matrix: Matrix {
                layout,
                outputs,
                codes: put(device, &packed.codes),
                scales: put(device, &packed.scales),
                factors: put(device, &packed.factors),
            },
            bias: None,
            y: Output::F32(y),
            workspace: workspace(device, rows, outputs, 4),
            wide: Some(put(device, &vec![Bf16(0x7fc0); rows.max(outputs) * inputs])),
            rows,
            deterministic: false,
        };
        let launches = stored::product_on(&job, units).unwrap();
        assert_eq!(launches.iter().map(Launch::kernel).collect::<Vec<_>>(), names);
        launches.iter().for_each(|launch| device.launch(launch).unwrap());
        let error = nmse(&get(device, y), &wanted(&wide(&x), &weights, inputs, None));
        assert!(error < tolerance, "{kind:?}: {error:e}");
    }
}

#[test]
fn what_cannot_be_right_is_told() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    let numbers = numbers(130, 200, 256);
    let job = numbers.on(device, 0, 130);
    let plan = Plan { width: 128, parts: 2 };
    let none = Workspace { sums: zeros(device, 1), counters: zeros(device, 1) };
    assert!(product(&Product { inputs: 224, ..job }, plan, 1).is_err(), "no multiple of 64");
    assert!(product(&Product { outputs: 196, ..job }, plan, 1).is_err(), "no multiple of 8");
    assert!(product(&Product { rows: 0, ..job }, plan, 1).is_err(), "no rows");
    assert!(product(&job, Plan { width: 160, parts: 1 }, 1).is_err(), "no tile");
    assert!(product(&job, Plan { width: 128, parts: 5 }, 1).is_err(), "more parts than steps");
    assert!(product(&Product { workspace: none, ..job }, plan, 1).is_err(), "no room for sums");
}
