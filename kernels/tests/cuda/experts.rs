//! Mixtures of experts against plain arithmetic, row by row. What nobody may look at is no number.

use super::{device, get, nmse, put, random, run, zeros};
use kernels::cuda::experts::{
    Choices, Choose, Combine, Product, choose, combine, counters_len, product, product_bytes, product_flops, sums_len,
};
use kernels::cuda::gemm::{Output, Workspace};
use kernels::cuda::{Bf16, Device, Slice};

/// The choices of so many rows, not made yet.
fn choices(device: &mut dyn Device, rows: usize, top_k: usize, experts: usize) -> Choices {
    let pairs = rows * top_k;
    Choices {
        chosen: put(device, &vec![i32::MAX; pairs]),
        shares: put(device, &vec![f32::NAN; pairs]),
        list: put(device, &vec![i32::MAX; pairs]),
        offsets: put(device, &vec![i32::MAX; experts + 1]),
        rows,
        top_k,
        experts,
    }
}

/// Positions of rows of which some, or none, are padding.
fn positions(rows: usize, padded: bool) -> Vec<i32> {
    (0..rows as i32).map(|row| if padded && (row % 5 == 3 || row + 2 >= rows as i32) { -1 } else { 7 * row }).collect()
}

/// What a row chooses.
fn wanted(logits: &[f32], top_k: usize, of_chosen: bool) -> Vec<(i32, f32)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let share = |expert: usize| f64::from(logits[expert] - logits[order[0]]).exp();
    let counted = if of_chosen { &order[..top_k] } else { &order[..] };
    let sum: f64 = counted.iter().map(|expert| share(*expert)).sum();
    order[..top_k].iter().map(|expert| (*expert as i32, (share(*expert) / sum) as f32)).collect()
}

/// Chooses by made-up logits.
fn chosen(device: &mut dyn Device, choices: Choices, logits: &[f32], positions: &[i32], of_chosen: bool) {
    let (logits, positions) = (put(device, logits), put(device, positions));
    for launch in choose(&Choose { logits, positions, choices, of_chosen }).unwrap() {
        device.launch(&launch).unwrap();
    }
}

#[test]
fn the_largest_logits_are_chosen_and_listed_by_expert() {
    let mut device = device();
    let device = device.as_mut();
    let sizes = [(1, 8, 2), (3, 4, 4), (6, 130, 8), (64, 17, 16), (66, 256, 5), (200, 7, 1), (1100, 3, 2)];
    for (turn, (rows, experts, top_k)) in sizes.into_iter().enumerate() {
        let of_chosen = turn % 2 == 0;
        // Whole and half numbers, so that many are equal.
        let logits: Vec<f32> = random(turn as u64, rows * experts).iter().map(|x| (x * 4.0).round() / 2.0).collect();
        let positions = positions(rows, rows > 3);
        let choices = choices(device, rows, top_k, experts);
        chosen(device, choices, &logits, &positions, of_chosen);
        let (experts_of, shares) = (get(device, choices.chosen), get(device, choices.shares));
        let mut by_expert = vec![Vec::new(); experts];
        for (row, logits) in logits.chunks_exact(experts).enumerate() {
            let there = row * top_k..(row + 1) * top_k;
            let (got, shares) = (&experts_of[there.clone()], &shares[there]);
            if positions[row] < 0 {
                assert!(got.iter().all(|expert| *expert == -1) && shares.iter().all(|share| *share == 0.0));
                continue;
            }
            for (choice, (expert, share)) in wanted(logits, top_k, of_chosen).into_iter().enumerate() {
                assert_eq!(got[choice], expert, "choice {choice} of row {row} of {rows}, {experts} experts");
                assert!((shares[choice] - share).abs() < 1e-5 * share, "{} is not {share}", shares[choice]);
                by_expert[expert as usize].push((row * top_k + choice) as i32);
            }
        }
        let (list, offsets) = (get(device, choices.list), get(device, choices.offsets));
        let ends = by_expert.iter().scan(0, |end, pairs| {
            *end += pairs.len() as i32;
            Some(*end)
        });
        let begins: Vec<i32> = std::iter::once(0).chain(ends).collect();
        assert_eq!(offsets, begins);
        let by_expert = by_expert.concat();
        assert_eq!(list[..by_expert.len()], by_expert);
        assert!(list[by_expert.len()..].iter().all(|pair| *pair == i32::MAX), "padding is in no list");
    }
}

