#!/usr/bin/env python3
"""Export a language model's training loss to a .pt2 archive that autosp trains.

From a Hugging Face folder (config.json and, unless --no-weights, its safetensors) or a bare config.json:

    tools/export.py path/to/model -o model.pt2                  # with its weights
    tools/export.py config.json -o model.pt2                    # random initial weights
    tools/export.py path/to/model -o model.pt2 --no-weights     # a few megabytes; `autosp train --weights path/to/model`

From Python, any nn.Module whose forward returns the loss:

    import torch
    from export import export_loss
    class Loss(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, input_ids, labels):
            logits = self.net(input_ids)
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
    ids = torch.zeros(2, 64, dtype=torch.long)
    export_loss(Loss(net), "net.pt2", {"input_ids": ids, "labels": ids}, labels="shifted", weights_prefix="net.")

What the archive holds and why:

* One graph, one output: the mean loss over the labels that are not -100. Batch and sequence stay symbolic (unless
  --static), so that one file serves every length.
* The model's code runs as it is, with its stock `sdpa` attention (`eager` where sdpa would drop a soft cap): nothing is
  replaced or registered. Key-value caches are off. Every dropout probability is set to 0, and the program says which,
  unless --keep-dropout.
* labels: "same" means that the graph shifts the labels by one position itself (Hugging Face's own loss) and that the data
  loader passes the input tokens again; "shifted" means that the loader passes the next tokens.
* --no-weights never materialises the parameters: they are fake tensors (shapes without storage). Buffers such as
  rotary frequencies are not in safetensors files, so they are computed and stored as usual.
* extra/autosp.json says how labels and weight names are meant; config.json and the tokenizer's files travel in extra/
  for the checkpoints that autosp writes.

Needs torch >= 2.9; for Hugging Face models also transformers 4.57 or newer.
"""
import argparse
import contextlib
import inspect
import json
import os
import re
import sys
import zipfile

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# Text only: torch.export.load reads extra files as UTF-8. A binary tokenizer.model is copied from `--weights` by autosp.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
                   "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja")


# Operators that PyTorch 2.13 traces but refuses to write, and what to use instead.
UNSAVED = {"flex_attention": "use scaled_dot_product_attention with a mask computed from positions (transformers: "
                             "--attn sdpa); autosp reads the mask from its arithmetic and never builds it",
           "triton_kernel": "a Triton kernel is called in the forward pass: use the operator's PyTorch version instead",
           "flat_apply": "a function mapped by torch.vmap over indices: write it with broadcasting"}


