"""Types of numpy arrays, one name for each."""

import numpy as np
from numpy.typing import NDArray

UInt8Image = NDArray[np.uint8]
"""(H, W, 3) RGB, unless stated otherwise."""
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
