#!/usr/bin/env python3
"""Are the policies `pytorch` and `autosp` what their names say? What they keep, against the originals' own decisions.

    VENV/bin/python tests/parity/saved_set.py build/autosp [--verbose]

A small Llama (stock Hugging Face code, random weights) goes two ways at the same sizes:

* as an exported .pt2 through `autosp dump --after save --set save.policy=...`, whose text shows which values of the forward
  the backward reads;
* through torch.compile with the backend's own partition function (the default path of a training step under Inductor:
  the joint-graph passes, then min_cut_rematerialization_partition with its default options), stopped when the partitioner
  has decided. For AutoSP's rule, the function in which the partitioner decides what may never run again is replaced
  by `autosp_bans` below, written from the description of DeepSpeed's long_context_checkpointing pass.

Values are matched by what they mean: the result of layer 1's q_proj, the sum behind its attention and so on. PyTorch's nodes
carry the module that they came from; ours are products with a parameter of a known name, or stand in a known
relation to one. The sets must be equal up to the differences in STATED, each with its reason (docs/memory.md repeats
them); any other difference fails. Each case is one test; the last line says `N passed, N failed`.
"""
import argparse
import ast
import contextlib
import inspect
import io
import operator
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter

import torch
import torch._functorch.partitioners as partitioners
import torch._inductor.compile_fx as compile_fx

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools"))
import export

