"""JPEG files of the sizes that `make bench CASE=loader` reads, out of any pictures.

    python make_images.py OUT FOLDER...

Every picture below the folders that is large enough for a size (an upscaling by a tenth is
allowed) is cut to its proportions, scaled and written at quality 90 with 4:2:0 subsampling, as
cameras and most datasets have it, to `OUT/256x256/pictures` or `OUT/500x375/pictures`. Give each
size pictures of about that size: shrinking makes fine detail, which is slow to decode.
"""

import sys
from pathlib import Path

from PIL import Image, ImageOps

SIZES = [(500, 375), (256, 256)]
KINDS = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}


def main():
    out, *folders = map(Path, sys.argv[1:])
    counts = dict.fromkeys(SIZES, 0)
    for path in sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in KINDS):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        # The largest size that it is large enough for.
        size = next((s for s in SIZES if image.width * 1.1 >= s[0] and image.height * 1.1 >= s[1]), None)
        if size is None:
            continue
        if image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
        folder = out / "x".join(map(str, size)) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{counts[size]:05}.jpg", quality=90, subsampling="4:2:0")
        counts[size] += 1
    for (width, height), count in counts.items():
        print(f"{width}x{height}: {count}")


main()
