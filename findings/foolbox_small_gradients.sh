#!/usr/bin/env bash
# Foolbox 3.3.4: attacks in L2 do not move along gradients below about 1e-12, and say nothing. The
# gradient is divided by its length, but by no less than 1e-12, so that a step that should have the
# length of epsilon becomes shorter with the gradient. A classifier behind a steep sigmoid has such
# gradients on black and white images. The same attack in L-infinity takes the sign, and works.
# Seen on 2026-11-29 with PyTorch 2.13.0 on a CPU; fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/pip" install --quiet foolbox==3.3.4
GIT_PYTHON_REFRESH=quiet "$folder/env/bin/python" - <<'PYTHON'
import foolbox
import torch

print("foolbox", foolbox.__version__, "torch", torch.__version__)
torch.manual_seed(0)
weights = torch.randn(20, 3)
x = (torch.rand(50, 20) > 0.5).float()


class Steep(torch.nn.Module):
    """A linear classifier behind a sigmoid of a steepness."""

    def __init__(self, steepness):
        super().__init__()
        self.steepness = steepness

    def forward(self, images):
        return torch.sigmoid(self.steepness * (images - 0.5)) @ weights


for steepness in (10.0, 80.0):
    model = foolbox.PyTorchModel(Steep(steepness).eval(), bounds=(0, 1))
    labels = model(x).argmax(axis=1)
    inputs = x.clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    size = float(inputs.grad.abs().max())
    moved = {}
    for attack in (foolbox.attacks.L2FastGradientAttack(), foolbox.attacks.LinfFastGradientAttack()):
        (images,), *_ = [attack(model, x, labels, epsilons=[0.6])[1]]
        moved[type(attack).__name__] = float((images - x).abs().max())
    print(f"steepness {steepness:g}: largest gradient {size:.1e}, largest change of a pixel {moved}")
assert 0 < size < 1e-12
assert moved["L2FastGradientAttack"] < 1e-3
assert moved["LinfFastGradientAttack"] > 0.5
PYTHON
