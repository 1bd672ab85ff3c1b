//! Attention over the paged cache against two passes in f64. What a row must not see is no number in the cache.

use super::world::{PLAIN, Shape, World, narrow, rules, shapes};
use super::{device, get, put, run, zeros};
use kernels::cuda::CacheNumbers;
use kernels::cuda::attention::{
    Cache, Chunk, Decode, Prompt, Rule, SPLIT, counters_len, decode, decode_bytes, first_seen, most_work, partials_len,
    prompt, prompt_bytes, prompt_operations, splits, splits_seen, tiles, work,
};

#[test]
fn decoding_is_close_to_the_specification() {
    for shape in shapes().into_iter().chain(narrow(shapes())) {
        World::new(shape, &[1, 17, 32, 270]).check_decode();
    }
}

#[test]
fn decoding_follows_rules() {
    for shape in rules().into_iter().chain(narrow(rules())) {
        let mut world = World::new(shape, &[1, 40, 256, 257, 512, 600]);
        for sequence in 0..world.lengths.len() {
            world.hide(sequence, 0..first_seen(world.lengths[sequence] - 1, shape.window));
        }
        world.check_decode();
    }
}

#[test]
fn a_decoded_row_is_the_same_in_any_company() {
    let windowed = Shape { window: Some(300), sinks: true, dim: 64, ..PLAIN };
    let short = &[800, 3, 256, 300, 17][..];
    // More splits than are added up together, and no multiple of that; seen from the first of them, and from another.
    let long = &[16 * SPLIT, 16 * SPLIT + 1, 33 * SPLIT - 3, 40][..];
    let far = Shape { window: Some(17 * SPLIT + 5), kv_heads: 1, group: 2, sinks: true, ..PLAIN };
    let whole = Shape { window: None, narrow: true, ..far };
    let all =
        [(PLAIN, short), (windowed, short), (Shape { narrow: true, ..windowed }, short), (far, long), (whole, long)];
    for (shape, lengths) in all {
        let world = World::new(shape, lengths);
        world.check_decode();
        let rows: Vec<(usize, i32)> = (0..lengths.len()).map(|i| (i, lengths[i] as i32 - 1)).collect();
        let together = world.decode(&rows, 2);
        let width = shape.heads() * shape.dim;
        for (row, together) in rows.iter().zip(together.chunks_exact(width)) {
            assert_eq!(together, world.decode(&[*row], 1), "alone");
            assert_eq!(together, &world.decode(&[(0, -1), *row, (1, 2)], 50)[width..2 * width], "in other company");
        }
    }
}

#[test]
fn prompts_are_close_to_the_specification() {
    for shape in shapes().into_iter().chain(narrow(shapes())) {
        World::new(shape, &[3, 70]).check_prompt();
    }
    for shape in rules().into_iter().chain(narrow(rules())) {
        World::new(shape, &[1, 150]).check_prompt();
    }
    World::new(Shape { kv_heads: 1, group: 1, dim: 16, ..PLAIN }, &[1100]).check_prompt();
}

#[test]
fn a_prompt_may_be_cut_anywhere() {
    let windowed = Shape { window: Some(50), sinks: true, ..PLAIN };
    let narrow = Shape { narrow: true, ..windowed };
    for shape in [PLAIN, windowed, Shape { kv_heads: 1, group: 2, dim: 256, ..windowed }, narrow] {
        World::new(shape, &[2, 150, 66]).check_cuts(&[1, 40, 7, 64, 33, 2]);
    }
}

#[test]
fn tables_that_lead_outside_read_zeros() {
    for shape in [PLAIN, Shape { narrow: true, ..PLAIN }] {
        let mut world = World::new(shape, &[300, 40]);
        world.tables.fill(i32::MAX);
        assert!(world.decode(&[(0, 299), (1, 39), (900, 5)], 3).iter().all(|number| number.to_f32() == 0.0));
        assert!(world.whole().0.iter().all(|number| number.to_f32() == 0.0));
    }
}

#[test]
fn kernels_and_hosts_agree_on_splits() {
    let positions: Vec<i32> = (0..40).map(|i| i * 37).chain([255, 256, 511, 512, 100_000]).collect();
    for window in [None, Some(1), Some(100), Some(256), Some(257), Some(5000)] {
        let mut device = device();
        let device = device.as_mut();
        let out = zeros(device, 4 * positions.len());
        let list = put(device, &positions);
        run(device, splits(out, list, window));
        let got: Vec<i32> = get(device, out);
        for (got, position) in got.chunks_exact(4).zip(&positions) {
            let position = *position as usize;
            let (first, seen) = (first_seen(position, window), splits_seen(position, window));
            let of_last = position + 1 - first.max((seen.end - 1) * SPLIT);
            assert_eq!(got, [first, seen.start, seen.end, of_last].map(|number| number as i32));
        }
    }
}

