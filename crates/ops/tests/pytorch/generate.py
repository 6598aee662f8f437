#!/usr/bin/env python3
"""PyTorch reference values for the layers: writes layers.json and map_layers.json to its own folder.

    python3 generate.py            requires torch (stored values:  2.15.0, CPU, float64)

Every case is: images -> 1x1 convolution with bias ("front") -> the block under test (with the
front's output as shortcut where `shortcut`) -> optional max pooling -> sum(out * loss_weight).
Parameters, buffers, images and loss weights come from the generator of tests/golden/models
(README there): only results are stored.
"""
import json
import pathlib

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
M = (1 << 64) - 1


def stream(name, count):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & M
    out = []
    for i in range(count):
        z = (h + (i + 1) * 0x9E3779B97F4A7C15) & M
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
        out.append((z ^ (z >> 31)) & M)
    return out


def tensor(name, shape, low, high):
    """Uniform in [low, high), rounded to float32."""
    n = 1
    for s in shape:
        n *= s
    v = [low + (high - low) * ((z >> 11) * 2.0**-53) for z in stream(name, n)]
    return torch.tensor(v, dtype=torch.float64).float().double().reshape(shape)


def same(size, k, s, d):
    need = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
    return need // 2, need - need // 2


def run(case):
    s, (b, h, w) = case["spec"], case["input"]
    ci, co, k, st, d, g = s["inputs"], s["outputs"], s["kernel"], s["stride"], s["dilation"], s["groups"]
    p = {
        "front.weight": tensor("front.weight", (ci, 2, 1, 1), -1, 1),
        "front.bias": tensor("front.bias", (ci,), -1, 1),
        "conv.weight": tensor("conv.weight", (co, ci // g, k, k), -1, 1),
    }
    if case["bn"]:
        p["bn.weight"] = tensor("bn.weight", (co,), 0.5, 1.5)
        p["bn.bias"] = tensor("bn.bias", (co,), -1, 1)
        mean, var = tensor("bn.running_mean", (co,), -1, 1), tensor("bn.running_var", (co,), 0.5, 1.5)
    else:
        p["conv.bias"] = tensor("conv.bias", (co,), -1, 1)
    for t in p.values():
        t.requires_grad_(True)
    x = F.conv2d(tensor("images", (b, 2, h, w), -1, 1), p["front.weight"], p["front.bias"])
    y, pad = x, s["padding"]
    if pad == "same":
        (t, bo), (le, ri) = same(h, k, st, d), same(w, k, st, d)
        y, pad = F.pad(x, (le, ri, t, bo)), 0
    y = F.conv2d(y, p["conv.weight"], p.get("conv.bias"), stride=st, padding=pad, dilation=d, groups=g)
    if case["bn"]:
        y = F.batch_norm(y, mean, var, p["bn.weight"], p["bn.bias"], case["mode"] == "train", 0.1, 1e-5)
    if case["shortcut"]:
        y = y + x
    y = {"none": lambda v: v, "relu": F.relu, "relu6": F.relu6}[case["act"]](y)
    if case["pool"]:
        y = F.max_pool2d(y, *case["pool"])
    (y * tensor("loss_weight", tuple(y.shape), -1, 1)).sum().backward()
    result = {"out": y.detach()}
    result |= {f"grad.{n}": t.grad for n, t in p.items()}
    if case["bn"] and case["mode"] == "train":
        result |= {"after.bn.running_mean": mean, "after.bn.running_var": var}
    return {n: {"shape": list(t.shape), "values": [float(f"{v:.12g}") for v in t.flatten().tolist()]} for n, t in result.items()}


def spec(inputs, outputs, kernel, stride=1, padding=None, dilation=1, groups=1):
    return dict(inputs=inputs, outputs=outputs, kernel=kernel, stride=stride,
                padding=kernel // 2 if padding is None else padding, dilation=dilation, groups=groups)


def case(spec, input, bn=True, act="relu", mode="train", shortcut=False, pool=None):
    return dict(spec=spec, input=input, bn=bn, act=act, mode=mode, shortcut=shortcut, pool=pool)


CASES = [
    case(spec(3, 5, 1, padding=0), (2, 5, 4)),
    case(spec(3, 5, 3), (2, 5, 4), act="relu6"),
    case(spec(4, 4, 3), (2, 4, 5), shortcut=True),
    case(spec(4, 4, 1, padding=0), (2, 4, 5), shortcut=True, act="none"),
    case(spec(3, 17, 3, stride=2), (2, 7, 6)),
    case(spec(3, 6, 1, stride=2, padding=0), (2, 5, 5)),
    case(spec(3, 6, 1, stride=3, padding=0), (2, 7, 5), bn=False, act="none"),
    case(spec(3, 6, 3, stride=2, padding="same"), (2, 6, 5), mode="eval"),
    case(spec(3, 6, 3, stride=2, padding="same"), (2, 7, 8)),
    case(spec(3, 6, 2, padding="same"), (2, 3, 4), bn=False),
    case(spec(3, 6, 5, stride=3, dilation=2, padding="same"), (2, 9, 8)),
    case(spec(3, 5, 7, stride=2, padding=3), (2, 9, 8), pool=[3, 2, 1]),
    case(spec(3, 5, 3, dilation=2, padding=2), (2, 6, 5)),
    case(spec(3, 5, 3, dilation=6, padding=6), (2, 4, 4)),
    case(spec(4, 6, 3, groups=2), (2, 5, 4)),
    case(spec(6, 6, 3, groups=6), (2, 5, 4), act="relu6"),
    case(spec(6, 6, 3, groups=6, stride=2), (2, 7, 6), act="relu6", mode="eval"),
    case(spec(6, 6, 3, groups=6, stride=2, padding="same"), (2, 6, 7), act="relu6"),
    case(spec(6, 6, 3, groups=6, dilation=2, padding=2), (1, 5, 5), act="relu6"),
    case(spec(3, 4, 3), (3, 1, 1)),
    case(spec(3, 4, 3), (1, 4, 3), bn=False, pool=[2, 2, 0]),
    case(spec(3, 4, 3), (1, 5, 7), pool=[3, 2, 1]),
    case(spec(3, 4, 3), (1, 5, 7), pool=[2, 3, 0], mode="eval"),
]



def run_map(case):
    """A function of one map x, uniform in [-3, 3); results: out and the gradient of x."""
    x = tensor("x", case["input"], -3, 3).requires_grad_(True)
    op, size = case["op"], case.get("size")
    c = case["input"][1]
    if op == "bilinear":
        y = F.interpolate(x, size=size, mode="bilinear", align_corners=case["align_corners"])
    elif op == "adaptive_avg_pool":
        y = F.adaptive_avg_pool2d(x, size)
    elif op == "max_pool":
        y = F.max_pool2d(x, *size)
    elif op == "gelu":
        y = F.gelu(x)
    elif op == "layer_norm":
        y = F.layer_norm(x.permute(0, 2, 3, 1), (c,)).permute(0, 3, 1, 2)
    (y * tensor("loss_weight", tuple(y.shape), -1, 1)).sum().backward()
    result = {"out": y.detach(), "grad.x": x.grad}
    return {n: {"shape": list(t.shape), "values": [float(f"{v:.12g}") for v in t.flatten().tolist()]} for n, t in result.items()}


MAPS = [
    dict(op=op, input=input, size=size, **more)
    for op, sizes, more in [
        ("bilinear", [((2, 2, 3, 4), (7, 5)), ((1, 2, 5, 7), (3, 2)), ((1, 3, 1, 1), (2, 3)), ((1, 1, 4, 3), (1, 1))], dict(align_corners=False)),
        ("bilinear", [((2, 2, 3, 4), (7, 5)), ((1, 2, 5, 7), (3, 2)), ((1, 3, 1, 1), (2, 3)), ((1, 1, 4, 3), (1, 1))], dict(align_corners=True)),
        ("adaptive_avg_pool", [((2, 2, 2, 2), (7, 7)), ((1, 3, 5, 7), (3, 2)), ((1, 2, 1, 1), (2, 3))], {}),
        ("max_pool", [((1, 2, 5, 7), (2, 2, 0)), ((1, 2, 7, 5), (2, 3, 1)), ((1, 3, 1, 1), (3, 2, 1))], {}),
        ("gelu", [((1, 2, 3, 3), None)], {}),
        ("layer_norm", [((2, 5, 2, 3), None), ((1, 18, 1, 1), None)], {}),
    ]
    for input, size in sizes
]

if __name__ == "__main__":
    for c in CASES:
        c["expected"] = run(c)
    path = pathlib.Path(__file__).parent / "layers.json"
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES)
    path.write_text('{"torch":"%s","dtype":"float64","cases":[\n%s\n]}\n' % (torch.__version__.split("+")[0], lines))
    print(len(CASES), "cases", path.stat().st_size, "bytes")
    for c in MAPS:
        c["expected"] = run_map(c)
    path = pathlib.Path(__file__).parent / "map_layers.json"
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in MAPS)
    path.write_text('{"torch":"%s","dtype":"float64","cases":[\n%s\n]}\n' % (torch.__version__.split("+")[0], lines))
    print(len(MAPS), "maps", path.stat().st_size, "bytes")
