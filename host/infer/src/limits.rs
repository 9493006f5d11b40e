#![allow(
    unsafe_code,
    reason = "calls kernels that need CPU features, after those were detected"
)]
//! What this machine could do at best: how fast memory is read, and how fast small integers are multiplied.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::memory::HugeSlice;
use crate::{Error, Result};

/// Bytes per second that `threads` threads read together from `bytes` bytes of memory in huge pages, front to back
/// and again and again: the best of a few tries within `time`.
pub(crate) fn read_rate(threads: usize, bytes: usize, time: Duration) -> Result<f64> {
    let len = (bytes / size_of::<f32>()).max(threads * 1024);
    let mut memory = HugeSlice::<f32>::zeroed(len)
        .map_err(|error| Error::Device(format!("no memory to measure reading: {error}")))?;
    // Pages that were never written are all one page of zeros.
    memory.as_mut_slice().fill(1.0);
    let share = len / threads;
    let parts: Vec<&[f32]> = memory.chunks_exact(share).take(threads).collect();
    let once = best(threads, time, |thread, passes| {
        for _ in 0..passes {
            black_box(sum_bits(black_box(parts[thread])));
        }
    });
    Ok((share * threads * size_of::<f32>()) as f64 / once)
}

/// Adds up words: the cheapest thing that reads them all.
fn sum_bits(values: &[f32]) -> u32 {
    let mut lanes = [0u32; 32];
    for chunk in values.as_chunks::<32>().0 {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(value.to_bits());
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

/// Multiplications and additions of 8-bit integers per second (each counts one), on `threads` threads, with all
/// operands in registers: the best of a few tries within `time`. Products are added up in 16 bits four at a time,
/// as 4-bit weights allow, and then in 32.
pub(crate) fn int8_rate(threads: usize, time: Duration) -> f64 {
    const ROUNDS: usize = 1000;
    let kernel = int8_kernel();
    let once = best(threads, time, |_, passes| {
        for _ in 0..passes {
            black_box((kernel.run)(black_box(ROUNDS)));
        }
    });
    (ROUNDS * kernel.operations * threads) as f64 / once
}

/// The shortest time in which all threads together do `work(thread, 1)` once: from tries of many passes each.
fn best(threads: usize, time: Duration, work: impl Fn(usize, usize) + Sync) -> f64 {
    let begin = Instant::now();
    work(0, 1);
    let once = begin.elapsed().max(Duration::from_nanos(100));
    let passes = (time.as_secs_f64() / 5.0 / once.as_secs_f64())
        .ceil()
        .max(1.0) as usize;
    let barrier = Barrier::new(threads);
    let one_try = || {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|thread| {
                    let (barrier, work) = (&barrier, &work);
                    scope.spawn(move || {
                        barrier.wait();
                        let begin = Instant::now();
                        work(thread, passes);
                        (begin, Instant::now())
                    })
                })
                .collect();
            let times: Vec<_> = workers.into_iter().filter_map(|w| w.join().ok()).collect();
            let begin = times.iter().map(|(begin, _)| *begin).min();
            let end = times.iter().map(|(_, end)| *end).max();
            begin.zip(end).map_or(f64::MAX, |(begin, end)| {
                (end - begin).as_secs_f64() / passes as f64
            })
        })
    };
    (0..5).map(|_| one_try()).fold(f64::MAX, f64::min)
}

/// A loop over registers.
struct Int8Kernel {
    run: fn(usize) -> i32,
    /// Multiplications and additions of a round.
    operations: usize,
}

fn int8_kernel() -> Int8Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512f") {
            return Int8Kernel {
                // SAFETY: the features were detected.
                run: |rounds| unsafe { vnni(rounds) },
                operations: 12 * 64 * 2,
            };
        }
        if is_x86_feature_detected!("avx2") {
            return Int8Kernel {
                // SAFETY: the feature was detected.
                run: |rounds| unsafe { avx2(rounds) },
                operations: 4 * 4 * 32 * 2,
            };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("dotprod") {
        return Int8Kernel {
            // SAFETY: the instruction was detected.
            run: |rounds| unsafe { dot_products(rounds) },
            operations: 16 * 16 * 2,
        };
    }
    Int8Kernel {
        run: plain,
        operations: 256 * 2,
    }
}

/// Four sums, each of four products of 32 bytes at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(rounds: usize) -> i32 {
    use std::arch::x86_64::*;
    let ones = _mm256_set1_epi16(1);
    let weights: [__m256i; 4] = std::array::from_fn(|i| _mm256_set1_epi8(i as i8 + 1));
    let step = black_box(_mm256_set1_epi8(3));
    let mut x = step;
    let mut sums = [_mm256_setzero_si256(); 4];
    for _ in 0..rounds {
        for sum in &mut sums {
            let mut words = _mm256_maddubs_epi16(weights[0], x);
            for weights in &weights[1..] {
                words = _mm256_add_epi16(words, _mm256_maddubs_epi16(*weights, x));
            }
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(words, ones));
            // Another operand each time, so that no product is computed once for all rounds.
            x = _mm256_add_epi8(x, step);
        }
    }
    let all = sums
        .into_iter()
        .reduce(|a, b| _mm256_add_epi32(a, b))
        .unwrap_or(ones);
    _mm_cvtsi128_si32(_mm256_castsi256_si128(all))
}

/// Twelve sums of products of 64 bytes at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni(rounds: usize) -> i32 {
    use std::arch::x86_64::*;
    let weights = black_box(_mm512_set1_epi8(3));
    let x = black_box(_mm512_set1_epi8(5));
    let mut sums = [_mm512_setzero_si512(); 12];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, weights, x);
        }
    }
    sums.into_iter()
        .map(|sum| _mm512_reduce_add_epi32(sum))
        .fold(0, i32::wrapping_add)
}

/// Sixteen sums of products of 16 bytes at a time.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn dot_products(rounds: usize) -> i32 {
    use std::arch::aarch64::*;
    let (weights, x) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
    let mut sums = [vdupq_n_s32(0); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: whoever calls this has detected the instruction, which touches only the registers named. In assembly,
            // because the intrinsic needs a newer compiler than the rest.
            unsafe {
                std::arch::asm!(
                    ".arch_extension dotprod",
                    "sdot {sum:v}.4s, {weights:v}.16b, {x:v}.16b",
                    sum = inout(vreg) *sum,
                    weights = in(vreg) weights,
                    x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
        }
    }
    sums.into_iter()
        .map(|sum| vaddvq_s32(sum))
        .fold(0, i32::wrapping_add)
}

/// What the compiler makes of it.
fn plain(rounds: usize) -> i32 {
    let (weights, x) = (black_box([3i8; 256]), black_box([5i8; 256]));
    let mut sums = [0i32; 256];
    for _ in 0..rounds {
        for ((sum, weight), x) in sums.iter_mut().zip(&weights).zip(&x) {
            *sum = sum.wrapping_add(i32::from(*weight) * i32::from(*x));
        }
    }
    sums.into_iter().fold(0, i32::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_are_measured_and_all_kernels_run() {
        let time = Duration::from_millis(20);
        assert!(read_rate(2, 1 << 22, time).unwrap() > 0.0);
        assert!(int8_rate(2, time) > 0.0);
        assert_eq!(plain(2), 2 * 256 * 15);
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            // SAFETY: the instruction was detected.
            assert_eq!(unsafe { dot_products(2) }, 2 * 256 * 15);
        }
        assert_eq!(sum_bits(&[f32::from_bits(2); 64]), 128);
    }
}
