"""Contrast of patches (Park et al., ECCV 2020), also between misaligned pairs (Li et al., MICCAI 2023).

Shape suffixes: b = image, n = patch, c = feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patchnce(query_bnc: Tensor, key_bnc: Tensor, temperature: float = 0.07) -> Tensor:
    """Return how badly each patch finds its place among all patches of its image, (B, N), float32.

    Cross-entropy of cosine similarities: a query should resemble the key of its own place more than the keys of the
    other places. Keys get no gradient. The reference sets the query's own place to -10 among the negatives; here it is
    left out, which is the same to within exp(-10 / temperature).

    Args:
        query_bnc: features of the made image.
        key_bnc: features of the same places of the image that it is compared with.
        temperature: by which similarities are divided.

    >>> places = torch.eye(3)[None]
    >>> patchnce(places, places).max() < patchnce(places, places.roll(1, dims=1)).min()
    tensor(True)
    """
    query_bnc, key_bnc = _unit(query_bnc), _unit(key_bnc.detach())
    with torch.autocast(query_bnc.device.type, enabled=False):
        logits_bnn = query_bnc @ key_bnc.transpose(1, 2) / temperature
    return -logits_bnn.log_softmax(-1).diagonal(dim1=1, dim2=2)


def adaptive_weights(query_bnc: Tensor, key_bnc: Tensor, trust: float) -> Tensor:
    """Return weights of the patches of a pair that may be misaligned, (B, N), with mean 1 in each image.

    Where the made image does not resemble the real one, the pair is perhaps no pair there. The weight of such places
    falls with the trust in all pairs. The similarity counts as it is, or as 0 where it is negative (the linear weight
    of the paper).

    Args:
        query_bnc: features of the made image.
        key_bnc: features of the same places of its partner.
        trust: 1: all places count equally; 0: in proportion to their similarity.

    >>> made, real = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> adaptive_weights(made, real, trust=1.0).tolist(), adaptive_weights(made, real, trust=0.0).tolist()
    ([[1.0, 1.0]], [[2.0, 0.0]])
    """
    similarity_bn = (_unit(query_bnc.detach()) * _unit(key_bnc.detach())).sum(-1)
    weights_bn = trust + (1 - trust) * similarity_bn.relu()
    return weights_bn / weights_bn.mean(1, keepdim=True).clamp_min(torch.finfo(weights_bn.dtype).tiny)


def trust_in_pairs(epoch: int, n_epochs: int, n_epochs_decay: int) -> float:
    """Return the trust in misaligned pairs in an epoch: 1 at first, then falling linearly with the learning rate.

    Args:
        epoch: from 0.
        n_epochs: epochs with full trust.
        n_epochs_decay: epochs in which it falls to 0.

    >>> [trust_in_pairs(epoch, 2, 4) for epoch in (0, 2, 3, 5, 9)]
    [1.0, 1.0, 0.75, 0.25, 0.0]
    """
    return max(0.0, 1.0 - max(0, epoch - n_epochs) / max(1, n_epochs_decay))


def _unit(x_bnc: Tensor) -> Tensor:
    return F.normalize(x_bnc.float(), dim=-1, eps=1e-7)
