"""What the planning benchmarks share: policies by name, `autosp plan` as a function, the models' published shapes."""
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTORCH, TILED = "Ulysses, PyTorch's min cut", "  + tiled loss"
POLICIES = [  # name, --set options
    (PYTORCH, ["save.policy=pytorch", "tile.policy=off"]),
    (TILED, ["save.policy=pytorch", "tile.policy=loss"]),
    ("Ulysses, AutoSP's rule", ["save.policy=autosp", "tile.policy=off"]),
    (TILED, ["save.policy=autosp", "tile.policy=loss"]),
    ("full recomputation, tiles", ["save.policy=layer", "tile.policy=auto"]),
    ("ours, no tiles", ["save.policy=budget", "tile.policy=off"]),
    ("ours, tiled loss", ["save.policy=budget", "tile.policy=loss"]),
    ("ours", ["save.policy=budget", "tile.policy=auto"]),
]


class Model:
    """A graph of examples/; sizes as published, for closed forms that do not come from the compiler."""

    def __init__(self, name, file, layers, width, ffn, heads, kv, head, vocab, tied):
        self.name, self.path, self.layers, self.heads_width = name, f"{ROOT}/examples/{file}.pt2", layers, heads * head
        block = width * head * (2 * heads + 2 * kv) + 3 * width * ffn + 2 * width
        self.params = layers * block + width + (1 if tied else 2) * vocab * width
        self.products = layers * (block - 2 * width) + vocab * width  # parameters that multiply every token

    def closed_form(self, tokens, ranks, flops, mem_bw, link, attention_share):
        """Seconds of a step without recomputation on each of `ranks` devices: 6 operations a token and parameter; attention's
        two products forward and five backward over half of the square; f32 gradients reduced and gathered; AdamW, which reads
        weight, gradient and two moments and writes three of them."""
        linear = 6 * self.products * tokens
        attention = 7 * tokens * tokens * self.heads_width * self.layers
        reduction = 2 * 4 * self.params * (ranks - 1) / ranks / link
        return (linear + attention / attention_share) / ranks / flops + reduction + 7 * 4 * self.params / mem_bw


MODELS = [
    Model("Llama-3.2-1B", "llama-3.2-1b", 16, 2048, 8192, 32, 8, 64, 128256, True),
    Model("Llama-3.2-3B", "llama-3.2-3b", 28, 3072, 8192, 24, 8, 128, 128256, True),
    Model("Llama-3.1-8B", "llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, False),
    Model("Llama-2-13B", "llama-2-13b", 40, 5120, 13824, 40, 40, 128, 32000, False),
]


def plan(autosp, model, machine, options, seq, memory=None, host=None):
    """The object of `plan --json`; None where nothing fits. The machine gets as much memory as is asked for."""
    machine += f",mem={int(memory)}" if memory else ""
    line = [autosp, "plan", model.path, "--machine", machine, "--dtype", "bf16", "--seq", str(seq), "--json"]
    line += ["--memory", str(int(memory))] if memory else []
    line += ["--host-memory", str(int(host))] if host else []
    for option in ["shard.exchange=a2a", *options]:
        line += ["--set", option]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    if "fits" in done.stderr or "too small" in done.stderr or "--memory allows" in done.stderr:
        return None
    sys.exit(done.stderr.strip())


def copies(autosp, model, machine, options):
    """Bytes that a fixed policy keeps whatever the length is: its bf16 copies of weights."""
    if "save.policy=budget" in options:
        return 0
    return plan(autosp, model, machine, options, 8, 1e18)["saved_bytes"]
