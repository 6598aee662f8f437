"""Generates golden.json: features of timm's models in f64, with parameters from the generator of
tests/golden/models/README.md. It contains no pretrained weights.

    pip install timm==1.0.31 numpy; python make.py > golden.json
"""

import json

import numpy as np
import timm
import torch

MASK = (1 << 64) - 1
SAMPLES = 40


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def stream(name, n):
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a64(name)) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def values(name, shape):
    """Rules of the generator. The test has the same rules for names that the generator does not cover."""
    n = int(np.prod(shape))
    if name.endswith("gamma"):
        name += ".weight"
    elif name in ("cls_token", "pos_embed"):
        name += ".relative_position_bias_table"
    u = stream(name, n)
    s = 2.0 * u - 1.0
    if name.endswith("running_mean"):
        v = 0.1 * s
    elif name.endswith("running_var"):
        v = 0.5 + u
    elif name.endswith("relative_position_bias_table"):
        v = 0.5 * s
    elif len(shape) >= 2:
        v = s * np.sqrt(3.0 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        v = 0.5 + u
    else:
        assert name.endswith("bias"), name
        v = 0.1 * s
    return torch.from_numpy(v.astype(np.float32)).double().reshape(shape)


def described(tensor):
    flat = tensor.flatten()
    m = min(SAMPLES, len(flat))
    indices = [(2 * k + 1) * len(flat) // (2 * m) for k in range(m)]
    return {
        "shape": list(tensor.shape),
        "absmax": float(f"{flat.abs().max():.12g}"),
        "values": [float(f"{flat[i]:.12g}") for i in indices],
    }


def macs(arch, size, options={}, classes=5):
    """Multiply-accumulates of convolutions and linear layers for one image."""
    total = 0

    def count(layer, _, out):
        nonlocal total
        positions = out.numel() // layer.weight.shape[0]
        total += layer.weight.numel() * positions

    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=classes, **options).eval()
        for layer in model.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.register_forward_hook(count)
        model(torch.empty(1, 3, size, size))
    return total


def case(arch, size, options={}):
    model = timm.create_model(arch, num_classes=5, **options).double().eval()
    names = []
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(values(name, tuple(value.shape)))
                names.append(f"{name} {list(value.shape)}")
    u = stream("input.eval", 2 * 3 * size * size)
    images = (2.0 * (2.0 * u - 1.0)).astype(np.float32)
    images = torch.from_numpy(images).double().reshape(2, 3, size, size)
    with torch.no_grad():
        features = model.forward_features(images)
        taps = {"logits": model(images), "embedding": model.forward_head(features, pre_logits=True)}
        if arch.startswith("vit_"):
            taps["pooled"] = features[:, 1:].mean(1)
            depth = len(model.blocks)
            maps = range(1, 5) if "dinov2" in arch else [4]
            at = [i * depth // 4 - 1 for i in maps]
            for i, found in zip(maps, model.forward_intermediates(images, at, norm=True, intermediates_only=True)):
                taps[f"F{i}"] = found
        else:
            taps["pooled"] = features.mean((2, 3))
    return {
        "arch": arch,
        "size": size,
        "timm": options,
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": macs(arch, size, options),
        "names": f"{fnv1a64(chr(10).join(sorted(names))):016x}",
        "taps": {name: described(tap) for name, tap in taps.items()},
    }


tanh = {"act_layer": "gelu_tanh", "dynamic_img_size": True}
print(
    json.dumps(
        {
            "format": "stillhouse-transformers-1",
            "reference": f"timm {timm.__version__}, PyTorch {torch.__version__}, f64",
            "cases": [
                case("convnext_atto", 64),
                case("convnext_tiny", 64),
                case("convnextv2_atto", 96),
                case("tf_efficientnet_b0", 64),
                case("tf_efficientnet_b2", 75),
                case("vit_tiny_patch16_224", 224),
                case("vit_small_patch14_dinov2", 56, tanh),
                case("vit_small_patch14_dinov2", 112, tanh),
            ],
        },
        indent=1,
    )
)
