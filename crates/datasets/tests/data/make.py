"""Writes the test files in this folder with scipy, pyarrow and Pillow.

    python make.py
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

here = Path(__file__).parent


def png(width, height, number):
    """A color PNG whose pixels follow from its number."""
    rows = b"".join(
        b"\0" + bytes((number * 37 + x * 5 + y * 11 + c * 70) % 256 for x in range(width) for c in range(3))
        for y in range(height)
    )

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# The lists of Stanford Dogs: cells of text and a column of numbers.
files = ["n02085620-Chihuahua/n02085620_100.jpg", "n02085782-Japanese_spaniel/n02085782_100.jpg"]
cells = np.array([[f] for f in files], dtype=object)
lists = {"file_list": cells, "annotation_list": cells, "labels": np.array([[1.0], [2.0]])}
for name, compressed in [("scipy", False), ("scipy_zlib", True)]:
    scipy.io.savemat(here / f"{name}.mat", lists, do_compression=compressed)

# A label file of the augmented VOC set: a structure with a matrix by columns.
labels = {"GTcls": {"Boundaries": np.array([[0]]), "Segmentation": np.arange(12, dtype=np.uint8).reshape(3, 4)}}
scipy.io.savemat(here / "scipy_labels.mat", labels, do_compression=True)

# A data set of the hub: an image (bytes and path) and a label.
try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    pa = None
if pa:
    images = [{"bytes": png(9, 7, i), "path": f"{i}.png"} for i in range(12)]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, image), "label": pa.array([i % 11 for i in range(12)], pa.int64())})
    for name, options in [
        ("snappy", {}),
        ("plain", {"compression": "none", "use_dictionary": False}),
        ("pages_v2", {"compression": "none", "data_page_version": "2.0", "row_group_size": 5}),
        ("gzip", {"compression": "gzip", "row_group_size": 5, "data_page_size": 256}),
    ]:
        pq.write_table(table, here / f"{name}.parquet", **options)

# JPEG files of every sampling, and what libjpeg decodes them to. `other` are not of the baseline kind.
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
    "other_progressive": {"progressive": True},
    "other_cmyk": {"mode": "CMYK"},
}
(here / "jpeg").mkdir(exist_ok=True)
for name, kind in kinds.items():
    image = picture.convert(kind.pop("mode", "RGB")).crop((0, 0, *kind.pop("size", picture.size)))
    image.save(here / f"jpeg/{name}.jpg", **({"quality": 85} | kind))
    decoded = Image.open(here / f"jpeg/{name}.jpg").convert("RGB")
    decoded.save(here / f"jpeg/{name}.png", optimize=True)
