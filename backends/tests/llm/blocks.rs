//! The block pool: what is given out when, what is found, and what hashes tell apart.

use backends::llm::blocks::{BlockPool, Hit, PrefixKey, Salt, Statistics};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashSet;

fn key() -> PrefixKey {
    PrefixKey::new(*b"0123456789abcdef")
}

/// A pool all of whose blocks are cached and free, block `i` under hash `i`, the first least recently used.
fn cached(blocks: u32) -> BlockPool {
    let mut pool = BlockPool::new(blocks, 4, key());
    for hash in 0..blocks {
        let block = pool.allocate().unwrap();
        pool.publish(block, hash.into());
    }
    for block in 0..blocks {
        pool.release(&[block]);
    }
    pool
}

fn all(pool: &mut BlockPool) -> Vec<u32> {
    std::iter::from_fn(|| pool.allocate()).collect()
}

#[test]
fn the_least_recently_used_goes_first_and_of_a_table_the_last_block() {
    let mut pool = BlockPool::new(6, 4, key());
    let (old, new) = ([0, 1, 2].map(|_| pool.allocate().unwrap()), [3, 4].map(|_| pool.allocate().unwrap()));
    (0..5).for_each(|block| pool.publish(block, block.into()));
    pool.release(&old);
    pool.release(&new);
    // Block 5 was never used.
    assert_eq!(all(&mut pool), [5, 2, 1, 0, 4, 3]);
    assert_eq!(pool.allocate(), None);
    assert_eq!(pool.statistics().evictions, 5);
}

#[test]
fn what_nobody_can_find_goes_before_what_somebody_might() {
    let mut pool = cached(3);
    let table = pool.acquire(&[1], 4);
    assert_eq!((table.as_slice(), pool.allocate()), ([1].as_slice(), Some(0)));
    pool.release(&[0]);
    pool.release(&[1]);
    assert_eq!(all(&mut pool), [0, 2, 1]);
}

#[test]
fn a_hit_takes_a_block_out_of_the_middle_of_the_free_ones() {
    let mut pool = cached(4);
    assert_eq!(pool.lookup(&[2, 1, 9, 0]), Hit { blocks: 2, idle: 2 });
    assert_eq!(pool.acquire(&[2, 1, 9, 0], 20), [2, 1]);
    assert_eq!((pool.free(), pool.lookup(&[2, 3])), (2, Hit { blocks: 2, idle: 1 }));
    // Again by somebody else: shared.
    assert_eq!(pool.acquire(&[2], 4), [2]);
    pool.check([[2, 1].as_slice(), &[2]].into_iter()).unwrap();
    assert_eq!(pool.statistics(), Statistics { queries: 24, hits: 12, evictions: 0 });
    pool.release(&[2, 1]);
    assert_eq!(pool.free(), 3, "one of them has another holder");
    assert_eq!(all(&mut pool), [0, 3, 1]);
    assert_eq!(pool.lookup(&[1]).blocks, 0, "its hash went when it was given out");
    assert_eq!(pool.lookup(&[2]).blocks, 1);
}

#[test]
fn of_two_equal_blocks_the_first_is_found() {
    let mut pool = BlockPool::new(2, 4, key());
    let table = all(&mut pool);
    pool.publish(0, 7);
    pool.publish(1, 7);
    assert_eq!(pool.acquire(&[7], 4), [0]);
    pool.check([table.as_slice(), &[0]].into_iter()).unwrap();
    pool.release(&table);
    assert_eq!(pool.take_stale(), [0, 1], "the second is worth nothing");
    assert_eq!(pool.lookup(&[7]).blocks, 1);
}

#[test]
fn stale_blocks_are_told_once() {
    let mut pool = cached(3);
    assert_eq!(pool.take_stale(), [0, 1, 2]);
    pool.acquire(&[2], 4);
    assert_eq!(pool.take_stale(), [0u32; 0], "what is found means something");
    pool.allocate();
    pool.release(&[0]);
    assert_eq!(pool.take_stale(), [0]);
    pool.release(&[2]);
    assert_eq!(pool.take_stale(), [0u32; 0]);
}

#[test]
fn the_check_finds_what_is_wrong() {
    let mut pool = BlockPool::new(3, 4, key());
    let table = [pool.allocate().unwrap(), pool.allocate().unwrap()];
    pool.check(std::iter::once(table.as_slice())).unwrap();
    let complaints = [
        (vec![], "block 0 counts 1 references; 0 tables hold it"),
        (vec![0, 1, 1], "block 1 counts 1 references; 2 tables hold it"),
        (vec![0, 1, 2], "block 2 counts 0 references; 1 tables hold it"),
        (vec![0, 1, 3], "a table holds block 3, which is not"),
    ];
    for (table, complaint) in complaints {
        assert_eq!(pool.check(std::iter::once(table.as_slice())), Err(complaint.into()));
    }
}

#[test]
fn hashes_tell_all_that_matters_apart() {
    let (key, salt) = (key(), Salt(1));
    let other_key = PrefixKey::new([0; 16]);
    let tokens: Vec<u32> = (0..200).collect();
    let parent = key.block(salt, None, &tokens);
    let mut hashes = vec![
        parent,
        other_key.block(salt, None, &tokens),
        key.block(Salt(2), None, &tokens),
        key.block(salt, Some(0), &tokens),
        key.block(salt, Some(parent), &tokens),
        key.block(salt, None, &tokens[..199]),
        key.block(salt, None, &[0]),
        key.block(salt, None, &[]),
        key.block(salt, None, &[0, 0]),
        key.salt(&[]).0,
        key.salt(&[b""]).0,
        key.salt(&[b"", b""]).0,
        key.salt(&[b"model", b"lora"]).0,
        key.salt(&[b"modell", b"ora"]).0,
        key.salt(&[b"modellora"]).0,
        key.salt(&[b"lora", b"model"]).0,
    ];
    for at in 0..tokens.len() {
        let mut changed = tokens.clone();
        changed[at] ^= 1 << 31;
        hashes.push(key.block(salt, None, &changed));
    }
    assert_eq!(hashes.iter().collect::<HashSet<_>>().len(), hashes.len());
    assert_eq!(parent, key.block(salt, None, &tokens));
    assert_eq!(format!("{key:?}"), "PrefixKey(..)", "the key is not to be read in logs");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Tables that grow, end, and share what they find, against the naive account of them.
    #[test]
    fn any_use_keeps_the_books(total in 1..12_u32, actions in vec((0..4_u8, 0..16_u8, 0..6_u128), 0..120)) {
        let mut pool = BlockPool::new(total, 4, key());
        let mut tables: Vec<Vec<u32>> = Vec::new();
        for (what, which, hash) in actions {
            let at = usize::from(which) % tables.len().max(1);
            match what {
                0 => tables.push(pool.allocate().into_iter().collect()),
                1 => tables.push(pool.acquire(&[hash, hash + 1], 8)),
                2 if !tables.is_empty() => pool.release(&tables.swap_remove(at)),
                _ => if let Some(&block) = tables.get(at).and_then(|table| table.last()) {
                    pool.publish(block, hash);
                },
            }
            pool.check(tables.iter().map(Vec::as_slice)).unwrap();
            let held: HashSet<u32> = tables.iter().flatten().copied().collect();
            prop_assert_eq!(pool.free() + held.len() as u32, total);
        }
    }
}