#[test]
fn work_lists_every_split_of_every_row() {
    assert!(work(&[]).is_empty());
    assert_eq!(work(&[0, -1, 255, 256, 600]), [0, 0, 1, 0, 2, 0, 3, 0, 3, 1, 4, 0, 4, 1, 4, 2]);
    let positions: Vec<i32> = (0..50).map(|i| i * i * 3).collect();
    let contexts = positions.iter().map(|position| *position as usize + 1).sum();
    assert!(work(&positions).len() / 2 <= most_work(positions.len(), contexts));
    assert_eq!(most_work(3, 3 * SPLIT - 1), 5);
    assert_eq!(partials_len(2, 3, 64), 396);
}

#[test]
fn tiles_cover_chunks_and_the_longest_contexts_come_first() {
    let chunks = [
        Chunk { row: 5, tokens: 40, start: 7, slot: 2 },
        Chunk { row: 45, tokens: 1, start: 300, slot: 9 },
        Chunk { row: 46, tokens: 0, start: 300, slot: 8 },
    ];
    // 128 rows of the product are 18 tokens of 7 query heads; 64 are 9.
    assert_eq!(tiles(&chunks, 7, 128), [45, 1, 300, 9, 41, 4, 43, 2, 23, 18, 25, 2, 5, 18, 7, 2]);
    assert_eq!(tiles(&chunks[..1], 7, 256).len(), 4 * 5);
    assert_eq!(tiles(&chunks[..1], 16, 64).len(), 4 * 5);
}

#[test]
fn bytes_and_operations_count_what_is_seen() {
    let world = World::new(Shape { window: Some(10), ..PLAIN }, &[40]);
    let mut device = device();
    let narrow = World { shape: Shape { narrow: true, ..PLAIN }, ..world.clone() }.cache(device.as_mut());
    let (cache, rule) = (world.cache(device.as_mut()), world.rule(device.as_mut()));
    assert_eq!(decode_bytes(&narrow, &rule, &[3, -1, 39]), 2 * 32 * (14 * 2 + 3 * 6 * 2));
    assert_eq!(decode_bytes(&cache, &rule, &[3, -1, 39]), 4 * 32 * (14 * 2 + 3 * 6));
    let chunk = [Chunk { row: 0, tokens: 2, start: 8, slot: 1 }];
    assert_eq!(prompt_operations(&cache, &rule, &chunk), 4 * (9 + 10) * 6 * 32);
    assert_eq!(prompt_bytes(&cache, &rule, &chunk), 4 * 32 * (10 * 2 + 2 * 6));
}

#[test]
fn what_cannot_be_is_refused() {
    let world = World::new(PLAIN, &[40]);
    let mut device = device();
    let device = device.as_mut();
    let (cache, rule) = (world.cache(device), world.rule(device));
    let queries = put(device, &PLAIN.query(0, 0));
    let good = Decode {
        out: queries,
        queries,
        cache,
        rule,
        rows: 1,
        slots: put(device, &[1]),
        positions: put(device, &[39]),
        work: put(device, &[0, 0]),
        work_len: put(device, &[1]),
        partials: zeros(device, partials_len(1, 6, 32)),
        counters: zeros(device, counters_len(1, 2)),
        processors: 1,
    };
    let refused = |job: Decode| decode(&job).unwrap_err().0;
    assert!(decode(&good).is_ok());
    assert!(refused(Decode { rows: 2, ..good }).contains("queries"));
    assert!(refused(Decode { rule: Rule { heads: 5, ..rule }, ..good }).contains("5 query heads over 2"));
    assert!(refused(Decode { rule: Rule { scale: f32::NAN, ..rule }, ..good }).contains("NaN"));
    assert!(refused(Decode { rule: Rule { window: Some(0), ..rule }, ..good }).contains("no positions"));
    assert!(refused(Decode { cache: Cache { head_dim: 36, ..cache }, ..good }).contains("heads of 36"));
    let narrow = |scale: f32| {
        let numbers = good.cache.numbers.bytes().unwrap()[0].cast().unwrap();
        CacheNumbers::E4m3 { keys: numbers, values: numbers, key_scale: 1.0, value_scale: scale }
    };
    assert!(refused(Decode { cache: Cache { numbers: narrow(0.0), ..cache }, ..good }).contains("times 0"));
    let odd = Cache { numbers: narrow(1.0), head_dim: 8, ..cache };
    assert!(refused(Decode { cache: odd, ..good }).contains("heads of 8 numbers of eight bits"));
    assert!(refused(Decode { counters: good.counters.first(1).unwrap(), ..good }).contains("counters"));
    assert!(refused(Decode { partials: good.partials.first(9).unwrap(), ..good }).contains("partial"));
    let none = good.slots.first(0).unwrap();
    let job = Prompt { out: queries, queries, cache, rule, rows: 1, tiles: none };
    assert!(prompt(&job).unwrap_err().0.contains("0 tiles"));
}