/// A product's numbers on the host.
struct Numbers {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    logits: Vec<f32>,
    positions: Vec<i32>,
    /// Rows, experts, choices of a row.
    mixture: (usize, usize, usize),
    outputs: usize,
    inputs: usize,
}

fn rounded(seed: u64, len: usize) -> Vec<f32> {
    random(seed, len).into_iter().map(|number| Bf16::from_f32(number).to_f32()).collect()
}

fn put_rounded(device: &mut dyn Device, numbers: &[f32]) -> Slice<Bf16> {
    let numbers: Vec<Bf16> = numbers.iter().map(|number| Bf16::from_f32(*number)).collect();
    put(device, &numbers)
}

impl Numbers {
    /// With a row of `x` for each pair, or for each row. Logits lean to some experts.
    fn new(mixture: (usize, usize, usize), outputs: usize, inputs: usize, of_pairs: bool) -> Self {
        let (rows, experts, top_k) = mixture;
        let seed = (rows * 1_000_003 + experts * 1009 + outputs + inputs) as u64;
        let lean = |(i, x): (usize, &f32)| x + if i % experts % 5 == 1 { 2.0 } else { 0.0 };
        Numbers {
            x: rounded(seed, if of_pairs { rows * top_k } else { rows } * inputs),
            weight: rounded(seed + 1, experts * outputs * inputs),
            bias: random(seed + 2, experts * outputs),
            logits: random(seed + 3, rows * experts).iter().enumerate().map(lean).collect(),
            positions: positions(rows, rows > 3),
            mixture,
            outputs,
            inputs,
        }
    }

    /// The product of rows `first` to `first + rows` in 32 bits, with their choices made.
    fn on(&self, device: &mut dyn Device, first: usize, rows: usize, of_pairs: bool) -> Product {
        let (outputs, inputs, (_, experts, top_k)) = (self.outputs, self.inputs, self.mixture);
        let choices = choices(device, rows, top_k, experts);
        let logits = &self.logits[first * experts..(first + rows) * experts];
        chosen(device, choices, logits, &self.positions[first..first + rows], true);
        let of_row = if of_pairs { top_k * inputs } else { inputs };
        Product {
            x: put_rounded(device, &self.x[first * of_row..(first + rows) * of_row]),
            of_pairs,
            weight: put_rounded(device, &self.weight),
            bias: None,
            y: Output::F32(put(device, &vec![f32::NAN; rows * top_k * outputs])),
            workspace: Workspace {
                sums: put(device, &vec![f32::NAN; sums_len(outputs, inputs, top_k).max(1)]),
                counters: zeros(device, counters_len(outputs, inputs, top_k).max(1)),
            },
            choices,
            outputs,
            inputs,
        }
    }

