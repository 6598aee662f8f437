"""Makes the JPEG files of `make bench CASE=loader` from any images.

    python make_images.py OUT FOLDER...

Each image below the folders is assigned the largest size that it covers (upscaling by up to 10 % is
allowed), cropped to that aspect ratio, resized and written to one of two class folders of `OUT/256x256`
or `OUT/500x375` with quality 90 and 4:2:0 subsampling, as common in datasets. Use images of about the
target sizes: downscaling adds fine detail, which is slow to decode.
"""

import sys
from pathlib import Path

from PIL import Image, ImageOps

SIZES = [(500, 375), (256, 256)]
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}


def main():
    out, *folders = map(Path, sys.argv[1:])
    counts = dict.fromkeys(SIZES, 0)
    for path in sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        size = next((s for s in SIZES if image.width * 1.1 >= s[0] and image.height * 1.1 >= s[1]), None)
        if size is None:
            continue
        if image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
        folder = out / "x".join(map(str, size)) / ("even", "odd")[counts[size] % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{counts[size]:05}.jpg", quality=90, subsampling="4:2:0")
        counts[size] += 1
    for (width, height), count in counts.items():
        print(f"{width}x{height}: {count}")


main()
