//! The pool of key-value blocks: who holds which, which are free, and which free ones still hold a known prefix.
//!
//! Bookkeeping only. The memory of the blocks is the executor's; that a table is long enough is the scheduler's.
//!
//! ```text
//! free list   [least recently used ......... most recently used]
//!              no hash: taken first          cached: found by hash, taken out of the middle in O(1)
//! ```
//! A cached block keeps its hash while it is free, and loses it only when it is given out again. The blocks of a table
//! are given back last one first, so that the beginning of a prefix, which most requests share, survives longest.

use siphasher::sip128::{Hasher128, SipHasher24};
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// Positions of a block where models are served: those that the kernels of GPUs know. A pool takes any number.
pub const BLOCK: u32 = 32;

/// What a cached prefix belongs to, besides its tokens: two requests share blocks only if their salts are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salt(pub u128);

/// The secret under which prefixes are hashed. Random for each process, so that nobody outside can construct a
/// collision, or tell from a hash what was asked.
#[derive(Clone, Copy)]
pub struct PrefixKey([u8; 16]);

impl fmt::Debug for PrefixKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrefixKey(..)")
    }
}

impl PrefixKey {
    /// A key of 16 random bytes.
    pub fn new(key: [u8; 16]) -> Self {
        PrefixKey(key)
    }

    /// The salt of a domain: model, adapter, tenant, and whatever else must not be shared across.
    pub fn salt(&self, fields: &[&[u8]]) -> Salt {
        let mut hasher = self.hasher("domain");
        hasher.write(&(fields.len() as u64).to_le_bytes());
        for field in fields {
            write_field(&mut hasher, field);
        }
        Salt(hasher.finish128().as_u128())
    }

    /// The salt of one group's own blocks, shared with no other.
    pub(super) fn private(&self, group: u64) -> Salt {
        let mut hasher = self.hasher("group");
        hasher.write(&group.to_le_bytes());
        Salt(hasher.finish128().as_u128())
    }

    /// The hash of a full block: what came before it, and its tokens.
    pub fn block(&self, salt: Salt, parent: Option<u128>, tokens: &[u32]) -> u128 {
        let mut hasher = self.hasher("block");
        hasher.write(&salt.0.to_le_bytes());
        hasher.write(&[u8::from(parent.is_some())]);
        hasher.write(&parent.unwrap_or(0).to_le_bytes());
        hasher.write(&(tokens.len() as u64).to_le_bytes());
        // Many tokens at a time: the hasher is slow at writes shorter than its own words.
        let mut bytes = [0; 256];
        for part in tokens.chunks(bytes.len() / 4) {
            for (place, token) in bytes.chunks_exact_mut(4).zip(part) {
                place.copy_from_slice(&token.to_le_bytes());
            }
            hasher.write(&bytes[..part.len() * 4]);
        }
        hasher.finish128().as_u128()
    }

    /// The tag comes first, so that hashes of different things never meet.
    fn hasher(&self, tag: &str) -> SipHasher24 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        write_field(&mut hasher, tag.as_bytes());
        hasher
    }
}

/// The length comes first, so that no two lists of fields are the same bytes.
fn write_field(hasher: &mut SipHasher24, field: &[u8]) {
    hasher.write(&(field.len() as u64).to_le_bytes());
    hasher.write(field);
}

/// Keys that are keyed hashes already are not hashed again.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

#[derive(Clone, Copy, Debug)]
struct Block {
    /// Tables that it is in.
    references: u32,
    /// Set exactly while `cached` finds this block by it.
    hash: Option<u128>,
    /// Neighbours in the free list, while it is free.
    previous: u32,
    next: u32,
}

/// What a prefix lookup found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// Leading blocks that are cached.
    pub blocks: u32,
    /// Those among them that no table holds: taking them takes from the free ones.
    pub idle: u32,
}

/// Running totals of the prefix cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Tokens that were looked for.
    pub queries: u64,
    /// Tokens of those that were found.
    pub hits: u64,
    /// Cached blocks that were given out for other contents.
    pub evictions: u64,
}

/// The blocks of one executor.
pub struct BlockPool {
    key: PrefixKey,
    block_size: u32,
    /// All blocks, and behind them the one that the free list, a ring, begins and ends with.
    blocks: Vec<Block>,
    free: u32,
    cached: HashMap<u128, u32, BuildHasherDefault<AsIs>>,
    stale: Vec<u32>,
    statistics: Statistics,
}

impl fmt::Debug for BlockPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockPool({} of {} free, {} cached)", self.free, self.total(), self.cached.len())
    }
}

impl BlockPool {
    /// A pool of `total` blocks of `block_size` tokens each.
    ///
    /// # Panics
    /// Where `block_size` is 0, or `total` is `u32::MAX`.
    pub fn new(total: u32, block_size: u32, key: PrefixKey) -> Self {
        assert!(block_size > 0 && total < u32::MAX, "{total} blocks of {block_size} tokens");
        let ring = total + 1;
        let link = |i: u32| Block { references: 0, hash: None, previous: (i + total) % ring, next: (i + 1) % ring };
        let blocks = (0..ring).map(link).collect();
        let (cached, stale, statistics) = Default::default();
        BlockPool { key, block_size, blocks, free: total, cached, stale, statistics }
    }

    /// Tokens of one block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// All blocks.
    pub fn total(&self) -> u32 {
        self.ring_end()
    }

