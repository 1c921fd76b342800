"""The two heads of the glioma's task."""

import pytest

from kdnet_jax import task as task_lib
from kdnet_jax.models import heads

SOFTMAX, REGIONS = (heads.Head(task_lib.GLIOMA, kind) for kind in ("softmax", "regions"))
each_head = pytest.mark.parametrize("head", [SOFTMAX, REGIONS], ids=lambda head: head.kind)
