"""The loss of an adapter's update U when the merged weights W + U are rounded.

    python measurements/lora_rounding.py runs/lora/iter-3/policy

Its figures stand in docs/experiments.md under "LoRA". For each rounding it prints the relative error of the update, which
is the norm of (rounded update - U) over that of U; the projection of the rounded update on U, which is 1 if all of U
is kept and 0 if nothing is; and the mean absolute deviation of token log-probabilities from the unmerged adapter, in
nats. `base` is the deviation without any update.
"""

import argparse
from pathlib import Path

import torch

from sppo.policy import load as policies


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "float32":
        return weight.clone()
    if kind == "bfloat16":
        return weight.bfloat16().float()
    from bitsandbytes import functional

    return functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))


@torch.no_grad()
def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("adapter", type=Path)
    folder = arguments.parse_args().adapter
    base_folder = policies.base_folder(folder)
    ids = torch.randint(10, 200, (8, 64), generator=torch.Generator().manual_seed(0))
    print(
        f"{'weights':>10}{'error of the update':>22}{'along the update':>20}{'nats a token':>15}{'base':>10}"
    )
    for kind in ("float32", "bfloat16", "nf4"):
        base = policies.load(base_folder, dtype="float32", device="cpu")
        layers = dict(policies.load(folder, dtype="float32", device="cpu").named_modules())
        adapted = {
            name.removeprefix("base_model.model."): layer.get_delta_weight("default")
            for name, layer in layers.items()
            if hasattr(layer, "get_delta_weight") and hasattr(layer, "lora_A")
        }
        model = policies.load(base_folder, dtype="float32", device="cpu")
        lost = along = size = 0.0
        for name, update in adapted.items():
            start = rounded(base.get_submodule(name).weight, kind)
            base.get_submodule(name).weight.copy_(start)
            model.get_submodule(name).weight.copy_(start + update)
        expected = model(ids).logits.log_softmax(-1)
        for name, update in adapted.items():
            layer = model.get_submodule(name)
            layer.weight.copy_(rounded(layer.weight, kind))
            kept = layer.weight - base.get_submodule(name).weight
            lost += float((kept - update).square().sum())
            along += float((kept * update).sum())
            size += float(update.square().sum())
        apart = float((model(ids).logits.log_softmax(-1) - expected).abs().mean())
        nothing = float((base(ids).logits.log_softmax(-1) - expected).abs().mean())
        print(f"{kind:>10}{(lost / size) ** 0.5:>22.3g}{along / size:>20.3f}{apart:>15.3g}{nothing:>10.3g}")


if __name__ == "__main__":
    main()