    /// The numbers of pair `pair`, `None` where it is of padding.
    fn wanted(&self, pair: usize, of_pairs: bool, bias: bool) -> Option<Vec<f32>> {
        let (_, experts, top_k) = self.mixture;
        let (row, outputs, inputs) = (pair / top_k, self.outputs, self.inputs);
        if self.positions[row] < 0 {
            return None;
        }
        let chosen = wanted(&self.logits[row * experts..(row + 1) * experts], top_k, true);
        let expert = chosen[pair % top_k].0 as usize;
        let x = &self.x[if of_pairs { pair } else { row } * inputs..][..inputs];
        let sum = |output: usize| {
            let weights = &self.weight[(expert * outputs + output) * inputs..][..inputs];
            let sum: f64 = x.iter().zip(weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (sum + if bias { f64::from(self.bias[expert * outputs + output]) } else { 0.0 }) as f32
        };
        Some((0..outputs).map(sum).collect())
    }

    /// Compares all pairs, and that those of padding are left alone.
    fn check(&self, got: &[f32], of_pairs: bool, bias: bool, most: f64) {
        let (mut some, mut all) = (Vec::new(), Vec::new());
        for (pair, got) in got.chunks_exact(self.outputs).enumerate() {
            match self.wanted(pair, of_pairs, bias) {
                Some(wanted) => {
                    some.extend_from_slice(got);
                    all.extend(wanted);
                }
                None => assert!(got.iter().all(|number| number.is_nan()), "pair {pair} is of padding"),
            }
        }
        let error = nmse(&some, &all);
        assert!(error < most, "{:?} by {} x {}: {error:e}", self.mixture, self.outputs, self.inputs);
    }
}

/// Runs a product; what it writes, as 32 bits.
fn results(device: &mut dyn Device, job: &Product) -> Vec<f32> {
    run(device, product(job));
    let counters: Vec<i32> = get(device, job.workspace.counters);
    assert!(counters.iter().all(|counter| *counter == 0), "the counters are as before");
    match job.y {
        Output::F32(y) => get(device, y),
        Output::Bf16(y) => get::<Bf16>(device, y).into_iter().map(Bf16::to_f32).collect(),
    }
}

/// Both of a layer's products: of rows to sixteen bits with a bias, and of pairs to 32 without.
fn both(mixture: (usize, usize, usize), outputs: usize, inputs: usize, kernel: &str) {
    let mut device = device();
    let device = device.as_mut();
    let (rows, _, top_k) = mixture;
    let numbers = Numbers::new(mixture, outputs, inputs, false);
    let y = Output::Bf16(put(device, &vec![Bf16(0x7fc0); rows * top_k * outputs]));
    let bias = Some(put(device, &numbers.bias));
    let job = Product { y, bias, ..numbers.on(device, 0, rows, false) };
    assert!(product(&job).unwrap().kernel().starts_with(kernel), "{}", product(&job).unwrap().kernel());
    numbers.check(&results(device, &job), false, true, 6e-6);
    let numbers = Numbers::new(mixture, outputs, inputs, true);
    let job = numbers.on(device, 0, rows, true);
    numbers.check(&results(device, &job), true, false, 1e-11);
}

#[test]
fn few_rows() {
    // Whole steps and half ones, one part and several; experts with no row, and with more than a unit.
    both((1, 8, 2), 134, 1056, "gemm_skinny_experts_8");
    both((5, 4, 4), 101, 96, "gemm_skinny_experts_8");
    both((64, 32, 2), 40, 64, "gemm_skinny_experts_8");
    both((30, 6, 2), 40, 192, "gemm_skinny_experts_32");
    both((16, 2, 2), 36, 32, "gemm_skinny_experts_16");
    both((64, 3, 1), 133, 32, "gemm_skinny_experts_64");
}

#[test]
fn many_rows() {
    both((65, 6, 3), 70, 96, "gemm_tiled_experts_64x64");
    both((203, 5, 1), 129, 32, "gemm_tiled_experts_64x64");
    both((230, 3, 2), 133, 64, "gemm_tiled_experts_128x128");
}

#[test]
fn a_row_alone_has_the_bits_that_it_has_among_others() {
    let mut device = device();
    let device = device.as_mut();
    // In parts, by kernels of 8, 16, 32 and 64 pairs; and by tiles of both sizes, which have one order of additions.
    let cases = [
        ((64, 4, 2), 101, 544, vec![(0, 1), (5, 2), (7, 8), (30, 20), (1, 33)]),
        ((64, 5, 1), 36, 192, vec![(0, 1), (20, 40)]),
        ((300, 3, 1), 37, 96, vec![(0, 290), (100, 65), (3, 120)]),
    ];
    for (mixture, outputs, inputs, some) in cases {
        let numbers = Numbers::new(mixture, outputs, inputs, false);
        let (rows, _, top_k) = mixture;
        let mut of = |first: usize, rows: usize| {
            let job = numbers.on(device, first, rows, false);
            results(device, &job).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let all = of(0, rows);
        let each = top_k * outputs;
        for (first, rows) in some {
            let some = of(first, rows);
            assert!(some == all[first * each..(first + rows) * each], "{mixture:?} rows {first} to {}", first + rows);
        }
    }
}

#[test]
fn results_are_summed_by_their_shares() {
    let mut device = device();
    let device = device.as_mut();
    for (rows, experts, top_k, hidden) in [(1, 4, 2, 36), (9, 20, 8, 1028), (70, 16, 16, 128)] {
        let logits = random(3, rows * experts);
        let positions = positions(rows, rows > 3);
        let choices = choices(device, rows, top_k, experts);
        chosen(device, choices, &logits, &positions, false);
        let (shares, mut added) = (get(device, choices.shares), random(4, rows * top_k * hidden));
        let mut wanted = vec![0.0; rows * hidden];
        for row in 0..rows {
            for pair in row * top_k..(row + 1) * top_k {
                let added = &mut added[pair * hidden..(pair + 1) * hidden];
                if positions[row] < 0 {
                    added.fill(f32::NAN);
                    continue;
                }
                let sum = &mut wanted[row * hidden..(row + 1) * hidden];
                sum.iter_mut().zip(added).for_each(|(sum, added)| *sum += shares[pair] * *added);
            }
        }
        let out = put(device, &vec![f32::NAN; rows * hidden]);
        let added = put(device, &added);
        run(device, combine(&Combine { added, choices, out, hidden }));
        let got = get(device, out);
        assert!(nmse(&got, &wanted) < 1e-12);
        for (row, position) in positions.iter().enumerate().filter(|(_, position)| **position < 0) {
            assert!(got[row * hidden..(row + 1) * hidden].iter().all(|x| *x == 0.0), "{row} at {position}");
        }
    }
}

#[test]
fn what_cannot_be_right_is_told() {
    let mut device = device();
    let device = device.as_mut();
    let numbers = Numbers::new((4, 4, 2), 256, 512, false);
    let job = numbers.on(device, 0, 4, false);
    let none: Slice<f32> = zeros(device, 1);
    assert!(product(&Product { inputs: 40, ..job }).is_err(), "no multiple of 32");
    assert!(product(&Product { outputs: 260, ..job }).is_err(), "more outputs than there are weights");
    assert!(product(&Product { of_pairs: true, ..job }).is_err(), "x has not a row for each pair");
    assert!(product(&Product { bias: Some(none), ..job }).is_err(), "not a bias for each");
    assert!(product(&Product { y: Output::F32(none), ..job }).is_err(), "no room for results");
    assert!(sums_len(256, 512, 2) > 0, "some are divided");
    let few = Workspace { sums: none, ..job.workspace };
    assert!(product(&Product { workspace: few, ..job }).is_err(), "no room for sums");
    let many = |choices: Choices| product(&Product { choices, ..job }).is_err();
    assert!(many(Choices { top_k: 5, ..job.choices }), "more choices than experts");
    assert!(many(Choices { experts: 257, ..job.choices }), "more experts than the kernels know");
    assert!(many(Choices { rows: 5, ..job.choices }), "fewer choices than rows");
    let wide = Combine { added: none, choices: job.choices, out: none, hidden: 4 };
    assert!(combine(&wide).is_err(), "nothing to add up");
    assert!(combine(&Combine { hidden: 6, ..wide }).is_err(), "no multiple of 4");
    let logits: Slice<f32> = zeros(device, 15);
    let positions: Slice<i32> = zeros(device, 4);
    assert!(choose(&Choose { logits, positions, choices: job.choices, of_chosen: true }).is_err(), "15 of 16 logits");
}

/// One row of a model with 128 experts of 768, of which 8 are chosen.
#[test]
fn weights_are_what_moves() {
    let mut device = device();
    let device = device.as_mut();
    let choices = choices(device, 1, 8, 128);
    let nothing = device.reserve(1).unwrap();
    let (x, y) = (nothing.first(0).unwrap().cast().unwrap(), Output::F32(nothing.first(0).unwrap().cast().unwrap()));
    let weight = nothing.first(0).unwrap().cast().unwrap();
    let (sums, counters) = (nothing.first(0).unwrap().cast().unwrap(), nothing.first(0).unwrap().cast().unwrap());
    let workspace = Workspace { sums, counters };
    let (of_pairs, bias, outputs, inputs) = (false, None, 1536, 2048);
    let job = Product { x, of_pairs, weight, bias, y, workspace, choices, outputs, inputs };
    let weights = 8 * outputs * inputs;
    assert_eq!(product_flops(&job), 2 * weights);
    assert_eq!(product_bytes(&job), 2 * weights + 2 * inputs + 8 * 4 * outputs);
}
