"""The contrast of patches against the formulas of CUT and ASP, in plain NumPy and patch by patch."""

import numpy as np
import pytest
import torch

from ihc2he.losses.patchnce import adaptive_weights, patchnce, trust_in_pairs


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 2, 7, 5)).astype(np.float32)
    query[:, :4] = key[:, :4] + 0.3 * query[:, :4]  # some places that resemble each other
    return query, key


def unit(vector):
    return vector / np.sqrt((vector**2).sum())


def reference_nce(query, key, temperature):
    """-log(exp(v v+ / T) / (exp(v v+ / T) + sum of exp(v v- / T))), the own place at -10 among the negatives."""
    losses = np.zeros(query.shape[:2])
    for b, n in np.ndindex(losses.shape):
        v = unit(query[b, n])
        positive = v @ unit(key[b, n])
        negatives = [-10.0 if m == n else v @ unit(key[b, m]) for m in range(query.shape[1])]
        logits = np.array([positive, *negatives], np.float64) / temperature
        losses[b, n] = -np.log(np.exp(logits[0]) / np.exp(logits).sum())
    return losses


def reference_weights(query, key, trust):
    weights = np.zeros(query.shape[:2])
    for b, n in np.ndindex(weights.shape):
        weights[b, n] = trust * 1.0 + (1 - trust) * max(0.0, unit(query[b, n]) @ unit(key[b, n]))
    return weights / weights.sum(1, keepdims=True) * weights.shape[1]


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_patchnce_is_the_formula(pair, temperature):
    found = patchnce(*map(torch.from_numpy, pair), temperature)
    assert found.dtype == torch.float32
    tolerance = 2e-4 if temperature == 1 else 1e-5  # exp(-10 / temperature) is left out
    np.testing.assert_allclose(found, reference_nce(*pair, temperature), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("trust", [1.0, 0.75, 0.0])
def test_adaptive_weights_are_the_formula(pair, trust):
    found = adaptive_weights(*map(torch.from_numpy, pair), trust).numpy()
    np.testing.assert_allclose(found, reference_weights(*pair, trust), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.mean(1), 1, rtol=1e-5)
    if trust < 1:
        assert found[:, :4].mean() > 1 > found[:, 4:].mean()


def test_weights_of_a_pair_without_any_likeness_are_numbers():
    made, real = torch.ones(1, 3, 2), -torch.ones(1, 3, 2)
    assert adaptive_weights(made, real, trust=0.0).tolist() == [[0.0, 0.0, 0.0]]


def test_features_of_zero_have_a_gradient_that_is_a_number():
    query = torch.zeros(1, 4, 3, requires_grad=True)
    patchnce(query, torch.rand(1, 4, 3)).sum().backward()
    assert torch.isfinite(query.grad).all()


def test_keys_and_weights_have_no_gradient(pair):
    query, key = (torch.from_numpy(x).requires_grad_() for x in pair)
    patchnce(query, key).sum().backward()
    assert key.grad is None
    assert query.grad.abs().max() > 0
    assert not adaptive_weights(query, key, 0.5).requires_grad


def test_similarities_are_float32_under_autocast(pair):
    query, key = (torch.from_numpy(x).bfloat16() for x in pair)
    with torch.autocast("cpu", torch.bfloat16):
        loss, weights = patchnce(query, key), adaptive_weights(query, key, 0.5)
    assert torch.equal(loss, patchnce(query.float(), key.float()))
    assert torch.equal(weights, adaptive_weights(query.float(), key.float(), 0.5))


def test_trust_falls_with_the_epochs_of_the_decay():
    # ASP's "lambda" schedule: with t = (epoch - 1) / total counted from 1 and k = 1 - decay / total,
    # 1 below k and (1 - t) / (1 - k) from there.
    n_epochs, n_decay = 30, 10
    total = n_epochs + n_decay
    k = 1 - n_decay / total
    for epoch in range(1, total + 1):
        t = (epoch - 1) / total
        expected = (1 - t) / (1 - k) if t >= k else 1.0
        assert trust_in_pairs(epoch - 1, n_epochs, n_decay) == pytest.approx(expected)
    assert trust_in_pairs(5, 5, 0) == 1.0
    assert trust_in_pairs(6, 5, 0) == 0.0
