//! Matrix products against sums in 64 bits. Beyond the last row of x and of the weights stand rows that are no numbers,
//! and so are the results before they are written.

use super::{device, get, nmse, put, random, zeros};
use kernels::cuda::gemm::{Output, Product, Tile, Workspace, counters_len, product, skinny, sums_len, tiled};
use kernels::cuda::{Bf16, Device, Launch, Slice};

/// Rows after the last that nobody may look at.
const BEYOND: usize = 3;

/// Numbers of one product on the host.
struct Numbers {
    x: Vec<Bf16>,
    weight: Vec<Bf16>,
    bias: Vec<f32>,
    rows: usize,
    outputs: usize,
    inputs: usize,
}

/// Makes up numbers of a product.
fn numbers(rows: usize, outputs: usize, inputs: usize) -> Numbers {
    let seed = (rows * 1_000_003 + outputs * 1009 + inputs) as u64;
    let rounded = |seed, len| random(seed, len).into_iter().map(Bf16::from_f32).collect();
    let (x, weight) = (rounded(seed, rows * inputs), rounded(seed + 1, outputs * inputs));
    Numbers { x, weight, bias: random(seed + 2, outputs), rows, outputs, inputs }
}

impl Numbers {
    /// What is to come out.
    fn wanted(&self, bias: bool) -> Vec<f32> {
        let wide = |numbers: &[Bf16]| -> Vec<f64> { numbers.iter().map(|n| f64::from(n.to_f32())).collect() };
        let (x, weight) = (wide(&self.x), wide(&self.weight));
        let mut all = Vec::with_capacity(self.rows * self.outputs);
        for row in x.chunks_exact(self.inputs) {
            for (weights, bias_of) in weight.chunks_exact(self.inputs).zip(&self.bias) {
                let sum: f64 = row.iter().zip(weights).map(|(a, b)| a * b).sum();
                all.push((sum + if bias { f64::from(*bias_of) } else { 0.0 }) as f32);
            }
        }
        all
    }

    /// The product of rows `first` to `first + rows` in 32 bits on a device.
    fn on(&self, device: &mut dyn Device, first: usize, rows: usize) -> Product {
        let nothing = vec![Bf16(0x7fc0); BEYOND * self.inputs];
        let x = &self.x[first * self.inputs..(first + rows) * self.inputs];
        let counters = counters_len(self.outputs, self.inputs);
        Product {
            x: put(device, &[x, &nothing].concat()),
            weight: put(device, &[&self.weight[..], &nothing].concat()),
            bias: None,
            y: Output::F32(put(device, &vec![f32::NAN; rows * self.outputs])),
            workspace: Workspace {
                sums: put(device, &vec![f32::NAN; sums_len(self.outputs, self.inputs).max(1)]),
                counters: zeros(device, counters.max(1)),
            },
            rows,
            outputs: self.outputs,
            inputs: self.inputs,
            deterministic: false,
        }
    }

    /// The same as sixteen bits and with a bias.
    fn rounded_on(&self, device: &mut dyn Device, first: usize, rows: usize) -> Product {
        let y = Output::Bf16(put(device, &vec![Bf16(0x7fc0); rows * self.outputs]));
        let bias = Some(put(device, &self.bias));
        Product { y, bias, ..self.on(device, first, rows) }
    }
}

