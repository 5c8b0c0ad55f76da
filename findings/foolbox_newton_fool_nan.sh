#!/usr/bin/env bash
# Foolbox 3.3.4: where a classifier is so sure that its softmax is 1 in float32, as trained networks
# often are, NewtonFoolAttack divides by a gradient of zero and returns images of NaN, which it
# counts as successes: an image without a class is not of its label's class. Success rates and
# robust accuracies from this attack are wrong then.
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
network = torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
)
with torch.no_grad():
    network[3].weight.mul_(200)  # sure of its classes, as after long training
model = foolbox.PyTorchModel(network.eval(), bounds=(0, 1))
x = torch.rand(60, 1, 8, 8)
labels = model(x).argmax(axis=1)
images, _, success = foolbox.attacks.NewtonFoolAttack()(model, x, labels, epsilons=None)
broken = torch.isnan(images).flatten(1).any(axis=1)
print(f"{int(broken.sum())} of {len(x)} images have NaN; {int((broken & success).sum())} of them "
      "count as successes")
assert int((broken & success).sum()) > 0
PYTHON
