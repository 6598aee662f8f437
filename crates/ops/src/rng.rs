//! Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011).
//!
//! A value depends only on (seed, stream, step, item, position), so the numbers are the same for any
//! number of workers and after resuming.

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Computes one Philox 4x32-10 block.
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(W0), k[1].wrapping_add(W1)];
        }
        let p0 = u64::from(M0) * u64::from(c[0]);
        let p1 = u64::from(M1) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
    }
    c
}

fn splitmix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// A seeded stream of random numbers, addressed by step and item.
///
/// ```
/// use stillhouse_ops::Rng;
/// let rng = Rng::new(7).stream("augment");
/// let first = rng.at(3, 41).uniform();
/// assert_eq!(first, rng.at(3, 41).uniform()); // same address, same number
/// assert_ne!(first, rng.at(3, 42).uniform());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rng {
    key: u64,
}

impl Rng {
    /// Creates the root stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { key: splitmix(seed) }
    }

    /// Derives the named child stream.
    #[must_use]
    pub fn stream(&self, name: &str) -> Self {
        Self { key: splitmix(self.key ^ fnv1a64(name.as_bytes())) }
    }

    /// Returns the generator at one address of the stream.
    pub fn at(&self, step: u64, item: u64) -> Draw {
        let key = splitmix(self.key ^ splitmix(step));
        Draw { key: [key as u32, (key >> 32) as u32], item, block: 0, buffer: [0; 4], used: 4 }
    }
}

/// Sequential generator at one address of an [`Rng`].
#[derive(Debug, Clone)]
pub struct Draw {
    key: [u32; 2],
    item: u64,
    block: u64,
    buffer: [u32; 4],
    used: usize,
}

impl Draw {
    /// Returns 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            let counter =
                [self.block as u32, (self.block >> 32) as u32, self.item as u32, (self.item >> 32) as u32];
            self.buffer = philox(counter, self.key);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    /// Returns 64 random bits, low half first.
    pub fn next_u64(&mut self) -> u64 {
        let low = u64::from(self.next_u32());
        low | (u64::from(self.next_u32()) << 32)
    }

    /// Samples uniformly from [0, 1) with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Samples uniformly from [low, high).
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Samples two independent standard normals (Box-Muller).
    pub fn normals(&mut self) -> [f64; 2] {
        let u = 1.0 - self.uniform(); // (0, 1]
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        let radius = (-2.0 * u.ln()).sqrt();
        [radius * cos, radius * sin]
    }

    /// Samples a standard normal (the first of [`Draw::normals`]).
    pub fn normal(&mut self) -> f64 {
        self.normals()[0]
    }

    /// Samples an unbiased integer below `n` (Lemire's rejection); 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Returns true with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_matches_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn addresses_are_independent_of_order() {
        let rng = Rng::new(1).stream("a");
        let forward: Vec<u32> = (0..8).map(|i| rng.at(2, i).next_u32()).collect();
        let backward: Vec<u32> = (0..8).rev().map(|i| rng.at(2, i).next_u32()).collect();
        assert!(forward.iter().eq(backward.iter().rev()));
        assert_ne!(rng.at(0, 0).next_u64(), Rng::new(1).stream("b").at(0, 0).next_u64());
        assert_ne!(rng.at(0, 0).next_u64(), rng.at(1, 0).next_u64());
    }

    #[test]
    fn samples_have_expected_moments_and_bounds() {
        let mut draw = Rng::new(5).at(0, 0);
        let n = 20_000;
        let (mut mean, mut var, mut counts) = (0.0, 0.0, [0usize; 7]);
        for _ in 0..n {
            let x = draw.normal();
            mean += x;
            var += x * x;
            counts[draw.below(7) as usize] += 1;
        }
        assert!((mean / n as f64).abs() < 0.03);
        assert!((var / n as f64 - 1.0).abs() < 0.05);
        assert!(counts.iter().all(|c| (*c as f64 - n as f64 / 7.0).abs() < 250.0), "{counts:?}");
        let mut items: Vec<usize> = (0..100).collect();
        draw.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
