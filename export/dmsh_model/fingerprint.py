"""The fingerprint of a code space: a SHA-256 over weights, config and preprocessing.

Two networks with one fingerprint give equal codes for equal files. The preprocessing counts by its rules in words,
:func:`dmsh_serving.images.decode.decode_recipe`. What timm's code decides of a backbone, such as the epsilon of a
normalisation, is not in it: after an update of timm, ``dmsh-export parity`` of the file that serves shows a difference.
An integer network has all of it in its integers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from torch import Tensor

from dmsh_model.config import HashConfig
from dmsh_serving.images.decode import decode_recipe
from dmsh_serving.images.framing import Framing

__all__ = ["float_fingerprint", "integer_fingerprint"]

# What a code does not depend on: the training-only classifier, and counters of BN.
_NO_PART_OF_A_CODE = ("classifier.", "num_batches_tracked")
_TRAINING_ONLY_FIELDS = ("loss", "num_classes")
_FRAMING_FIELDS = ("crop", "interpolation", "decode_rule")  # the decoder's recipe has them


def float_fingerprint(config: HashConfig, taps: Sequence[int], weights: Mapping[str, Tensor]) -> str:
    """Return the fingerprint (hex) of a float network; ``weights`` is its state dict."""
    left_out = (*_TRAINING_ONLY_FIELDS, *_FRAMING_FIELDS)
    fields = {key: value for key, value in config.to_dict().items() if key not in left_out}
    fields["taps"] = list(taps)
    digest = hashlib.sha256(json.dumps([fields, decode_recipe(config.framing)], sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        if not any(part in name for part in _NO_PART_OF_A_CODE):
            digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def integer_fingerprint(integers: str, framing: Framing) -> str:
    """Return the fingerprint (hex) of an integer network from its :func:`dmsh_model.integer.network.canonical_hash`."""
    return hashlib.sha256(json.dumps([integers, decode_recipe(framing)]).encode()).hexdigest()
