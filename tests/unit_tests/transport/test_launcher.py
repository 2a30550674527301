"""What a user sees who stops a command before its ranks are there."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.programs import TIMEOUT


def test_ctrl_c_while_the_launcher_imports_is_quiet():
    command = [sys.executable, "-m", "megatron.bridge.transport.launcher", "2", "-m", "megatron.bridge", "models"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + TIMEOUT
    while "libtorch" not in maps.read_text() and time.monotonic() < deadline:  # after which it imports for seconds
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=TIMEOUT) == ("", "")
    assert process.returncode == -signal.SIGINT
