//! Attention of prompts by units that four warps use together, against two passes in f64: the same as is tested of the
//! kernel for all other GPUs. On these there is nothing to test.

use super::wgmma::able;
use super::world::{PLAIN, Shape, World, bits, floats, narrow, rules, shapes};
use super::{device, nmse, put};
use kernels::cuda::attention::{Chunk, Prompt, prompt_on, tiles};
use kernels::cuda::{Misuse, Units, attention_wgmma};
use std::sync::OnceLock;

const UNITS: Units = Units::Warpgroups { processors: 4, pairs: false };

/// Sequences whose prompts go through the units; none where the device has none.
fn world(shape: Shape, lengths: &[usize]) -> Option<World> {
    static ABLE: OnceLock<bool> = OnceLock::new();
    let able = *ABLE.get_or_init(|| able().is_some());
    able.then(|| World { units: UNITS, ..World::new(shape, lengths) })
}

/// Heads of every size that there is a kernel for, and of sizes between; groups of several sizes.
fn suited() -> Vec<Shape> {
    let between = [(1, 3, 48), (1, 8, 72), (1, 1, 200), (1, 9, 136)];
    let between = between.map(|(kv_heads, group, dim)| Shape { kv_heads, group, dim, ..PLAIN });
    shapes().into_iter().chain(between).filter(|shape| attention_wgmma::suits(shape.dim)).collect()
}

/// A shape of each kernel.
fn sizes() -> [Shape; 3] {
    [(2, 3, 64), (1, 8, 128), (1, 2, 256)].map(|(kv_heads, group, dim)| Shape { kv_heads, group, dim, ..PLAIN })
}

#[test]
fn prompts_are_close_to_the_specification() {
    for shape in suited().into_iter().chain(narrow(suited())) {
        if let Some(world) = world(shape, &[3, 70]) {
            world.check_prompt();
        }
    }
}

#[test]
fn rules_are_followed() {
    let rules = rules().into_iter().chain(narrow(rules()));
    for (index, rule) in rules.enumerate() {
        let Shape { kv_heads, group, dim, .. } = sizes()[index % 3];
        // Tiles of keys begin at multiples of 64, or of 128.
        if let Some(world) = world(Shape { kv_heads, group, dim, ..rule }, &[1, 200]) {
            world.check_prompt();
        }
    }
}

#[test]
fn a_context_may_be_long() {
    for shape in sizes().into_iter().chain(narrow(sizes().into())) {
        // The sequence's table is read anew after 32 blocks of the cache, and there are odd and even numbers of tiles.
        let group = if shape.dim == 64 { 1 } else { 2 };
        for tokens in [1100, 1025 + 64] {
            let Some(mut world) = world(Shape { kv_heads: 1, group, ..shape }, &[tokens]) else { return };
            let chunk = Chunk { row: 0, tokens: 70, start: tokens - 70, slot: 1 };
            let width = world.shape.heads() * world.shape.dim;
            let check = |world: &World| {
                let got = world.prompt(&[chunk], chunk.tokens);
                for token in [0, 33, 69] {
                    let error =
                        nmse(&floats(&got[token * width..(token + 1) * width]), &world.want(0, chunk.start + token));
                    assert!(error < 2e-5, "{shape:?}, {token} of {tokens}: {error:e}");
                }
            };
            check(&world);
            world.shape.window = Some(300);
            world.hide(0, 0..chunk.start - 299);
            check(&world);
        }
    }
}

#[test]
fn a_prompt_may_be_cut_anywhere() {
    for shape in sizes() {
        for shape in [shape, Shape { window: Some(50), sinks: true, ..shape }, Shape { narrow: true, ..shape }] {
            if let Some(world) = world(shape, &[2, 150, 66]) {
                world.check_cuts(&[1, 40, 7, 64, 33, 2]);
            }
        }
    }
}

/// Alone, and beside others in another order.
#[test]
fn a_row_is_the_same_in_any_company() {
    for shape in sizes().into_iter().chain(narrow(sizes().into())) {
        let Some(world) = world(Shape { sinks: true, ..shape }, &[90, 33, 5]) else { return };
        let ((all, firsts), width) = (world.whole(), world.shape.heads() * world.shape.dim);
        for (sequence, &tokens) in world.lengths.iter().enumerate() {
            let alone = world.prompt(&[Chunk { row: 0, tokens, start: 0, slot: sequence + 1 }], tokens);
            let first = firsts[sequence];
            assert_eq!(bits(&alone), bits(&all[first * width..(first + tokens) * width]), "{shape:?}");
        }
    }
}

#[test]
fn tables_that_lead_outside_read_zeros() {
    for shape in [sizes()[0], Shape { narrow: true, ..sizes()[1] }] {
        let Some(mut world) = world(shape, &[300, 40]) else { return };
        world.tables.fill(i32::MAX);
        assert!(world.whole().0.iter().all(|number| number.to_f32() == 0.0));
    }
}

#[test]
fn the_kernel_follows_from_the_device_and_the_heads() {
    let chunk = Chunk { row: 0, tokens: 1, start: 0, slot: 1 };
    let kernel = |dim: usize, narrow: bool, units: Units| -> Result<String, Misuse> {
        let (mut device, world) = (device(), World::new(Shape { dim, narrow, ..PLAIN }, &[40]));
        let device = device.as_mut();
        let queries = put(device, &world.shape.query(0, 0));
        let (cache, rule) = (world.cache(device), world.rule(device));
        let tiles = put(device, &tiles(&[chunk], PLAIN.group, dim));
        let job = Prompt { out: queries, queries, cache, rule, rows: 1, tiles };
        prompt_on(&job, units).map(|launch| launch.kernel().to_owned())
    };
    for (dim, narrow, units, name) in [
        (32, false, UNITS, "attention_prompt_32"),
        (64, false, UNITS, "attention_wgmma_64"),
        (64, false, Units::Warps, "attention_prompt_64"),
        (80, true, UNITS, "attention_wgmma_128_e4m3"),
        (112, false, UNITS, "attention_wgmma_128"),
        (256, true, UNITS, "attention_wgmma_256_e4m3"),
    ] {
        assert_eq!(kernel(dim, narrow, units).unwrap(), name);
    }
}
