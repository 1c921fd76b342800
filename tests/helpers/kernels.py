"""Which tests need the CPU kernels: without a C++ compiler, say, there is nothing to test."""

import pytest

from kdnet_jax.models import layers
from kdnet_jax.models.kernels import build

needs_onednn = pytest.mark.skipif(
    bool(build.reason_against()), reason=build.reason_against() or "at hand"
)
needs_bfloat16 = pytest.mark.skipif(
    not build.has_bfloat16(), reason="needs oneDNN, and a processor that has bfloat16"
)
# Each form that one can ask for, for `parametrize`.
FORMS = [
    pytest.param(form, marks=needs_onednn if form == "onednn" else ()) for form in layers.FORMS
]