/// What a product's launches write, as 32 bits.
fn results(device: &mut dyn Device, job: &Product, launches: &[Launch]) -> Vec<f32> {
    for launch in launches {
        device.launch(launch).unwrap();
    }
    let counters: Vec<i32> = get(device, job.workspace.counters);
    assert!(counters.iter().all(|counter| *counter == 0), "the counters are as before");
    match job.y {
        Output::F32(y) => get(device, y),
        Output::Bf16(y) => get::<Bf16>(device, y).into_iter().map(Bf16::to_f32).collect(),
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// Compares both types, in sixteen bits with a bias, by what `launch` makes of the product.
fn check(numbers: &Numbers, launch: impl Fn(&Product) -> Launch) {
    let mut device = device();
    let device = device.as_mut();
    let what = format!("{} x {} x {}", numbers.rows, numbers.outputs, numbers.inputs);
    let job = numbers.on(device, 0, numbers.rows);
    let error = nmse(&results(device, &job, &[launch(&job)]), &numbers.wanted(false));
    assert!(error < 1e-11, "{what} in 32 bits: {error:e}");
    let job = numbers.rounded_on(device, 0, numbers.rows);
    let error = nmse(&results(device, &job, &[launch(&job)]), &numbers.wanted(true));
    assert!(error < 6e-6, "{what} in 16 bits: {error:e}");
}

#[test]
fn few_rows() {
    for (turn, rows) in [1, 2, 7, 8, 9, 16, 17, 33, 64].into_iter().enumerate() {
        // One part and several, whole steps and half ones; outputs of one block and of several, odd ones too.
        for inputs in [32, [192, 512, 1056][turn % 3]] {
            let outputs = [101, 134, 260][(turn / 2 + inputs) % 3];
            check(&numbers(rows, outputs, inputs), |job| skinny(job).unwrap());
        }
    }
    check(&numbers(3, 1000, 512), |job| skinny(job).unwrap());
}

#[test]
fn many_rows_by_every_tile() {
    for tile in Tile::ALL {
        for (rows, outputs, inputs) in [(65, 100, 32), (130, 257, 96), (1, 70, 512), (65, 50, 1056)] {
            check(&numbers(rows, outputs, inputs), |job| tiled(job, tile).unwrap());
        }
    }
    // More tiles, one above the other, than go together.
    check(&numbers(64 * 10 + 1, 200, 32), |job| tiled(job, Tile::Small).unwrap());
}

#[test]
fn the_kernel_follows_from_the_rows() {
    for rows in [64, 65] {
        check(&numbers(rows, 100, 192), |job| {
            let launches = product(job).unwrap();
            assert_eq!(launches.len(), 1);
            let kernel = if rows == 64 { "gemm_skinny_64" } else { "gemm_tiled_64x64" };
            assert!(launches[0].kernel().starts_with(kernel), "{}", launches[0].kernel());
            launches[0].clone()
        });
    }
}

#[test]
fn a_row_alone_has_the_bits_that_it_has_among_others() {
    let mut device = device();
    let device = device.as_mut();
    for (outputs, inputs) in [(101, 544), (140, 192)] {
        let numbers = numbers(64, outputs, inputs);
        let job = numbers.on(device, 0, 64);
        let all = bits(&results(device, &job, &[skinny(&job).unwrap()]));
        for (first, rows) in [(0, 1), (63, 1), (30, 2), (5, 8), (40, 9), (1, 16), (9, 17), (20, 33), (0, 63)] {
            let job = numbers.on(device, first, rows);
            let some = bits(&results(device, &job, &[skinny(&job).unwrap()]));
            assert!(some == all[first * outputs..(first + rows) * outputs], "rows {first} to {}", first + rows);
        }
    }
}

#[test]
fn deterministic_products_of_many_rows_have_the_bits_of_few() {
    let mut device = device();
    let device = device.as_mut();
    let (rows, outputs) = (130, 101);
    let numbers = numbers(rows, outputs, 256);
    let job = Product { deterministic: true, ..numbers.on(device, 0, rows) };
    let launches = product(&job).unwrap();
    assert_eq!(launches.len(), 3);
    let all = bits(&results(device, &job, &launches));
    for row in [0, 63, 64, 129] {
        let job = numbers.on(device, row, 1);
        let alone = bits(&results(device, &job, &product(&job).unwrap()));
        assert!(alone == all[row * outputs..(row + 1) * outputs], "row {row}");
    }
}

#[test]
fn tiles_have_the_same_bits() {
    let mut device = device();
    let device = device.as_mut();
    let outputs = 131;
    let numbers = numbers(200, outputs, 160);
    let job = numbers.on(device, 0, 200);
    let all = bits(&results(device, &job, &[tiled(&job, Tile::Small).unwrap()]));
    for (tile, first, rows) in
        [(Tile::Square, 0, 200), (Tile::Wide, 0, 200), (Tile::Wide, 70, 65), (Tile::Small, 9, 99)]
    {
        let job = numbers.on(device, first, rows);
        let some = bits(&results(device, &job, &[tiled(&job, tile).unwrap()]));
        assert!(some == all[first * outputs..(first + rows) * outputs], "{tile:?} of rows {first} to {}", first + rows);
    }
}

#[test]
fn what_cannot_be_right_is_told() {
    let mut device = device();
    let device = device.as_mut();
    let numbers = numbers(65, 100, 256);
    let job = numbers.on(device, 0, 65);
    let short: Slice<f32> = zeros(device, 65 * 100 - 1);
    let odd: Slice<Bf16> = zeros(device, 70 * 256);
    let none: Slice<f32> = zeros(device, 1);
    assert!(skinny(&job).is_err(), "more rows than it knows");
    assert!(product(&Product { inputs: 40, ..job }).is_err(), "no multiple of 32");
    assert!(product(&Product { rows: 0, ..job }).is_err(), "no rows");
    assert!(product(&Product { outputs: 104, ..job }).is_err(), "more outputs than there are weights");
    assert!(product(&Product { y: Output::F32(short), ..job }).is_err(), "no room for the last result");
    assert!(product(&Product { x: odd.part(1..odd.len()).unwrap(), ..job }).is_err(), "not aligned");
    assert!(sums_len(100, 256) > 0, "some are divided");
    let few = Workspace { sums: none, ..job.workspace };
    assert!(product(&Product { rows: 64, workspace: few, ..job }).is_err(), "no room for sums");
    assert!(product(&Product { bias: Some(none), ..job }).is_err(), "not a bias for each");
}
