#!/usr/bin/env python3
"""Turns a checkpoint of a PEFT model, as `autosp train` writes it, into an adapter folder that PEFT loads.

    tools/adapter.py OUT/checkpoint-500 -o my-adapter
    # then, with the base model:  PeftModel.from_pretrained(base, "my-adapter")

A checkpoint holds all of a PeftModel's parameters under its own names, so that training resumes from it:
    base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight            frozen: as exported
    base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight        trained
An adapter folder holds the trained ones, without the adapter's name "default", and adapter_config.json, which the export
put into the archive. Needs safetensors only.
"""
import argparse
import json
import os
import shutil

from safetensors import safe_open
from safetensors.numpy import save_file

# What PEFT calls the parts of its adapters (of LoRA, IA3, prefix tuning; layers trained whole).
PARTS = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.", ".lora_magnitude_vector.", ".ia3_l.",
         ".modules_to_save.")


def convert(checkpoint, output, adapter="default"):
    """Writes the adapter of `checkpoint` to the folder `output`; returns the names that it holds."""
    config = os.path.join(checkpoint, "adapter_config.json")
    if not os.path.exists(config):
        raise ValueError(f"{checkpoint} has no adapter_config.json: was the model exported from a PeftModel by "
                         "tools/export.py?")
    index = os.path.join(checkpoint, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        with open(index) as file:
            files = sorted(set(json.load(file)["weight_map"].values()))
    tensors = {}
    for name in files:
        with safe_open(os.path.join(checkpoint, name), "np") as file:
            for key in file.keys():
                if any(part in key for part in PARTS):
                    name = key.replace(f".modules_to_save.{adapter}.", ".").replace(f".{adapter}.", ".")
                    tensors[name.removesuffix(f".{adapter}")] = file.get_tensor(key)
    if not tensors:
        raise ValueError(f"{checkpoint} holds no adapter's weights")
    os.makedirs(output, exist_ok=True)
    save_file(tensors, os.path.join(output, "adapter_model.safetensors"), metadata={"format": "pt"})
    shutil.copy(config, output)
    return list(tensors)


def main():
    parser = argparse.ArgumentParser(description="A checkpoint of a PEFT model as an adapter folder.")
    parser.add_argument("checkpoint")
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    try:
        names = convert(args.checkpoint, args.output)
    except ValueError as error:
        raise SystemExit(f"adapter: {error}")
    print(f"adapter: {len(names)} tensors in {args.output}")


if __name__ == "__main__":
    main()
