"""Makes each decode stage wait before it starts, as one waits for a GPU, so that many machines can
be shown on one. It is on PYTHONPATH where scripts/many_check.py puts it."""

import os
import time

if SECONDS := float(os.environ.get("PENSTOCK_CHECK_WAIT") or 0):
    from flows.machine.launch import DirectLauncher, StageCall
    from stages.process.stage_process import StageProcess

    start = DirectLauncher.start

    def start_later(self: DirectLauncher, call: StageCall) -> StageProcess:
        if call.name == "decode":
            time.sleep(SECONDS)
        return start(self, call)

    DirectLauncher.start = start_later  # type: ignore[method-assign]
