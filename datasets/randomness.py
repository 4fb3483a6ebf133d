"""Random numbers as pure functions of the position where they are used.

No generator carries state here. The augmentation of a sample depends on (seed, epoch, sample, view) and on nothing
else, and the order of samples on (seed, epoch), so any worker, rank or resumed run computes the same values, in any
order. The price is a hash per number, about 20 ns, vectorised over a batch.

The hash is the finaliser of MurmurHash3 (64 bit, as in SplitMix64), chained over its inputs. It is not
cryptographic; it passes as independent uniform noise for shuffling and augmentation (tests/loading/test_randomness.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xFF51AFD7ED558CCD)
_MULTIPLIER_2 = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)
_FEISTEL_ROUNDS = 6


def mix(words: UInt64) -> UInt64:
    """A bijection of 64-bit words in which each input bit changes about half of the output bits."""
    return _mix_in_place(words.copy())


def _mix_in_place(words: UInt64) -> UInt64:
    """`mix`, with one array of scratch: what it costs is memory, not arithmetic."""
    scratch = words >> _SHIFT
    words ^= scratch
    words *= _MULTIPLIER_1
    words ^= np.right_shift(words, _SHIFT, out=scratch)
    words *= _MULTIPLIER_2
    words ^= np.right_shift(words, _SHIFT, out=scratch)
    return words


def hash_key(*parts: int) -> UInt64:
    """One word, of shape `(1,)`, from any number of integers: `mix` of one after another, in Python's integers."""
    word = 0
    for part in parts:
        word = (word * int(_GOLDEN) + part + int(_GOLDEN)) % 2**64
        word = ((word ^ (word >> 33)) * int(_MULTIPLIER_1)) % 2**64
        word = ((word ^ (word >> 33)) * int(_MULTIPLIER_2)) % 2**64
        word ^= word >> 33
    return np.array([word], np.uint64)


def stream(seed: int, purpose: str) -> int:
    """A seed for one purpose: what is drawn for another purpose under the same `seed` is independent of it."""
    return int(hash_key(seed, *purpose.encode())[0])


def uniforms(seed: int, epoch: int, samples: NDArray[np.int64], view: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) for the augmentation of some samples.

    Args:
        samples: Sample numbers, shape `(n,)`. Which of them are asked for together does not matter.
        view: Number of the view, so that the views of a sample differ.
        count: How many numbers each sample needs.

    Returns:
        Shape `(n, count)`, 53 random bits each.
    """
    per_sample = mix(hash_key(seed, epoch, view) + samples.astype(np.uint64) * _GOLDEN)
    counters = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    words = _mix_in_place(_mix_in_place(per_sample[:, None] + counters[None, :]))
    words >>= np.uint64(11)
    numbers = words.astype(np.float64)
    numbers *= 2.0**-53
    return numbers


class Permutation:
    """A random permutation of `range(size)` that is computed where it is asked for, never stored.

    A Feistel network on the smallest even number of bits that holds `size`; values outside the range are sent
    through again until they fall inside (cycle walking, at most four rounds on average). Memory is that of the
    positions asked for: seeking to any place in an epoch of a billion samples costs the same.

    Args:
        size: Number of elements, at least 1.
        key: Integers that choose the permutation, such as (seed, epoch).
    """

    def __init__(self, size: int, *key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, not {size}")
        self.size = size
        self.half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self.round_keys = [hash_key(*key, number) for number in range(_FEISTEL_ROUNDS)]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The elements at `positions` (shape `(n,)`, each in `range(size)`)."""
        if len(positions) and not (0 <= positions.min() and positions.max() < self.size):
            raise IndexError(f"positions must lie in [0, {self.size})")
        words = self._network(positions.astype(np.uint64))
        outside = words >= self.size
        while outside.any():
            words[outside] = self._network(words[outside])
            outside = words >= self.size
        return words.astype(np.int64)

    def _network(self, words: UInt64) -> UInt64:
        mask = (np.uint64(1) << self.half_bits) - np.uint64(1)
        left, right = words >> self.half_bits, words & mask
        for key in self.round_keys:
            left, right = right, left ^ (_mix_in_place(right + key) & mask)
        return (left << self.half_bits) | right
