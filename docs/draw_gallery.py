"""Draw the pictures of gallery.md anew, by the code on that page: `make gallery`."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent


def main() -> None:
    """Run the page's code in a folder of its own, and take what it has drawn."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "gallery.md").read_text(), re.M | re.S)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        names: dict[str, object] = {}
        for block in blocks:
            exec(block, names)
        drawn = sorted(Path(folder).glob("*.png"))
        (DOCS / "gallery").mkdir(exist_ok=True)
        for picture in drawn:
            (DOCS / "gallery" / picture.name).write_bytes(picture.read_bytes())
            print(f"{picture.name}: {picture.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
