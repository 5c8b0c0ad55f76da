"""Audits of models of which it is known whether their gradient can be trusted.

`benchmarks/audit.py` measures all of them over many seeds.
"""

from __future__ import annotations

import pytest
from audit_controls import CONTROLS, audited

from keras_qusec import datasets

# One way to mask gradients each, and what masks nothing; the others take longer.
SAMPLE = ("hard QuSecQuantization, white-box", "undefended")
ON_ONE_BACKEND = (
    "gradients of random sign", "gradient of half the image"
)  # fmt: skip


def marks(name):
    if name in SAMPLE:
        return []
    return [pytest.mark.once if name in ON_ONE_BACKEND else pytest.mark.slow]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks(name), id=name) for name in CONTROLS]
)
def test_control(name):
    control = CONTROLS[name]
    found = audited(control, datasets.mnist5k(), seed=0, images=50)
    if control.right:
        assert set(control.right) & set(found.failed), found.failed
        assert found.kind == "masked"
    else:
        assert found.failed == ()
