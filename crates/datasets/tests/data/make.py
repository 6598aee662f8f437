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
