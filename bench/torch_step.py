"""PyTorch worker of `make bench`.

    python torch_step.py NETWORK WORK LAYOUT BATCH SIZE THREADS [DEVICE [PRECISION]]

WORK is `train`, `frozen`, `load`, `mksmt` or a distillation method (`kd`, `class_centric`; `cd` between
two DeepLabV3+). Reads step counts from stdin, one per line, and answers each with `wall seconds, CPU
seconds, peak KiB, KiB of loaded libraries`. Training loops follow public code, with PyTorch's CPU
optimizations: `inference_mode` for the teacher, gradients set to None, LAYOUT `contiguous` or
`channels_last`.

DEVICE is `cpu` or `cuda`. On CUDA, cuDNN benchmarks its algorithms, PRECISION is `bf16` (autocast), `tf32`
or `f32`, all steps of a count are queued before synchronizing, and memory is the peak allocated on the GPU.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F


def status(key):
    with open("/proc/self/status") as file:
        return next((line.split()[1] for line in file if line.startswith(key)), "0")


def forward_features(model, x):
    """F1..F4 and logits of a torchvision ResNet or MobileNetV2."""
    features = []
    if hasattr(model, "layer1"):
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = layer(x)
            features.append(x)
        return features, model.fc(torch.flatten(model.avgpool(x), 1))
    for index, layer in enumerate(model.features):
        x = layer(x)
        if index in (3, 6, 13, 17):
            features.append(x)
    return features, model.classifier(x.mean((2, 3)))


class DeepLabV3Plus(nn.Module):
    """On timm's ResNet with output stride 16, as `crates/backbones/src/deeplabv3plus.rs`."""

    def __init__(self, classes, backbone="resnet18"):
        super().__init__()
        import timm

        self.backbone = timm.create_model(backbone, features_only=True, output_stride=16, out_indices=(1, 4))
        low, high = self.backbone.feature_info.channels()
        conv = lambda i, o, k, rate=1: nn.Sequential(
            nn.Conv2d(i, o, k, padding=rate * (k // 2), dilation=rate, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)
        )
        self.branches = nn.ModuleList([conv(high, 256, 1)] + [conv(high, 256, 3, rate) for rate in (6, 12, 18)])
        self.pool, self.project, self.low = conv(high, 256, 1), conv(5 * 256, 256, 1), conv(low, 48, 1)
        self.fuse = nn.Sequential(conv(304, 256, 3), conv(256, 256, 3), nn.Conv2d(256, classes, 1))

    def low_logits(self, images):
        """Logits at stride 4."""
        low, x = self.backbone(images)
        mean = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        x = self.project(torch.cat([branch(x) for branch in self.branches] + [mean], 1))
        low = self.low(low)
        x = F.interpolate(x, low.shape[2:], mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([low, x], 1))

    def forward(self, images):
        return F.interpolate(self.low_logits(images), images.shape[2:], mode="bilinear", align_corners=False)


def make_network(name):
    if name == "deeplabv3plus":
        return DeepLabV3Plus(21)
    if name.startswith("swin_"):
        import timm

        return timm.create_model(name, num_classes=21, drop_path_rate=0.0)
    return getattr(torchvision.models, {"mobilenetv2_100": "mobilenet_v2"}.get(name, name))(num_classes=21)


class TwoExits(nn.Module):
    """timm's Swin with MKSMT's exits after stages 3 and 4, as `crates/backbones/src/exits.rs`."""

    def __init__(self, name, classes, k=896):
        super().__init__()
        import timm

        self.backbone = timm.create_model(name, num_classes=0, drop_path_rate=0.0)
        widths = [info["num_chs"] for info in self.backbone.feature_info[-2:]]
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in widths)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(c, k), nn.GELU(), nn.Linear(k, classes)) for c in widths
        )

    def exit(self, i, x):
        return self.heads[i](self.norms[i](x).mean((1, 2)))

    def forward(self, images, last):
        x = self.backbone.patch_embed(images)
        for layer in self.backbone.layers[:3]:
            x = layer(x)
        third = self.exit(0, x)
        return (third, self.exit(1, self.backbone.layers[3](x))) if last else (third, None)


def two_phases(network, images, labels):
    """Phase 1: cross-entropy at the early exit. Phase 2: cross-entropy at the last exit and the divergence
    between both. Each phase updates the parameters with a gradient."""
    model = TwoExits(network, 21).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=5e-4)

    def step():
        adamw.zero_grad(set_to_none=True)
        F.cross_entropy(model(images, last=False)[0], labels).backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        third, fourth = model(images, last=True)
        kl = F.kl_div(F.log_softmax(third, 1), F.softmax(fourth.detach(), 1), reduction="batchmean")
        (F.cross_entropy(fourth, labels) + kl).backward()
        adamw.step()

    return step


def kd(student, teacher, temperature=4.0):
    p = F.log_softmax(student / temperature, 1)
    q = F.softmax(teacher / temperature, 1)
    return F.kl_div(p, q, reduction="batchmean") * temperature**2


