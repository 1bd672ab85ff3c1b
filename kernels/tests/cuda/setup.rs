//! Made-up weights, bit for bit, and updates of tables.

use super::{device, get, put, run, zeros};
use kernels::cuda::setup::{MakeUp, UpdateTables, make_up_bf16, make_up_bytes, make_up_f32, update_tables};
use kernels::cuda::{Bf16, Slice};

/// Number `index` of a tensor, as the loader of made-up weights has it.
fn number(job: &MakeUp, index: u64) -> f32 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut z = job.key.wrapping_add((index + 1).wrapping_mul(GOLDEN));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
    let scatter = (sum as f64 - 131_070.0) / (4_294_967_295.0f64 / 3.0).sqrt();
    (job.mean + job.sigma * scatter) as f32
}

#[test]
fn made_up_weights_have_the_hosts_bits() {
    let mut device = device();
    let jobs = [
        MakeUp { key: 0xfedc_ba98_7654_3210, first: 0, mean: 0.0, sigma: 1.0 },
        MakeUp { key: 1, first: 0xffff_fff0, mean: 1.0, sigma: 0.1 },
        MakeUp { key: u64::MAX, first: 0x0123_4567_89ab, mean: -0.3, sigma: 1.0 / 4096f64.sqrt() },
    ];
    for job in &jobs {
        for len in [1, 4, 1023, 5001, 70_002] {
            let want: Vec<f32> = (0..len as u64).map(|index| number(job, job.first + index)).collect();
            let to: Slice<f32> = zeros(&mut *device, len);
            run(&mut *device, make_up_f32(to, job));
            assert_eq!(get(&mut *device, to), want);
            let to: Slice<Bf16> = zeros(&mut *device, len);
            run(&mut *device, make_up_bf16(to, job));
            let want: Vec<Bf16> = want.iter().map(|number| Bf16::from_f32(*number)).collect();
            assert_eq!(get(&mut *device, to), want);
            assert_eq!(make_up_bytes(to), 2 * len);
        }
    }
    let to: Slice<Bf16> = zeros(&mut *device, 16);
    assert!(make_up_bf16(to.part(1..9).unwrap(), &jobs[0]).is_err());
    assert!(make_up_bf16(to.part(8..8).unwrap(), &jobs[0]).is_err());
}

#[test]
fn tables_are_updated() {
    let mut device = device();
    let (slots, stride) = (7, 70);
    let mut want: Vec<i32> = (0..slots * stride).collect();
    let tables = put(&mut *device, &want);
    let mut updates = vec![7, 0, 1, -1, 0, 1, 0, 70, 1, 0, -1, 1];
    for update in 0..300 {
        let place = update * 11 % (slots * stride);
        updates.extend([place / stride, place % stride, 1000 + update]);
        want[place as usize] = 1000 + update;
    }
    let updates = put(&mut *device, &updates);
    let job = UpdateTables { updates, count: 304, tables, table_stride: stride as usize };
    run(&mut *device, update_tables(&job));
    assert_eq!(get(&mut *device, tables), want);
    assert!(update_tables(&UpdateTables { count: 0, ..job }).is_err());
    assert!(update_tables(&UpdateTables { count: 305, ..job }).is_err());
}
