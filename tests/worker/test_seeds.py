"""The keyed streams: their definition, and that a generator carries all of it along."""

import pickle
from hashlib import blake2b

import numpy as np
import pytest

from fedlearn.seeds import generator, torch_seed


def test_a_stream_is_philox_under_the_blake2b_key_of_its_name():
    number = int.from_bytes(blake2b(b"7/local/3/12", digest_size=16).digest(), "little")
    rng, same = generator(7, "local", 3, 12), np.random.Generator(np.random.Philox(key=number))
    assert np.array_equal(rng.permutation(1000), same.permutation(1000))
    assert np.array_equal(rng.standard_normal(1000), same.standard_normal(1000))
    assert torch_seed(7, "local", 3, 12) == number % 2**63


def test_two_generators_of_a_stream_share_nothing_and_one_survives_pickling():
    rng, other = generator(0, "local"), generator(0, "local")
    first = rng.random(5)
    assert np.array_equal(other.random(5), first)
    assert np.array_equal(pickle.loads(pickle.dumps(rng)).random(5), other.random(5))


def test_a_stream_cannot_spawn_others_which_would_have_no_key():
    with pytest.raises(TypeError):
        generator(0, "local").spawn(1)
