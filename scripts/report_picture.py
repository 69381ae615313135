"""Writes docs/report.png: the demo clips captioned in short chunks within a budget, and the head of
the report on it as Chromium shows it. Run from a clone, with Chromium and its driver installed.

    python scripts/report_picture.py [--to docs/report.png]
"""

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZE = (1120, 2040)
OPTIONS = ("--model=demo", "--chunk=1.5", "--fps=4", "--batch-size=16", "--memory=100MB")


def main() -> int:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--to", type=Path, default=ROOT / "docs" / "report.png")
    to = given.parse_args().to
    from PIL import Image

    from tests.support.browser import browsing

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "penstock-out"
        where = ["--out", str(out), "--store", f"{folder}/store"]
        penstock = [sys.executable, "-m", "flows.cli.main"]
        clips = str(ROOT / "penstock_demo" / "samples")
        subprocess.run([*penstock, "caption", clips, *OPTIONS, *where], cwd=ROOT, check=True)
        subprocess.run([*penstock, "report", str(out)], cwd=ROOT, check=True)
        with browsing(Path(folder) / "profile", SIZE) as browser:
            browser.open((out / "report.html").as_uri())
            browser.run("document.querySelector('details').open = false")
            browser.wait("return document.querySelectorAll('.captions button').length > 3")
            browser.click(".captions button", 2)
            browser.wait("return document.querySelector('video').readyState >= 2")
            browser.run("scrollTo(0, 0)")
            browser.hover(".plot svg", 150, 0)
            picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    picture.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(to, optimize=True)
    print(f"{to}: {to.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
