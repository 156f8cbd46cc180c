"""Random numbers of many worlds: their distribution; none depends on the other worlds or on what is drawn ahead."""

import copy
import pickle

import numpy as np
import pytest
from scipy import stats

from prefenv.noise import Words, bit_generator, normals, seeds, uniforms, unit_noise


def generators(n, seed=0):
    return [np.random.PCG64([seed, i]) for i in range(n)]


@pytest.mark.parametrize("kind", [uniforms, unit_noise, normals])
@pytest.mark.parametrize("ahead", [1, 3, 1000])
def test_a_world_gets_the_same_numbers_alone_and_in_company(kind, ahead):
    together = Words(generators(5), ahead)
    sizes = (3, 8, 1, 40, 8, 8)
    drawn = [kind(together, size) for size in sizes]
    for b, source in enumerate(generators(5)):
        alone = Words([source])
        for size, expected in zip(sizes, drawn, strict=True):
            np.testing.assert_array_equal(kind(alone, size)[0], expected[b])


def test_uniforms_are_those_of_the_generator():
    expected = np.random.default_rng(3).random(12)
    words = Words([np.random.PCG64(3)], ahead=4)
    np.testing.assert_array_equal(np.concatenate([uniforms(words, 5)[0], uniforms(words, 7)[0]]), expected)


def test_distributions():
    words = Words(generators(2))
    normal, unit, share = normals(words, 400_001), unit_noise(words, 400_001), uniforms(words, 400_001)
    assert normal.shape == unit.shape == share.shape == (2, 400_001)
    assert normal.dtype == unit.dtype == np.float32
    for row in normal:
        assert stats.kstest(row, "norm").pvalue > 1e-3
        assert abs((row**2).mean() - 1) < 0.01
    for row in unit:
        assert stats.kstest(row, stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(normal)[0, 1]) < 0.01
    halves = normal[0, :200_000], normal[0, 200_001:400_001]  # radius times cosine, and sine
    assert np.abs(np.corrcoef(*halves)[0, 1]) < 0.01
    assert np.abs(np.corrcoef(np.abs(halves[0]), np.abs(halves[1]))[0, 1]) < 0.01
    assert np.all(np.isfinite(normal))


def test_the_smallest_and_largest_words_make_finite_numbers():
    class Fixed:
        def __init__(self, word):
            self._word = word

        def random_raw(self, n):
            return np.full(n, self._word, dtype=np.uint64)

    for word in (0, 2**64 - 1):
        for kind in (normals, unit_noise, uniforms):
            assert np.all(np.isfinite(kind(Words([Fixed(word)]), 8)))
        assert 0 <= uniforms(Words([Fixed(word)]), 1)[0, 0] < 1
    low, high = (unit_noise(Words([Fixed(word)]), 1)[0, 0] for word in (0, 2**64 - 1))
    assert low == -high


def test_words_of_32_bits_are_refused():
    with pytest.raises(ValueError, match="32 bits"):
        Words([np.random.MT19937(0)])


def test_state_goes_round_with_words_drawn_ahead():
    words = Words(generators(3), ahead=5)
    uniforms(words, 4)
    state = copy.deepcopy(words.state_dict())
    expected = [uniforms(words, size) for size in (4, 4, 30)]
    other = Words(generators(3, seed=9), ahead=2)
    other.load_state_dict(state)
    for size, row in zip((4, 4, 30), expected, strict=True):
        np.testing.assert_array_equal(uniforms(other, size), row)
    again = Words(generators(3, seed=9))
    again.load_state_dict(state)  # a state is not used up
    np.testing.assert_array_equal(uniforms(again, 4), expected[0])


def test_new_generators_are_different_reproducible_and_picklable():
    parent = np.random.default_rng(7)
    first, second = ([bit_generator(row) for row in seeds(np.random.default_rng(7), 4)] for _ in range(2))
    numbers = [int(source.random_raw()) for source in first]
    assert len(set(numbers)) == 4
    assert numbers == [int(source.random_raw()) for source in second]
    twin = pickle.loads(pickle.dumps(first[0]))
    assert twin.random_raw() == first[0].random_raw()
    seeds(parent, 4)
    assert int(bit_generator(seeds(parent, 1)[0]).random_raw()) not in numbers
