//! Products by pairs of blocks, against sums in 64 bits and against those by single blocks, whose bits they have. They are
//! machine code for compute capability 9.0 alone: on other GPUs there is nothing to test.

use super::wgmma::{able, bits, check_choice, check_coded, numbers, results, wanted, wide};
use super::{get, nmse, zeros};
use kernels::cuda::gemm::{Output, Product, Workspace};
use kernels::cuda::pairs::{coded, product};
use kernels::cuda::stream;
use kernels::cuda::wgmma::{self, Plan};
use kernels::cuda::{Device, Units};

/// Compares both types with what they should be, and 32 bits with what single blocks make.
fn check(device: &mut dyn Device, [rows, outputs, inputs]: [usize; 3], plan: Plan, processors: u32) {
    let numbers = numbers(rows, outputs, inputs);
    let what = format!("{rows} x {outputs} x {inputs} by {plan:?} on {processors}");
    let job = numbers.on(device, 0, rows);
    let got = results(device, &product(&job, plan, processors, false).unwrap(), job.y, job.workspace);
    let error = nmse(&got, &wanted(&wide(&numbers.x), &wide(&numbers.weight), inputs, None));
    assert!(error < 1e-11, "{what} in 32 bits: {error:e}");
    let job = numbers.on(device, 0, rows);
    let alone = results(device, &wgmma::product(&job, plan, 3).unwrap(), job.y, job.workspace);
    assert!(bits(&got) == bits(&alone), "{what}: the bits of single blocks");
    let job = numbers.rounded_on(device);
    let got = results(device, &product(&job, plan, processors, true).unwrap(), job.y, job.workspace);
    let with_bias = wanted(&wide(&numbers.x), &wide(&numbers.weight), inputs, Some(&numbers.bias));
    let error = nmse(&got, &with_bias);
    assert!(error < 6e-6, "{what} in 16 bits: {error:e}");
}

#[test]
fn every_tile_and_ragged_sizes() {
    let Some(mut device) = able() else { return };
    for width in Plan::WIDTHS {
        // One step, fewer than stages, and more; one tile and several; rows and outputs that do not fill them, also so
        // that a block of a pair has nothing of its own, or its half of the weights none.
        for sizes in [[129, 104, 64], [200, 264, 128], [256, 512, 192], [300, 40, 576], [520, 264, 320]] {
            for processors in [1, 5] {
                check(device.as_mut(), sizes, Plan { width, parts: 1 }, processors);
            }
        }
    }
    // More tiles, one below the other, than go together.
    check(device.as_mut(), [128 * 9 + 5, 136, 64], Plan { width: 128, parts: 1 }, 4);
    // Fewer rows than those it is for.
    check(device.as_mut(), [65, 136, 192], Plan { width: 128, parts: 1 }, 4);
}

#[test]
fn inputs_in_parts() {
    let Some(mut device) = able() else { return };
    for (width, parts) in [(128, 2), (192, 4), (224, 2), (256, 3)] {
        check(device.as_mut(), [130, 200, 448], Plan { width, parts }, 132);
        check(device.as_mut(), [290, 520, 448], Plan { width, parts }, 6);
    }
}

#[test]
fn products_with_codes_have_the_bits_of_single_blocks() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    for (sizes, parts, processors) in [
        // Of a pair's rows one half is none, or of its outputs; fewer steps than stages, and more; several tiles.
        ([65, 104, 128, 128], 1, 1),
        ([40, 360, 256, 256], 1, 2),
        ([100, 200, 384, 128], 1, 2),
        ([300, 136, 512, 256], 1, 4),
        ([300, 720, 1152, 128], 1, 4),
        ([128, 424, 1408, 1408], 1, 2),
        ([260, 800, 1152, 1152], 1, 4),
        ([130, 264, 640, 640], 2, 3),
        ([290, 440, 1152, 1152], 3, 8),
        ([70, 128, 640, 128], 3, 99),
    ] {
        let [_, _, inputs, group] = sizes;
        let alone = check_coded(device, sizes, (wgmma::coded, Plan { width: 128, parts }, 2));
        for width in if group < inputs { &[160][..] } else { &[160, 192] } {
            let got = check_coded(device, sizes, (coded, Plan { width: *width, parts }, processors));
            assert!(bits(&got) == bits(&alone), "{sizes:?} by {width}: the bits of single blocks");
        }
    }
}

#[test]
fn units_that_go_by_pairs_do_so_with_many_rows() {
    let Some(mut device) = able() else { return };
    let units = Units::Warpgroups { processors: 132, pairs: true };
    for (sizes, kernel) in [
        ([64, 200, 256], "gemm_stream"),
        ([128, 200, 256], "gemm_wgmma"),
        ([129, 200, 256], "gemm_pairs"),
        ([300, 200, 256], "gemm_pairs"),
        ([300, 204, 256], "gemm_tiled"),
        ([300, 200, 224], "gemm_tiled"),
    ] {
        check_choice(device.as_mut(), sizes, (units, false), kernel);
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
    let Output::F32(y) = job.y else { panic!("in 32 bits") };
    let short = Output::F32(y.first(130 * 200 - 1).unwrap());
    for (job, plan, why) in [
        (Product { inputs: 224, ..job }, plan, "no multiple of 64"),
        (Product { outputs: 196, ..job }, plan, "no multiple of 8"),
        (Product { rows: 0, ..job }, plan, "no rows"),
        (job, Plan { width: 160, parts: 1 }, "no tile"),
        (job, Plan { width: 128, parts: 5 }, "more parts than steps"),
        (Product { workspace: none, ..job }, plan, "no room for sums"),
        (Product { y: short, ..job }, plan, "no room for results"),
    ] {
        assert!(product(&job, plan, 4, false).is_err(), "{why}");
    }
}

/// One right after the other, sharing their workspace, and again.
#[test]
fn a_graph_of_several_does_the_same_each_time() {
    let Some(mut device) = able() else { return };
    let device = device.as_mut();
    let numbers = numbers(260, 264, 448);
    let plan = Plan { width: 128, parts: 3 };
    let (first, second) = (numbers.on(device, 0, 260), numbers.on(device, 100, 60));
    let (first, second) = (first, Product { workspace: first.workspace, ..second });
    let launches = [product(&first, plan, 132, false).unwrap(), stream::product(&second, 5, false).unwrap()];
    let mut outcomes = Vec::new();
    for launch in &launches {
        device.prepare(launch).unwrap();
    }
    device.begin_capture().unwrap();
    launches.iter().for_each(|launch| device.launch(launch).unwrap());
    let graph = device.end_capture().unwrap();
    for _ in 0..3 {
        device.replay(graph).unwrap();
        outcomes.push([first.y, second.y].map(|y| {
            let Output::F32(y) = y else { panic!("in 32 bits") };
            get::<f32>(device, y)
        }));
        let counters: Vec<i32> = get(device, first.workspace.counters);
        assert!(counters.iter().all(|counter| *counter == 0), "the counters are as before");
    }
    let weight = wide(&numbers.weight);
    for (y, rows) in outcomes[0].iter().zip([0..260, 100..160]) {
        let x = wide(&numbers.x[rows.start * 448..rows.end * 448]);
        assert!(nmse(y, &wanted(&x, &weight, 448, None)) < 1e-11);
    }
    for again in &outcomes[1..] {
        assert!(again.iter().zip(&outcomes[0]).all(|(again, once)| bits(again) == bits(once)));
    }
}
