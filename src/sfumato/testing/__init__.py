"""For the tests of this library and of extensions of it: exact denoisers and conformance checks."""

from sfumato.testing.conformance import (
    PROCESSES,
    check_codec,
    check_ends,
    check_mixed_times,
    check_network,
    check_order,
    check_solver,
    measured_order,
)
from sfumato.testing.denoisers import GaussianDenoiser, MixtureDenoiser

__all__ = [
    "PROCESSES", "GaussianDenoiser", "MixtureDenoiser", "check_codec", "check_ends", "check_mixed_times", "check_network",
    "check_order", "check_solver", "measured_order",
]  # fmt: skip
