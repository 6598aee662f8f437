# Writes small JPEG files of every kind, and what libjpeg-turbo decodes them to: PNG files of RGB pixels.
# Run with Pillow 11 or later and NumPy.
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

here = Path(__file__).parent
rows, columns = np.mgrid[0:37, 0:53]
waves = [128 + 120 * np.sin(rows / a + columns / b) for a, b in [(5, 9), (-7, 4), (3, 30)]]
noise = np.random.default_rng(0).normal(0, 12, (37, 53, 3))
picture = Image.fromarray((np.stack(waves, 2) + noise).clip(0, 255).astype(np.uint8))
kinds = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "444_best": {"subsampling": 0, "quality": 100},
    "420_worst": {"subsampling": 2, "quality": 3},
    "420_own_codes": {"subsampling": 2, "optimize": True},
    "422_restarts": {"subsampling": 1, "restart_marker_blocks": 3},
    "420_restarts": {"subsampling": 2, "restart_marker_rows": 1},
    "gray": {"mode": "L"},
    "gray_restarts": {"mode": "L", "restart_marker_blocks": 1},
    "420_narrow": {"subsampling": 2, "size": (5, 37)},
    "420_tiny": {"subsampling": 2, "size": (3, 3)},
    "422_low": {"subsampling": 1, "size": (53, 1)},
    "rgb": {"keep_rgb": True},
    "cmyk": {"mode": "CMYK"},
    "progressive_444": {"subsampling": 0, "progressive": True},
    "progressive_422": {"subsampling": 1, "progressive": True, "quality": 30},
    "progressive_420": {"subsampling": 2, "progressive": True},
    "progressive_gray": {"mode": "L", "progressive": True},
    "progressive_cmyk": {"mode": "CMYK", "progressive": True},
    "progressive_restarts": {"subsampling": 2, "progressive": True, "restart_marker_blocks": 3},
    "progressive_tiny": {"subsampling": 2, "progressive": True, "size": (3, 3)},
}


def write(name, data):
    (here / f"{name}.jpg").write_bytes(data)
    Image.open(io.BytesIO(data)).convert("RGB").save(here / f"{name}.png", optimize=True)


for name, kind in kinds.items():
    image = picture.convert(kind.pop("mode", "RGB")).crop((0, 0, *kind.pop("size", picture.size)))
    file = io.BytesIO()
    image.save(file, "JPEG", **({"quality": 85} | kind))
    write(name, file.getvalue())

# Files that end early within a scan: libjpeg fills what is missing and smooths progressive blocks.
ImageFile.LOAD_TRUNCATED_IMAGES = True
for name, part in [("420", 0.7), ("progressive_420", 0.46), ("progressive_420", 0.82)]:
    data = (here / f"{name}.jpg").read_bytes()
    write(f"{name}_cut_{int(100 * part)}", data[: int(len(data) * part)])