LAYERS, HEADS = 3, 8
CASES = [  # key heads, model's type, under autocast, policy, ranks, tokens; AutoSP's rule changes at 4096 rows a rank
    (HEADS, "f32", False, "pytorch", 1, 2560), (HEADS, "f32", False, "autosp", 1, 2560),
    (HEADS, "f32", False, "autosp", 1, 8192), (HEADS, "f32", True, "pytorch", 1, 2560),
    (HEADS // 2, "f32", False, "pytorch", 1, 2560), (HEADS // 2, "f32", False, "autosp", 1, 8192),
    (HEADS // 2, "f32", False, "pytorch", 2, 16384), (HEADS // 2, "f32", False, "autosp", 2, 5120),
    (HEADS // 2, "f32", False, "autosp", 2, 16384),
    (HEADS // 2, "bf16", False, "pytorch", 2, 16384), (HEADS // 2, "bf16", False, "autosp", 2, 16384),
]
aten, prims = torch.ops.aten, torch.ops.prims

STATED = {
    "heads": "keys and values are kept before their heads are repeated, as attention reads grouped heads: smaller, or "
             "not at all where the repeated copy alone was what had to be kept",
    "mask": "the S x S mask that tracing materialises does not exist: it is a description",
    "loss": "the loss keeps one number a row, the log of the sum, instead of the maximum and the log",
    "side": "what depends on labels and positions only is always kept; PyTorch keeps or recomputes it",
    "masters": "the parameters of a native bf16 export are f32 here; the casts kept are what PyTorch has as parameters",
    "logits": "in bf16, the product that makes the logits has an f32 result",
    "stream": "in bf16, the embedding and the residual sums stay f32, also where the export's are bf16",
    "copy": "attention's result behind the exchange is a copy of its own there, kept where a rank has fewer than 4096 rows; "
            "here the exchange itself writes it, and may run again",
}


def llama(kv):
    from transformers import LlamaConfig
    return LlamaConfig(num_hidden_layers=LAYERS, hidden_size=256, intermediate_size=704, num_attention_heads=HEADS,
                       num_key_value_heads=kv, vocab_size=2048, max_position_embeddings=1 << 16, bos_token_id=None,
                       eos_token_id=None, pad_token_id=None)


# ------------------------------------------------------------------------------------------------------------- PyTorch

ATTENTION = {aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_efficient_attention,
             aten._scaled_dot_product_flash_attention_for_cpu}  # the last: what a CPU has in the others' place


def packet(node):
    return getattr(node.target, "overloadpacket", node.target)


def autosp_bans(node, op_types, options, materialized):
    """AutoSP's rule: may this forward node never run again? A reason, or None. Attention never may, and neither may random
    operators; any other operator that PyTorch would not fuse may; a value that the backward reads from memory may where
    dimension 1 has 4096 or more; of the rest, reductions may not."""
    if node.op != "call_function" or node.target is operator.getitem:
        return None
    if packet(node) in ATTENTION | {aten.native_dropout, aten.rand_like, aten.randn_like}:
        return "attention or random"
    if options.ban_if_not_in_allowlist and not op_types.is_recomputable(node):
        return None
    if options.ban_if_materialized_backward and materialized(node):
        value = node.meta.get("val")
        long_rows = isinstance(value, torch.Tensor) and value.dim() >= 2 and value.shape[1] >= 4096
        return None if long_rows else "materialized in backward"
    if options.ban_if_reduction:
        operands = sum(partitioners._size_of(x) for x in node.args if isinstance(x, torch.fx.Node))
        if partitioners._size_of(node) * 4 < operands:
            return "reduction"
    return None


def with_autosp_rule():
    """solve_min_cut with its inner function should_ban_recomputation handing over to `autosp_bans`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(partitioners.solve_min_cut)))
    call = ast.parse("def should_ban_recomputation(node):\n"
                     "    return autosp_bans(node, op_types, min_cut_options, is_materialized_backwards)").body[0]
    body = tree.body[0].body
    (at,) = [i for i, x in enumerate(body) if isinstance(x, ast.FunctionDef) and x.name == call.name]
    body[at] = call
    scope = dict(vars(partitioners), autosp_bans=autosp_bans)
    exec(compile(ast.fix_missing_locations(tree), "solve_min_cut", "exec"), scope)
    return scope["solve_min_cut"]


class Decided(Exception):
    """The partitioner has chosen; nothing has to run."""


@torch.library.custom_op("parity::all_to_all", mutates_args=())
def all_to_all(x: torch.Tensor, scatter: int, gather: int, ranks: int) -> torch.Tensor:
    """Ulysses' exchange on one rank: dimension `scatter` is cut, `gather` made whole. Never runs: only its shape is used."""
    return shape_of_exchange(x, scatter, gather, ranks)


@all_to_all.register_fake
def shape_of_exchange(x, scatter, gather, ranks):
    shape = list(x.shape)
    shape[scatter] //= ranks
    shape[gather] *= ranks
    return x.new_empty(shape)


all_to_all.register_autograd(
    lambda ctx, g: (all_to_all(g, *ctx.back), None, None, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "back", (inputs[2], inputs[1], inputs[3])))


def ulysses(ranks):
    """A scaled_dot_product_attention between exchanges, as hand-written sequence parallelism and AutoSP have it."""
    inner = torch.nn.functional.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, **options):
        q, k, v = (all_to_all(x, 1, 2, ranks) for x in (query, key, value))
        return all_to_all(inner(q, k, v, is_causal=True, scale=options.get("scale")), 2, 1, ranks)

    return attention


def partition(module, seq, ranks, rule, bf16):
    """The FX nodes that PyTorch's partitioner saves for the backward of `module` on one rank at a batch of one."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor.decomposition import select_decomp_table
    found = []

    def spy(joint, saved_values, *rest, **options):
        found.extend(saved_values)
        raise Decided

    before = partitioners._extract_fwd_bwd_modules, partitioners.solve_min_cut
    partitioners._extract_fwd_bwd_modules = spy
    if rule == "autosp":
        partitioners.solve_min_cut = with_autosp_rule()
    backend = aot_autograd(fw_compiler=lambda g, _: make_boxed_func(g.forward),
                           bw_compiler=lambda g, _: make_boxed_func(g.forward),
                           partition_fn=compile_fx.partition_fn, decompositions=select_decomp_table())
    torch._dynamo.reset()
    ids = torch.zeros(1, seq // ranks, dtype=torch.long)
    stock = torch.nn.functional.scaled_dot_product_attention
    if ranks > 1:
        torch.nn.functional.scaled_dot_product_attention = ulysses(ranks)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            torch.compile(module, backend=backend, fullgraph=True)(ids, ids)
    except Exception:
        if not found:
            raise
    finally:
        torch.nn.functional.scaled_dot_product_attention = stock
        partitioners._extract_fwd_bwd_modules, partitioners.solve_min_cut = before
    return found


VIEWS = {aten.view, aten._unsafe_view, aten.reshape, aten.expand, aten.clone, aten.permute, aten.transpose, aten.t,
         aten.unsqueeze, aten.squeeze, aten.alias, aten.slice, prims.convert_element_type}


def root(node):
    while node.op == "call_function" and packet(node) in VIEWS:
        node = node.args[0]
    return node


def chain(node):
    """A node and the views and casts between it and its root."""
    while node.op == "call_function" and packet(node) in VIEWS:
        yield node
        node = node.args[0]


def module_of(node):
    """The module that a node comes from, as "layers.1.self_attn.q_proj"."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = re.sub(r"\['(\w+)'\]|\[(\d+)\]", r".\1\2", stack[-1][0]) if stack else ""
    return re.sub(r"^.*?\bm\b\.?(model\.)?", "", name)


def product_before(node):
    """The first matrix product on the way from a node to its operands."""
    queue, seen = [node], set()
    while queue:
        x = queue.pop(0)
        if packet(x) is aten.mm:
            return x
        queue += [y for y in x.all_input_nodes if y not in seen and not seen.add(y)]
    return None


def torch_meaning(node):
    """What a saved FX node is, in words that our values have too; "" for parameters and inputs."""
    n = root(node)
    if n.op == "placeholder":  # a parameter or an input
        if node is n or node.meta["val"].dtype == n.meta["val"].dtype:
            return ""
        casts = [x for x in chain(node) if packet(x) is prims.convert_element_type]
        return "cast of " + module_of(casts[-1])
    where, op = module_of(n), packet(n)
    if op is torch.ops.parity.all_to_all:
        inner = torch_meaning(n.args[0])
        return "exchanged " + inner
    value = n.meta["val"]
    if n.target is operator.getitem and packet(n.args[0]) in ATTENTION:
        return f"{where}.attention.{'lse' if n.args[1] else 'out'}"
    if op is aten.mm:
        return where
    if op is aten.embedding:
        return "embedding"
    if re.search(r"norm$", where):
        if op is aten.rsqrt:
            return where + ".rstd"
        last = not any(module_of(u) == where and packet(u) is aten.mul for u in n.users)
        return where + (".out" if op is aten.mul and last else "." + str(op))
    if "rotary" in where or (value.dim() >= 2 and value.shape[-1] == value.shape[-2] and value.shape[-1] > 2048):
        return "side: mask" if value.shape[-1] == value.shape[-2] else "side: rotary"
    if where.endswith("self_attn") and value.dim() == 4:
        return "rope " + module_of(product_before(n))
    if where.endswith("mlp"):
        return where + ".product"
    if where.endswith("act_fn"):
        return where.replace("act_fn", "silu") + "." + str(op)
    if re.fullmatch(r"layers\.\d+", where):
        before = module_of(product_before(n))
        return before + " + x"
    if where == "" and value.numel() <= 1 << 16 and not value.dtype.is_floating_point or value.dim() == 0:
        return "side: labels"
    if where == "":
        return f"loss.{str(op).split('.')[-1]}"
    return f"{where}: {op}"


# -------------------------------------------------------------------------------------------------------------- autosp

LINE = re.compile(r"^\s*(?:(%\d+(?:, %\d+)*) = )?(\w+)(?:\(([^)]*)\))?(?: \{(.*?)\})?(?: : (.*?))?(?:\s+#.*)?$")
SIZES = {"f32": 4, "bf16": 2, "f64": 8, "i64": 8, "i32": 4, "bool": 1}
MOVES = {"reshape", "permute", "expand", "slice", "copy", "cast"}


class Node:
    def __init__(self, outs, op, ins, attrs, types):
        self.outs, self.op, self.ins, self.attrs, self.types = outs, op, ins, attrs, types


def read_graph(text):
    """The nodes of a dump, and value -> (node, which result)."""
    nodes, made = [], {}
    for line in text.splitlines()[1:]:
        m = LINE.match(line)
        if not m or m[2] in ("output", "graph"):
            continue
        outs = m[1].split(", ") if m[1] else []
        types = re.findall(r"(\w+)\[([\d,]*)\](@seq=S)?", m[5] or "")
        n = Node(outs, m[2], re.findall(r"%\d+", m[3] or ""), m[4] or "", types)
        nodes.append(n)
        made.update({v: (n, k) for k, v in enumerate(outs)})
    return nodes, made


def bytes_of(kind, dims, sharded, ranks):
    size = SIZES[kind]
    for d in filter(None, dims.split(",")):
        size *= int(d)
    return size // ranks if sharded else size


def ours(program, path, seq, ranks, policy, bf16):
    """{meaning: (bytes of a rank, shape)} of what the backward reads of the forward, parameters and inputs left out."""
    options = ["tile.policy=off", "shard.exchange=a2a", f"save.policy={policy}"]
    text = subprocess.run([program, "dump", path, "--seq", str(seq), "--ranks", str(ranks), "--after", "save", "--dtype",
                           "bf16" if bf16 else "f32", *[w for o in options for w in ("--set", o)]],
                          capture_output=True, text=True, check=True).stdout
    nodes, made = read_graph(text)
    turn = next(i for i, n in enumerate(nodes) if 'name="inv_count"' in n.attrs)
    home = {v: i for i, n in enumerate(nodes) for v in n.outs}

    def base(v):
        while made[v][0].op in MOVES:
            v = made[v][0].ins[0]
        return v

    def weight(n):
        for v in n.ins:
            p = made[base(v)][0]
            while p.op in ("cast", "enter"):
                p = made[p.ins[0]][0]
            if p.op == "param":
                return re.search(r'name="([^"]*)"', p.attrs)[1].removeprefix("m.").removeprefix("model.").removesuffix(".weight")
        return ""

    def meaning(v):
        n, k = made[v]
        if n.op in ("param", "input", "fill", "const", "iota", "enter"):
            return ""
        if n.op == "dot":
            return weight(n)
        if n.op == "all_to_all":
            return "exchanged " + meaning(base(n.ins[0]))
        if n.op == "embedding":
            return "embedding"
        if n.op == "rmsnorm":
            return weight(n) + (".rstd" if k else ".out")
        if n.op == "rope":
            return "rope " + meaning(base(n.ins[0]))
        if n.op == "attention":
            return meaning(base(n.ins[2])).removesuffix(".v_proj").removeprefix("exchanged ") + (".attention.lse" if k else ".attention.out")
        if n.op == "swiglu":
            return meaning(base(n.ins[0])).removesuffix(".gate_proj") + ".product"
        if n.op == "xent":
            return "loss.lse" if k else "loss.rows"
        if n.op == "add":
            parts = [made[base(x)][0] for x in n.ins]
            return next((weight(p) for p in parts if p.op == "dot"), "?") + " + x"
        if n.op in ("cos", "sin") or "rot" in n.attrs:
            return f"side: rotary {n.op}"
        return f"side: {n.op}" if depends_on_data(v) else f"{n.op} {v}"

    def depends_on_data(v):
        stack, seen = [v], set()
        while stack:
            n = made[stack.pop()][0]
            if n.op == "param":
                return False
            stack += [x for x in n.ins if x not in seen and not seen.add(x)]
        return True

    kept = {}
    for n in nodes[turn:]:
        for v in n.ins:
            b = base(v)
            if home[b] >= turn:
                continue
            cast = made[v][0].op == "cast" and home[v] < turn
            word, (node, k) = meaning(b), made[v if cast else b]
            if not word and cast and made[b][0].op in ("param", "enter"):
                word = "cast of " + weight(made[v][0])
            if word:
                kind, dims, sharded = node.types[k]
                kept[word] = (bytes_of(kind, dims, sharded, ranks), f"{kind}[{dims}]" + "/P" * bool(sharded and ranks > 1))
    return kept


# ---------------------------------------------------------------------------------------------------------- comparison

def compare(theirs, mine, group, rows_of_rank, native):
    """Rows (meaning, theirs, ours, why) of everything in either set; why: "" equal, a key of STATED, or "UNSTATED"."""
    rows = []
    for word in sorted(theirs.keys() | mine.keys(), key=lambda w: (re.findall(r"\d+", w) or ["99"], w)):
        a, b = theirs.get(word), mine.get(word)
        why = ""
        if not a or not b or a[0] != b[0]:
            if a and b and re.search(r"[kv]_proj$", word) and a[0] == group * b[0]:
                why = "heads"
            elif a and not b and group > 1 and re.search(r"v_proj$", word):
                why = "heads"
            elif word.startswith("cast of ") and native and not a:
                why = "masters"
            elif word == "lm_head" and a and b and b[0] == 2 * a[0] and a[1].startswith("bfloat16"):
                why = "logits"
            elif re.search(r"^embedding$| \+ x$", word) and a and b and b[0] == 2 * a[0] and a[1].startswith("bfloat16"):
                why = "stream"
            elif re.match("exchanged .*attention.out$", word) and not b and rows_of_rank < 4096:
                why = "copy"
            elif word == "side: mask":
                why = "mask"
            elif word.startswith("side: "):
                why = "side"
            elif word in ("loss.amax", "loss.log", "loss.lse"):
                why = "loss"
            else:
                why = "UNSTATED"
        rows.append((word, a, b, why))
    return rows


def show(rows, verbose):
    def cell(x):
        return f"{x[1]:>22} {x[0]:>11}" if x else f"{'-':>22} {'':>11}"
    counts = Counter()
    for word, a, b, why in rows:
        counts[why] += 1
        if verbose or why == "UNSTATED":
            print(f"  {word:44} {cell(a)} {cell(b)}  {why}")
    for side, k in (("PyTorch", 1), ("autosp", 2)):
        print(f"  {side:8} keeps {sum(r[k][0] for r in rows if r[k]):>12} bytes in {sum(1 for r in rows if r[k])} values")
    print(f"  equal {counts['']}, " + ", ".join(f"{w} {n}" for w, n in sorted(counts.items()) if w))
    return counts["UNSTATED"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("autosp")
    p.add_argument("--verbose", action="store_true", help="print equal values too")
    args = p.parse_args()
    passed = failed = 0
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        for kv, dtype, autocast, policy, ranks, seq in CASES:
            if (kv, dtype) not in models:
                config, path = llama(kv), os.path.join(folder, f"llama-{kv}-{dtype}.pt2")
                with contextlib.redirect_stderr(io.StringIO()):  # "random weights"
                    module = export.CausalLoss(export.build_model(config, dtype=export.DTYPES[dtype]), "same")
                    export.export_module(module, path, config)
                models[kv, dtype] = module, path
            module, path = models[kv, dtype]
            low = autocast or dtype == "bf16"
            print(f"{policy}: {kv} key heads of {HEADS}, {seq} tokens on {ranks} rank{'s'[:ranks > 1]}, "
                  f"{'autocast to bf16' if autocast else dtype}")
            theirs = {}
            for node in partition(module, seq, ranks, policy, autocast):
                word, value = torch_meaning(node), node.meta["val"]
                if word:
                    theirs[word] = (value.numel() * value.element_size(),
                                    f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}".replace(" ", ""))
            mine = ours(args.autosp, path, seq, ranks, policy, low)
            bad = show(compare(theirs, mine, HEADS // kv, seq // ranks, dtype == "bf16"), args.verbose)
            passed, failed = passed + (not bad), failed + bool(bad)
    for key, why in STATED.items():
        print(f"{key}: {why}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