    /// Blocks in no table, cached ones included.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Blocks that hold so many tokens.
    pub fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size)
    }

    /// The key that prefixes are hashed with.
    pub fn key(&self) -> &PrefixKey {
        &self.key
    }

    /// Running totals.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// How much of a prefix is there: the leading blocks of it that are cached. Changes nothing.
    pub fn lookup(&self, hashes: &[u128]) -> Hit {
        let mut hit = Hit::default();
        for block in hashes.iter().map_while(|hash| self.cached.get(hash)) {
            hit.blocks += 1;
            hit.idle += u32::from(self.blocks[*block as usize].references == 0);
        }
        hit
    }

    /// Takes the leading blocks of a prefix that are cached. `queried` is the tokens that were looked for: 0 where somebody
    /// takes up again what was counted before, and nothing counts.
    pub fn acquire(&mut self, hashes: &[u128], queried: u32) -> Vec<u32> {
        let found: Vec<u32> = hashes.iter().map_while(|hash| self.cached.get(hash).copied()).collect();
        for &block in &found {
            if self.blocks[block as usize].references == 0 {
                self.unlink(block);
            }
            self.blocks[block as usize].references += 1;
        }
        if queried > 0 {
            self.statistics.queries += u64::from(queried);
            self.statistics.hits += found.len() as u64 * u64::from(self.block_size);
        }
        found
    }

    /// Gives out the block that is worth least; what it held is forgotten. `None` where none is free.
    pub fn allocate(&mut self) -> Option<u32> {
        let block = self.blocks[self.ring_end() as usize].next;
        if block == self.ring_end() {
            return None;
        }
        self.unlink(block);
        let entry = &mut self.blocks[block as usize];
        entry.references = 1;
        if let Some(hash) = entry.hash.take() {
            self.cached.remove(&hash);
            self.statistics.evictions += 1;
        }
        self.stale.push(block);
        Some(block)
    }

    /// Makes a block that somebody holds findable. Where another block of the same contents is, that one stays: tables
    /// are never rewritten.
    pub fn publish(&mut self, block: u32, hash: u128) {
        let entry = &mut self.blocks[block as usize];
        if entry.hash.is_none() && !self.cached.contains_key(&hash) {
            entry.hash = Some(hash);
            self.cached.insert(hash, block);
        }
    }

    /// Takes back a table, the last block first.
    pub fn release(&mut self, table: &[u32]) {
        for &block in table.iter().rev() {
            let entry = &mut self.blocks[block as usize];
            entry.references -= 1;
            match (entry.references, entry.hash) {
                (0, Some(_)) => self.link_before(self.ring_end(), block),
                // Nobody can find it: the first to be given out.
                (0, None) => {
                    self.link_before(self.blocks[self.ring_end() as usize].next, block);
                    self.stale.push(block);
                }
                _ => {}
            }
        }
    }

    /// The blocks whose contents came to mean nothing since the last call: given out anew, or given back unfindable.
    /// Ascending.
    pub fn take_stale(&mut self) -> Vec<u32> {
        self.stale.sort_unstable();
        self.stale.dedup();
        std::mem::take(&mut self.stale)
    }

    /// Is all in order, `tables` being all tables there are? For tests, and for idle moments.
    ///
    /// # Errors
    /// Says what is not.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) -> Result<(), String> {
        let mut held = vec![0; self.total() as usize];
        for &block in tables.flatten() {
            *held.get_mut(block as usize).ok_or_else(|| format!("a table holds block {block}, which is not"))? += 1;
        }
        for (block, &held) in held.iter().enumerate() {
            let entry = &self.blocks[block];
            if entry.references != held {
                return Err(format!("block {block} counts {} references; {held} tables hold it", entry.references));
            }
            if entry.hash.is_some_and(|hash| self.cached.get(&hash) != Some(&(block as u32))) {
                return Err(format!("block {block} has a hash by which it is not found"));
            }
        }
        if self.blocks.iter().filter(|block| block.hash.is_some()).count() != self.cached.len() {
            return Err("a hash finds a block that has another".into());
        }
        self.check_free_list()
    }

    fn check_free_list(&self) -> Result<(), String> {
        let (mut at, mut length) = (self.ring_end(), 0);
        loop {
            let next = self.blocks[at as usize].next;
            if self.blocks[next as usize].previous != at {
                return Err(format!("free block {next} does not link back to {at}"));
            }
            if next == self.ring_end() {
                break;
            }
            length += 1;
            if self.blocks[next as usize].references > 0 || length > self.free {
                return Err(format!("block {next} is in the free list, and held or there twice"));
            }
            at = next;
        }
        let idle = self.blocks[..self.total() as usize].iter().filter(|block| block.references == 0).count();
        match length == self.free && idle == self.free as usize {
            true => Ok(()),
            false => Err(format!("{} blocks count as free, {length} are listed, {idle} are idle", self.free)),
        }
    }

    fn ring_end(&self) -> u32 {
        self.blocks.len() as u32 - 1
    }

    fn unlink(&mut self, block: u32) {
        let Block { previous, next, .. } = self.blocks[block as usize];
        self.blocks[previous as usize].next = next;
        self.blocks[next as usize].previous = previous;
        self.free -= 1;
    }

    fn link_before(&mut self, next: u32, block: u32) {
        let previous = self.blocks[next as usize].previous;
        self.blocks[previous as usize].next = block;
        self.blocks[next as usize].previous = block;
        let entry = &mut self.blocks[block as usize];
        (entry.previous, entry.next) = (previous, next);
        self.free += 1;
    }
}
