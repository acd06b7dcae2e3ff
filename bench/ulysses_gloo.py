#!/usr/bin/env python3
"""A contestant of bench/speed: sequence parallelism by hand in PyTorch, DeepSpeed-Ulysses' way, two processes over gloo.

    ulysses_gloo.py MODEL SEQ DTYPE eager|compile TOKENS THREADS

What a careful author would write with stock parts. Each rank holds half of the sequence. Before attention one all-to-all
carries q, k and v together (sequence -> heads), sdpa's causal flash kernel runs on half of the heads, a second all-to-all
brings the output back; their gradients are the opposite exchanges. Labels are shifted before they are cut, and the loss is the
sum over this rank's tokens divided by the count over all ranks. Gradients are reduced by DistributedDataParallel: in
buckets, overlapped with the backward, as views (no copies). The optimizer, clipping, autocast and protocol are
speed_torch.py's. `compile` compiles the module with functional collectives inside the graph.
"""
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F

import speed_models
from speed_torch import Trainer, answer, peak_bytes, rest

RANKS = 2


class Exchange(torch.autograd.Function):
    """Block i of dimension 0 goes to rank i. Its own transpose."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x)
        return out

    @staticmethod
    def backward(ctx, dy):
        return Exchange.apply(dy)


def exchange_compiled(x):
    return funcol.all_to_all_single_autograd(x.contiguous(), None, None, dist.group.WORLD)


exchange = Exchange.apply


def ulysses(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """transformers' attention interface: q, k, v (B, H, S/P, D) -> (B, S/P, H, D)."""
    b, h, s, d = query.shape
    groups = key.shape[1]
    if groups != h:
        key, value = (x.repeat_interleave(h // groups, 1) for x in (key, value))
    # (P, 3, B, H/P, S/P, D): the heads of rank i in block i; one message for all three
    packed = torch.stack((query, key, value)).view(3, b, RANKS, h // RANKS, s, d).permute(2, 0, 1, 3, 4, 5)
    got = exchange(packed)  # block j: the rows of rank j of this rank's heads
    q, k, v = got.permute(1, 2, 3, 0, 4, 5).reshape(3, b, h // RANKS, RANKS * s, d).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    out = out.view(b, h // RANKS, RANKS, s, d).permute(2, 0, 1, 3, 4)  # the rows of rank j in block j
    return exchange(out).permute(1, 3, 0, 2, 4).reshape(b, s, h, d), None


class ShardLoss(torch.nn.Module):
    """The sum of losses of this rank's rows over the count of all; DDP's mean over ranks is undone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, labels, positions, count):
        logits = self.model(input_ids=ids, position_ids=positions, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") * (RANKS / count)


def main():
    model, seq, dtype, mode, tokens, threads = sys.argv[1:7]
    seq = int(seq)
    rank = int(os.environ.get("RANK", 0))
    child = None
    if rank == 0:
        with tempfile.NamedTemporaryFile(delete=False) as store:
            os.environ["ULYSSES_STORE"] = store.name
        child = subprocess.Popen([sys.executable, *sys.argv], env=dict(os.environ, RANK="1"), stdin=subprocess.PIPE,
                                 stdout=subprocess.DEVNULL)
    torch.set_num_threads(int(threads))
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % os.cpu_count()]})  # one core each, as mpirun binds
    dist.init_process_group("gloo", init_method=f"file://{os.environ['ULYSSES_STORE']}", rank=rank, world_size=RANKS)
    with open(tokens, "rb") as file:
        data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint16).long().tolist()

    from transformers import AttentionInterface, AttentionMaskInterface
    AttentionInterface.register("ulysses", ulysses)
    AttentionMaskInterface.register("ulysses", lambda *args, **kwargs: None)
    module = ShardLoss(speed_models.build(model, seq).m)
    module.model.set_attn_implementation("ulysses")
    net = module
    if mode == "compile":
        global exchange
        exchange = exchange_compiled
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.optimize_ddp = False  # its graph splitter breaks the graph at buckets; reduce at hooks instead
        net = torch.compile(module, dynamic=False)
    ddp = torch.nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True, forward_sync_buffers=False,
                                                    static_graph=mode != "compile")
    rows = slice(rank * seq // RANKS, (rank + 1) * seq // RANKS)
    positions = torch.arange(seq)[rows].unsqueeze(0)

    def loss(ids, _):
        labels = F.pad(ids[:, 1:], (0, 1), value=-100)
        count = int((labels != -100).sum())
        return ddp(ids[:, rows], labels[:, rows], positions, count)

    trainer = Trainer(module.parameters(), loss, data, seq, dtype)

    def one():
        start = time.perf_counter()
        _, value = trainer.one()
        total = torch.tensor(value / RANKS)
        dist.all_reduce(total)
        return time.perf_counter() - start, total.item()

    start = time.perf_counter()
    first, value = one()
    if rank == 0:
        answer(ready=True, first_step=time.perf_counter() - start, loss=value)
    while True:  # rank 0 reads orders and passes them on
        line = sys.stdin.readline() if rank == 0 else ""
        order = [line]
        dist.broadcast_object_list(order)
        words = order[0].split()
        if not words:
            break
        if words[0] == "run":
            steps = [one() for _ in range(int(words[1]) + 1)]
            peak = torch.tensor([peak_bytes()])
            dist.all_reduce(peak)
            if rank == 0:
                answer(times=[t for t, _ in steps[1:]], losses=[v for _, v in steps], first=trainer.step - len(steps),
                       peak=int(peak))
        else:
            rest()
            if rank == 0:
                answer(rested=True)
    if child:
        child.wait()


if __name__ == "__main__":
    main()
