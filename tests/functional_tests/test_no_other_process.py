"""Nothing starts another process: a second copy of a script without a main guard would run all of it again."""

from pathlib import Path

from tests.programs import run_forked
from tests.tiny_models import TINY_MODELS

# As a user writes it, at top level. `sys.addaudithook` sees every process that Python starts, however it does so.
SCRIPT = """
import sys

EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.popen")
started = []
sys.addaudithook(lambda event, args: started.append((event, args)) if event in EVENTS else None)

from megatron.bridge import AutoBridge

bridge = AutoBridge.from_hf_pretrained("hf")
provider = bridge.to_megatron_provider()
provider.finalize()
model = provider.provide_distributed_model(wrap_with_ddp=False)
for name in ("checkpoint", "another"):
    bridge.save_megatron_model(model, name)
bridge.save_hf_pretrained(bridge.load_megatron_model("checkpoint"), "live")
bridge.export_ckpt("another", "offline")
bridge.import_ckpt("hf", "imported")
print("started:", started)
"""


def test_no_process_is_started(tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf")
    script = tmp_path / "script.py"
    script.write_text(f"import os\nos.chdir({str(tmp_path)!r})\n{SCRIPT}")
    result = run_forked(script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "started: []"
    files = ["offline/model.safetensors", "live/model.safetensors", "another/iter_0000000/.metadata"]
    assert all((tmp_path / file).is_file() for file in files)