def say(text):
    print(text, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------- the module

class CausalLoss(torch.nn.Module):
    """A Hugging Face causal language model as a function from tokens to its loss."""

    def __init__(self, model, labels="same"):
        super().__init__()
        self.m = model
        self.label_form = labels

    def forward(self, input_ids, labels, position_ids=None):
        if self.label_form == "same":  # the model's own loss; it compares position i with label i + 1
            return self.m(input_ids=input_ids, position_ids=position_ids, labels=labels, use_cache=False).loss
        logits = self.m(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def zero_dropout(module):
    """Sets every dropout probability below `module` to 0; returns the names of those that were not."""
    changed = []
    for name, child in module.named_modules():
        # nn.Dropout keeps its probability in `p`; attention modules keep theirs in attributes named after dropout.
        for key, value in list(vars(child).items()):
            is_p = key == "p" and "Dropout" in type(child).__name__
            if isinstance(value, float) and value > 0 and (is_p or "drop" in key):
                setattr(child, key, 0.0)
                changed.append(f"{name}.{key}")
    return changed


def zero_dropout_config(config):
    """The same for a Hugging Face config (and its sub-configs), whose values some models read at every call."""
    changed = []
    for key, value in list(vars(config).items()):
        if isinstance(value, float) and value > 0 and "drop" in key:
            setattr(config, key, 0.0)
            changed.append(f"config.{key}")
        elif hasattr(value, "to_dict") and value is not config:
            changed += zero_dropout_config(value)
    return changed


# -------------------------------------------------------------------------------------------------- without the weights

@contextlib.contextmanager
def fake_parameters(mode):
    """Inside, parameters become fake tensors of `mode` the moment a module registers them; buffers stay real.

    torch.empty's pages are never touched before that moment, so building an 8B model takes next to no memory.
    A fake parameter that is registered again (tied weights) is kept, and so is the tie.
    """
    register = torch.nn.Module.register_parameter

    def patched(self, name, param):
        register(self, name, param)
        if param is not None and not isinstance(param, FakeTensor):
            with mode:
                fake = torch.empty(param.shape, dtype=param.dtype)
            self._parameters[name] = torch.nn.Parameter(fake, requires_grad=param.requires_grad)

    torch.nn.Module.register_parameter = patched
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


# ------------------------------------------------------------------------------------------------------------ the export

def trace(module, example_inputs, dynamic, max_seq):
    """torch.export with symbolic batch and sequence. The shortest sequence is what the module's own arithmetic allows: a loss
    over logits[:, :-1] is traced for 3 tokens or more, and torch.export says so. Of hidden values shifted by a token it says
    only that some length is not like the others (S - 1 != 1): then the next lengths are tried."""
    shortest = 2
    while True:
        dims = {0: torch.export.Dim("batch", min=1, max=1 << 20), 1: torch.export.Dim("seq", min=shortest, max=max_seq)}
        shapes = {name: dims if x.dim() == 2 else {0: dims[0]} for name, x in example_inputs.items()} if dynamic else None
        try:
            return torch.export.export(module, (), example_inputs, dynamic_shapes=shapes, strict=False)
        except torch._dynamo.exc.UserError as error:
            wanted = re.search(r"Dim\('seq', min=(\d+)", str(error))
            if wanted and int(wanted[1]) > shortest:
                shortest = int(wanted[1])
            elif "Not all values of seq" in str(error) and shortest < 16:
                shortest += 1
            else:
                raise


def export_loss(module, path, example_inputs, *, labels="shifted", weights_prefix="", dynamic=True, max_seq=None,
                fake_mode=None, extra_files=None, strip=False, keep_dropout=False):
    """Exports `module`, whose forward returns the mean loss, to the archive `path`; returns the ExportedProgram.

    example_inputs  name -> int64 tensor (batch, sequence): `input_ids`, `labels`, and if the forward takes them
                    `position_ids`, `document_ids`, and `prefix_lengths` (batch). Sizes of at least 2, because export takes a size of 1 for a constant.
    labels          "shifted" if the loader is to pass the next tokens, "same" if the module shifts by itself.
    weights_prefix  what to cut from parameter names to get the names of a safetensors checkpoint.
    dynamic         batch and sequence stay symbolic.
    max_seq         the longest sequence, for a module with a table of that many positions.
    fake_mode       the mode that owns the parameters if they are fake (see fake_parameters).
    keep_dropout    leave dropout as it is (autosp draws its own random numbers); by default it is set to 0.
    strip           drop source locations and compress the graph: a small file, but errors cannot name your lines.
    """
    for name in () if keep_dropout else zero_dropout(module):
        say(f"export: dropout {name} set to 0")
    # Copies: export takes two inputs that are one tensor for one input.
    example_inputs = {name: x.clone() for name, x in example_inputs.items()}
    if fake_mode is not None:
        example_inputs = {name: fake_mode.from_tensor(x) for name, x in example_inputs.items()}
    module.train()
    program = trace(module, example_inputs, dynamic, max_seq or 1 << 30)
    # A higher-order operator may write into its arguments and have no result, as a Triton kernel does: it stays.
    program.graph.eliminate_dead_code(
        lambda node: node.is_impure() or isinstance(node.target, torch._ops.HigherOrderOperator))
    program._example_inputs = None  # the archive would carry them as a pickle; nobody reads it
    if strip:
        strip_metadata(program.graph_module)
    tied = tied_names(module)
    extra = {"autosp.json": json.dumps({"labels": labels, "weights_prefix": weights_prefix, "tied": tied})}
    extra.update(extra_files or {})
    try:
        torch.export.save(program, path, extra_files=extra)
    except Exception as error:  # an operator that torch.export traces but cannot write
        for name, advice in UNSAVED.items():
            if name in str(error):
                raise SystemExit(f"export: torch.export.save cannot write {name}; {advice}") from error
        raise
    if strip:
        compress(path)
    return program


def tied_names(module):
    """{other name: first name} of parameters that a module holds under several names."""
    first, tied = {}, {}
    for name, param in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(param), name) != name:
            tied[name] = first[id(param)]
    return tied


def strip_metadata(graph_module):
    for sub in graph_module.modules():
        if isinstance(sub, torch.fx.GraphModule):
            for node in sub.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
                    node.meta.pop(key, None)


def compress(path):
    """Rewrites the archive with its JSON deflated. Weights stay uncompressed and 64-byte aligned, for mmap."""
    temporary = path + ".tmp"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(temporary, "w") as target:
        for old in source.infolist():
            data = source.read(old)
            entry = zipfile.ZipInfo(old.filename, date_time=(1980, 1, 1, 0, 0, 0))  # the same bytes on every run
            if old.filename.endswith(".json"):
                entry.compress_type = zipfile.ZIP_DEFLATED
            elif data:
                start = target.fp.tell() + 30 + len(old.filename.encode())
                pad = -(start + 4) % 64
                entry.extra = b"FB" + pad.to_bytes(2, "little") + bytes(pad)
            target.writestr(entry, data, compresslevel=9)
    os.replace(temporary, path)


# ---------------------------------------------------------------------------------------------------------- Hugging Face

@contextlib.contextmanager
def broadcast_masks():
    """Inside, transformers 4.57 evaluates its mask functions on broadcast indices, as transformers 5 does.

    4.57 maps them over scalar indices with torch.vmap under a context that leaves a `flat_apply` node in the graph, which
    torch.export.save cannot write ("Failed serializing node flat_apply"). The functions themselves are stock.
    """
    try:
        from transformers import masking_utils
    except ImportError:
        masking_utils = None
    if not hasattr(masking_utils, "_vmap_for_bhqkv"):
        yield
        return
    kept = masking_utils._vmap_for_bhqkv, masking_utils.TransformGetItemToIndex

    def broadcast(mask_function, bh_indices=True):
        if not bh_indices:
            return lambda b, h, q, k: mask_function(b, h, q[:, None], k[None, :])
        return lambda b, h, q, k: mask_function(b[:, None, None, None], h[None, :, None, None], q[None, None, :, None],
                                                k[None, None, None, :])

    masking_utils._vmap_for_bhqkv, masking_utils.TransformGetItemToIndex = broadcast, contextlib.nullcontext
    try:
        yield
    finally:
        masking_utils._vmap_for_bhqkv, masking_utils.TransformGetItemToIndex = kept


def build_model(source, *, weights=True, dtype=None, attn="sdpa", fake_mode=None, keep_dropout=False):
    """The causal language model of a folder, a config.json or a config object. Random weights where there are none."""
    from transformers import AutoConfig, AutoModelForCausalLM
    folder = source if isinstance(source, str) and os.path.isdir(source) else None
    config = AutoConfig.from_pretrained(source) if isinstance(source, str) else source
    for name in () if keep_dropout else zero_dropout_config(config):
        say(f"export: dropout {name} set to 0")
    config.use_cache = False
    if attn == "sdpa" and getattr(config, "attn_logit_softcapping", None) is not None:
        say("export: transformers' sdpa leaves out the soft cap on attention scores (Gemma 2): using its eager attention")
        attn = "eager"
    kwargs = {"attn_implementation": attn}
    if dtype is not None:
        kwargs["dtype"] = dtype
    if not weights:
        with fake_parameters(fake_mode):
            return AutoModelForCausalLM.from_config(config, **kwargs)
    has_weights = folder and any(f.endswith(".safetensors") for f in os.listdir(folder))
    if has_weights:
        return AutoModelForCausalLM.from_pretrained(folder, config=config, **kwargs)
    say("export: no safetensors beside the config: random initial weights")
    return AutoModelForCausalLM.from_config(config, **kwargs)


def export_module(module, path, config, *, folder=None, labels="same", batch=2, seq=32, position_ids=False,
                  **options):
    """Exports a CausalLoss with its config.json and the tokenizer's files of `folder`; options as for export_loss."""
    example = {"input_ids": torch.zeros(batch, seq, dtype=torch.long), "labels": torch.zeros(batch, seq, dtype=torch.long)}
    if position_ids:
        if "position_ids" not in inspect.signature(module.m.forward).parameters:
            raise SystemExit(f"export: {type(module.m).__name__} takes no position_ids; leave out --position-ids")
        example["position_ids"] = torch.arange(seq).repeat(batch, 1)
    extra = {"config.json": config.to_json_string()}
    if hasattr(module.m, "peft_config"):  # tools/adapter.py makes PEFT's folder of a checkpoint with it
        extra["adapter_config.json"] = json.dumps(module.m.peft_config["default"].to_dict(), default=list, indent=2)
    for name in TOKENIZER_FILES if folder else ():
        if os.path.exists(os.path.join(folder, name)):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                extra[name] = file.read()
    with broadcast_masks():
        return export_loss(module, path, example, labels=labels, weights_prefix="m.", extra_files=extra, **options)


def export_huggingface(source, path, *, weights=True, labels="same", dtype=None, attn="sdpa", adapter=None, **options):
    """Exports the model at `source` (see build_model) to `path`; options as for export_module and export_loss.

    Returns the loss module and its ExportedProgram."""
    fake_mode = None if weights else FakeTensorMode(allow_non_fake_inputs=True)
    model = build_model(source, weights=weights, dtype=dtype, attn=attn, fake_mode=fake_mode,
                        keep_dropout=options.get("keep_dropout", False))
    if adapter:  # a PEFT folder: its adapters are trained, the rest is frozen
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    module = CausalLoss(model, labels)
    folder = source if isinstance(source, str) and os.path.isdir(source) else None
    return module, export_module(module, path, model.config, folder=folder, labels=labels, fake_mode=fake_mode, **options)


def main():
    parser = argparse.ArgumentParser(description="Export a Hugging Face causal language model's loss to a .pt2 archive.")
    parser.add_argument("model", help="a model folder or a config.json")
    parser.add_argument("-o", "--output", required=True, help="the .pt2 to write")
    parser.add_argument("--adapter", metavar="FOLDER", help="a PEFT adapter: train it and nothing else (needs peft)")
    parser.add_argument("--no-weights", action="store_true", help="shapes only; takes little memory for any size")
    parser.add_argument("--labels", choices=("same", "shifted"), default="same",
                        help="same: the model's own loss, which shifts (default); shifted: the loader shifts")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the parameters (default: as the model's)")
    parser.add_argument("--attn", choices=("sdpa", "eager"), default="sdpa", help="transformers' attention code")
    parser.add_argument("--position-ids", action="store_true", help="make position_ids an input of the graph")
    parser.add_argument("--batch", type=int, default=2, help="of the example (default 2)")
    parser.add_argument("--seq", type=int, default=32, help="of the example (default 32)")
    parser.add_argument("--max-seq", type=int, help="longest sequence, where the model's code has a limit")
    parser.add_argument("--static", action="store_true", help="fix batch and sequence at the example's sizes")
    parser.add_argument("--keep-dropout", action="store_true", help="train with the model's own dropout (default: set to 0)")
    parser.add_argument("--strip", action="store_true", help="no source locations, compressed graph: a smaller file")
    args = parser.parse_args()
    if not args.static and min(args.batch, args.seq) < 2:
        parser.error("--batch and --seq must be at least 2 unless --static: export takes a size of 1 for a constant")
    if args.adapter and args.no_weights:
        parser.error("--adapter needs the weights of the base model: leave out --no-weights")
    if not os.path.exists(args.model):
        parser.error(f"{args.model}: no such folder or config.json (models are not downloaded)")
    _, program = export_huggingface(args.model, args.output, weights=not args.no_weights, labels=args.labels,
                                    dtype=DTYPES.get(args.dtype), attn=args.attn, batch=args.batch, seq=args.seq,
                                    adapter=args.adapter, position_ids=args.position_ids, dynamic=not args.static, max_seq=args.max_seq,
                                    strip=args.strip, keep_dropout=args.keep_dropout)
    count = sum(p.numel() for p in program.state_dict.values())
    say(f"export: wrote {args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB, {count / 1e6:.1f} M values, "
        f"{sum(1 for _ in program.graph.nodes)} nodes, labels {args.labels}" + (", no weights" if args.no_weights else ""))


if __name__ == "__main__":
    main()
