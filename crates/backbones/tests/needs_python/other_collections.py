"""Models of other collections, for the tests of the crate.

    other_collections.py save FOLDER          saves random models of timm, torchvision and transformers, and
                                              their logits on images.safetensors
    other_collections.py load FOLDER          loads exported models (FOLDER/*/config.json, *.onnx), and saves
                                              their logits on images.safetensors

Prints a line per model: its name, or `-` and the reason if it is not available.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def randomize(model, seed):
    """Randomizes statistics and affine parameters, so that all of them matter."""
    draw = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(1 + 0.5 * torch.rand(value.shape, generator=draw))
        elif name.endswith("running_mean") or name.endswith("bias"):
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
        elif value.dim() == 1 and value.is_floating_point():
            value.copy_(1 + 0.1 * torch.randn(value.shape, generator=draw))
    return model.eval()


def timm_model(name, **options):
    import timm

    return lambda: timm.create_model(name, num_classes=5, **options)


def torchvision_model(name, **options):
    import torchvision

    return lambda: getattr(torchvision.models, name)(num_classes=5, **options)


def hub_model(kind, **options):
    def make():
        import transformers

        config = getattr(transformers, kind + "Config")(num_labels=5, **options)
        return getattr(transformers, kind + "ForImageClassification")(config)

    return make


def authors(state):
    """Renames the parameters to the names of the Swin Transformer's authors."""
    moved = {}
    for name, value in state.items():
        name = name.replace("head.fc", "head")
        for i in (1, 2, 3):
            if name.startswith(f"layers.{i}.downsample"):
                name = name.replace(f"layers.{i}.", f"layers.{i - 1}.")
                break
        moved[name] = value
    return {"model": moved, "epoch": 3}


def zip_file(state, path):
    torch.save(state, path)


def legacy_file(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def tensors_file(state, path):
    save_file({k: v.contiguous() for k, v in state.items()}, path)


swin_hub = dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, image_size=224)
MODELS = {
    # file name: constructor, image size, writer
    "timm-resnet18.pth": (timm_model("resnet18"), 64, zip_file),
    "timm-swin.safetensors": (timm_model("swin_tiny_patch4_window7_224"), 224, tensors_file),
    "authors-swin.pth": (timm_model("swin_tiny_patch4_window7_224"), 224, lambda s, p: zip_file(authors(s), p)),
    "torchvision-resnet18.pth": (torchvision_model("resnet18"), 64, legacy_file),
    "torchvision-mobilenet.pth": (torchvision_model("mobilenet_v2"), 64, zip_file),
    "torchvision-swin.pth": (torchvision_model("swin_t"), 224, zip_file),
    "torchvision-vgg11.pth": (torchvision_model("vgg11"), 64, legacy_file),
    "torchvision-vgg11_bn.pth": (torchvision_model("vgg11_bn"), 64, zip_file),
    "hub-resnet50.safetensors": (hub_model("ResNet"), 64, tensors_file),
    "hub-resnet18.safetensors": (
        hub_model("ResNet", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
        64,
        tensors_file,
    ),
    "hub-mobilenet.safetensors": (hub_model("MobileNetV2"), 64, tensors_file),
    "hub-swin.safetensors": (hub_model("Swin", **swin_hub), 224, tensors_file),
}


def save(folder):
    images = load_file(folder / "images.safetensors")
    logits = {}
    for i, (name, (make, size, write)) in enumerate(MODELS.items()):
        torch.manual_seed(i)
        try:
            model = randomize(make(), i)
        except ImportError as e:
            print("-", name, e, flush=True)
            continue
        with torch.inference_mode():
            out = model(images[str(size)])
        logits[name] = getattr(out, "logits", out).contiguous()
        write(model.state_dict(), folder / name)
        print(name, size, flush=True)
    save_file(logits, folder / "logits.safetensors")


def load(folder):
    import onnxruntime
    import timm

    images = load_file(folder / "images.safetensors")
    logits = {}
    for config in sorted(folder.glob("*/config.json")):
        name = config.parent.name
        size = json.loads(config.read_text())["pretrained_cfg"]["input_size"][-1]
        model = timm.create_model(f"local-dir:{config.parent}", pretrained=True).eval()
        with torch.inference_mode():
            logits[name] = model(images[str(size)]).contiguous()
            settings = json.loads(config.read_text())
            by_path = timm.create_model(
                settings["architecture"],
                num_classes=settings["num_classes"],
                checkpoint_path=str(config.parent / "model.safetensors"),
                **settings.get("model_args", {}),
            ).eval()
            assert torch.equal(by_path(images[str(size)]), logits[name]), name
        print(name, flush=True)
    for path in sorted(folder.glob("*.onnx")):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        name = path.name
        logits[name] = torch.from_numpy(session.run(["logits"], {given.name: images[str(given.shape[2])].numpy()})[0])
        print(name, flush=True)
    save_file(logits, folder / "logits.safetensors")


if __name__ == "__main__":
    {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
