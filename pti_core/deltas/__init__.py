"""Weight deltas and noise maps as bytes (see docs/deltas.md).

`payloads` has the bytes and their limits, `symbols` integers, `plain` and `layered` the codecs, `flat` and `together`
what a GPU does for many tensors at once, `table` the rows of the deltas table, `noise` the noise maps, `fitting` the
search for the smallest delta that draws as well as the tuned generator.
"""

from pti_core.deltas.fitting import Promise, fit
from pti_core.deltas.noise import decode_noise, encode_noise
from pti_core.deltas.payloads import DeltaError, NotFiniteError
from pti_core.deltas.table import CODECS, EncodedTensor, apply, decode, encode, shapes_of

__all__ = [
    "CODECS",
    "DeltaError",
    "EncodedTensor",
    "NotFiniteError",
    "Promise",
    "apply",
    "decode",
    "decode_noise",
    "encode",
    "encode_noise",
    "fit",
    "shapes_of",
]
