//! Products of few rows whose weights stream through the units that four warps use together, against sums in 64 bits. They
//! are machine code for compute capability 9.0 alone: on other GPUs there is nothing to test.

use super::wgmma::{able, bits, check_choice, numbers, results, wanted, wide};
use super::{nmse, put, zeros};
use kernels::cuda::gemm::{Output, Product, Workspace};
use kernels::cuda::stream::{product, shares};
use kernels::cuda::{Bf16, Device, Units};

/// Room for any of the products here.
fn workspace(device: &mut dyn Device) -> Workspace {
    Workspace { sums: put(device, &vec![f32::NAN; 1 << 20]), counters: zeros(device, 64) }
}

/// Compares both types, in sixteen bits with a bias; returns the bits of 32.
fn check(device: &mut dyn Device, [rows, outputs, inputs]: [usize; 3], shares: usize) -> Vec<u32> {
    let numbers = numbers(rows, outputs, inputs);
    let (x, weight) = (wide(&numbers.x), wide(&numbers.weight));
    let what = format!("{rows} x {outputs} x {inputs} in {shares} shares");
    let job = Product { workspace: workspace(device), ..numbers.on(device, 0, rows) };
    let got = results(device, &product(&job, shares, false).unwrap(), job.y, job.workspace);
    let error = nmse(&got, &wanted(&x, &weight, inputs, None));
    assert!(error < 1e-11, "{what} in 32 bits: {error:e}");
    let job = Product { workspace: workspace(device), ..numbers.rounded_on(device) };
    let rounded = results(device, &product(&job, shares, true).unwrap(), job.y, job.workspace);
    let error = nmse(&rounded, &wanted(&x, &weight, inputs, Some(&numbers.bias)));
    assert!(error < 6e-6, "{what} in 16 bits: {error:e}");
    bits(&got)
}

#[test]
fn every_tile_and_ragged_sizes() {
    let Some(mut device) = able() else { return };
    for rows in [1, 9, 16, 17, 32, 40, 64] {
        // One step, fewer than stages, and more; outputs that do not fill a tile, or leave a block of a pair none.
        for ([outputs, inputs], shares) in [([104, 64], 1), ([264, 192], 1), ([512, 960], 2), ([128, 1152], 1)] {
            check(device.as_mut(), [rows, outputs, inputs], shares);
        }
    }
}

#[test]
fn shares_meet_in_tiles() {
    let Some(mut device) = able() else { return };
    for rows in [5, 30, 50] {
        // Many of a tile, and tiles that are whole between parts of others.
        for ([outputs, inputs], shares) in
            [([256, 640], 3), ([200, 640], 10), ([696, 320], 2), ([1096, 192], 4), ([520, 448], 7), ([1000, 64], 3)]
        {
            check(device.as_mut(), [rows, outputs, inputs], shares);
        }
    }
}

#[test]
fn a_row_has_the_bits_that_it_has_among_others() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    let (outputs, inputs) = (520, 448);
    let numbers = numbers(64, outputs, inputs);
    let of = |device: &mut dyn Device, first, rows| {
        let job = Product { workspace: workspace(device), ..numbers.on(device, first, rows) };
        bits(&results(device, &product(&job, 5, false).unwrap(), job.y, job.workspace))
    };
    let all = of(device, 0, 64);
    for (first, rows) in [(0, 1), (3, 16), (60, 4), (10, 33), (31, 20)] {
        assert!(of(device, first, rows) == all[first * outputs..(first + rows) * outputs], "{first} and {rows}");
    }
}

#[test]
fn units_that_go_by_pairs_do_so_with_few_rows_unless_bits_may_not_depend_on_them() {
    let Some(mut device) = able() else { return };
    let units = |processors, pairs| Units::Warpgroups { processors, pairs };
    for (sizes, units, deterministic, kernel) in [
        ([64, 200, 256], units(132, true), false, "gemm_stream_64"),
        ([3, 200, 256], units(132, true), false, "gemm_stream_16"),
        ([3, 200, 256], units(132, true), true, "gemm_skinny"),
        ([3, 200, 256], units(114, true), false, "gemm_skinny"),
        ([3, 200, 256], units(132, false), false, "gemm_skinny"),
        ([3, 200, 224], units(132, true), false, "gemm_skinny"),
        ([3, 204, 256], units(132, true), false, "gemm_skinny"),
        ([3, 200, 256], Units::Warps, false, "gemm_skinny"),
    ] {
        check_choice(device.as_mut(), sizes, (units, deterministic), kernel);
    }
}

#[test]
fn what_cannot_be_right_is_told() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    let numbers = numbers(65, 200, 256);
    let job = Product { workspace: workspace(device), ..numbers.on(device, 0, 64) };
    let none = Workspace { sums: zeros(device, 1), counters: zeros(device, 1) };
    let Output::F32(y) = job.y else { panic!("in 32 bits") };
    let short = Output::F32(y.first(64 * 200 - 1).unwrap());
    let odd: kernels::cuda::Slice<Bf16> = job.x.part(1..job.x.len()).unwrap();
    assert!(product(&job, shares(200, 256), false).is_ok());
    for (job, shares, why) in [
        (Product { inputs: 224, ..job }, 1, "no multiple of 64"),
        (Product { outputs: 196, ..job }, 1, "no multiple of 8"),
        (Product { rows: 65, ..job }, 1, "more rows"),
        (Product { rows: 0, ..job }, 1, "no rows"),
        (Product { workspace: none, ..job }, 1, "no room for sums"),
        (Product { y: short, ..job }, 1, "no room for results"),
        (Product { x: odd, ..job }, 1, "not aligned"),
        (job, 5, "more shares than steps"),
        (job, 0, "no share"),
    ] {
        assert!(product(&job, shares, false).is_err(), "{why}");
    }
}
