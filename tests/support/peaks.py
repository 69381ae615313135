"""What one half takes at most, loaded and run in a process of its own.

`python -m tests.support.peaks JOB.json` prints anonymous bytes above the imports, after loading and
after a caption.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stages.process.child_environment import child_environment
from tests.support.builders.common import Peak


def peaks_of(folder: Path, **job: Any) -> dict[str, Any]:
    """`loading`, `running` and `weights` in bytes, and the `tokens` that were said."""
    given = json.dumps({"model": str(folder), **job})
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.peaks", given],
        env={**child_environment(), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(text: str) -> None:
    import torch

    from stages.decode.generate_kwargs import make_greedy  # noqa: F401  (imports what the stage does)
    from stages.models.loading import ModelJob, warm_source

    given = json.loads(text)
    positions, keep = given.pop("positions"), given.pop("keep", "language")
    warm_source(ModelJob(**given))
    torch.softmax(torch.ones(512, 512) @ torch.ones(512, 512), -1)
    peak = Peak()
    half = ModelJob(**given).load(keep)
    found: dict[str, Any] = {"loading": peak.bytes()}
    ids = torch.randint(3, 300, (1, positions), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = half.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=3,
            max_new_tokens=3,
        )
    found |= {"running": peak.bytes(), "tokens": tokens[0, positions:].tolist()}
    found["weights"] = sum(weight.nbytes for weight in half.parameters())
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