def cd(student, teacher, temperature=4.0):
    """Channel-wise distillation (Shu et al. 2021) as in the authors' code: a softmax over positions."""
    student, teacher = (x.flatten(2).flatten(0, 1) / temperature for x in (student, teacher))
    loss = F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="sum")
    return 3.0 * temperature**2 * loss / student.shape[0]


def mmd(student, teacher):
    """NST's loss with the kernel (x.y)^2; inputs are `[vectors, pixels]`."""
    student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    k = lambda a, b: (a @ b.t()).pow(2).mean()
    return k(teacher, teacher) + k(student, student) - 2 * k(student, teacher)


def class_centric(student, teacher, labels, stages=(0, 1, 2, 3)):
    total = 0.0
    for stage in stages:
        s, t = student[stage], teacher[stage]
        for c in labels.unique():
            mine = labels == c
            share = mine.sum() / len(labels)
            total = total + share * mmd(s[mine].flatten(2).flatten(0, 1), t[mine].flatten(2).flatten(0, 1))
    return total


class Files(torch.utils.data.Dataset):
    """JPEG files of a folder, with torchvision's v2 transforms on tensors, their fastest mode."""

    def __init__(self, folder, size):
        from torchvision.transforms import v2

        self.files = sorted(str(p) for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        data = torchvision.io.read_file(self.files[index])
        return self.transform(torchvision.io.decode_jpeg(data, mode=torchvision.io.ImageReadMode.RGB))


def load(folder, batch, size, workers):
    """Returns a step of 8 batches. A single worker runs in this process, so that its CPU time counts;
    several persist between steps and are idle at the end of one."""
    files = Files(Path(os.environ["STILLHOUSE_BENCH_IMAGES"]) / folder, size)
    sampler = torch.utils.data.RandomSampler(files, replacement=True, num_samples=8 * batch)
    workers = workers if workers > 1 else 0
    batches = torch.utils.data.DataLoader(
        files, batch, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
    )

    def step():
        for _ in batches:
            pass

    return step


def main():
    network, work, layout, batch, size, threads, *gpu = sys.argv[1:]
    batch, size = int(batch), int(size)
    device, precision = gpu[0] if gpu else "cpu", gpu[1] if len(gpu) > 1 else "bf16"
    on_gpu = device == "cuda"
    if on_gpu:
        set_up_gpu(precision, work)
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    libraries = "0" if on_gpu else status("VmRSS:")
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    if work == "load":
        serve(load(network, batch, size, int(threads)), libraries)
        return
    make = lambda name: make_network(name).to(device, memory_format=memory_format)
    images = torch.randn(batch, 3, size, size).to(device, memory_format=memory_format)
    labels = (torch.arange(batch) // 4 % 21).to(device)
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=on_gpu and precision == "bf16")
    if network == "deeplabv3plus":
        labels = labels[:, None, None].expand(batch, size, size).contiguous()
    if work == "mksmt":
        serve(two_phases(network, images, labels), libraries)
        return
    model = make(network)

    if work == "frozen":
        model.eval()

        def step():
            with torch.inference_mode(), autocast():
                return model(images)

    else:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # as in stillhouse
        model.train()
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        teacher = None
        if work == "cd":
            teacher = DeepLabV3Plus(21, "resnet50").to(memory_format=memory_format).eval()
        elif work != "train":
            teacher = make("resnet50").eval()

        def step():
            with autocast():
                loss = loss_of()
            loss.backward()
            sgd.step()

        def loss_of():
            if teacher is not None:
                with torch.inference_mode():
                    maps, soft = (None, teacher.low_logits(images)) if work == "cd" else forward_features(teacher, images)
            sgd.zero_grad()
            if teacher is None:
                return F.cross_entropy(model(images), labels)
            if work == "cd":
                low = model.low_logits(images)
                logits = F.interpolate(low, images.shape[2:], mode="bilinear", align_corners=False)
                return F.cross_entropy(logits, labels) + cd(low, soft)
            features, logits = forward_features(model, images)
            loss = F.cross_entropy(logits, labels)
            if work == "kd":
                return loss + kd(logits, soft)
            if work == "class_centric":
                return loss + class_centric(features, maps, labels)
            raise SystemExit(f"unknown work: {work}")

    serve(step, libraries, on_gpu)


def set_up_gpu(precision, work):
    """Checks the arguments and applies PyTorch's GPU optimizations."""
    if precision not in ("f32", "tf32", "bf16"):
        raise SystemExit(f"unknown precision: {precision}; expected f32, tf32 or bf16")
    if work not in ("train", "frozen", "kd", "class_centric"):
        raise SystemExit(f"unsupported work on the GPU: {work}; expected train, frozen, kd or class_centric")
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device; install a CUDA build of PyTorch and check `nvidia-smi`")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "f32"


def serve(step, libraries, on_gpu=False):
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = torch.cuda.max_memory_allocated() / 1024 if on_gpu else status("VmHWM:")
        print(wall, cpu, peak, libraries, flush=True)


main()
