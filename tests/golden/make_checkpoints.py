"""Tiny checkpoints and outputs of the `transformers` library. To renew: python -m tests.golden.make_checkpoints

Needs PyTorch and transformers (made with torch 2.13.0, transformers 5.23.0). Weights are random, biases and norms too.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Attention

from tests.tasks.models import GOLDEN, TINY

Arrays = dict[str, np.ndarray]


def vit(folder: Path, seed: int, **config: int) -> Arrays:
    """Save a ViT; return images [n h w c] and logits."""
    model = _random(transformers.ViTForImageClassification(transformers.ViTConfig(**config)), seed)
    images = np.random.default_rng(seed).normal(size=(2, config["image_size"], config["image_size"], 3))
    pixels = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)
    model.save_pretrained(folder)
    return {"images": images.astype(np.float32), "logits": _logits(model(pixel_values=pixels))}


def bert(folder: Path, seed: int, **config: int) -> Arrays:
    """Save a BERT; return tokens, types, mask [n t] and logits."""
    model = _random(transformers.BertForMaskedLM(transformers.BertConfig(**config)), seed)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config["vocab_size"], (3, 9))
    types, mask = np.arange(9)[None] >= np.array([[4], [9], [2]]), np.arange(9)[None] < np.array([[9], [6], [3]])
    read = {"input_ids": tokens, "token_type_ids": types, "attention_mask": mask}
    model.save_pretrained(folder)
    logits = _logits(model(**{name: torch.tensor(x.astype(np.int64)) for name, x in read.items()}))
    return {"tokens": tokens.astype(np.int32), "types": types.astype(np.int32), "mask": mask, "logits": logits}


def t5(folder: Path, seed: int, shard: str = "1GB", **config: int) -> Arrays:
    """Save a T5 v1.1; return texts, masks, a prompt, logits without and with it, and its buckets of distances."""
    config = transformers.T5Config(**config, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    config.tie_word_embeddings = False  # this library's T5Config sets it to True whatever it is given
    model = transformers.T5ForConditionalGeneration(config)
    model.set_input_embeddings(model.shared)  # the encoder's and the decoder's embeddings are one
    model, rng = _random(model, seed), np.random.default_rng(seed)
    tokens, targets = rng.integers(0, config.vocab_size, (3, 40)), rng.integers(0, config.vocab_size, (3, 6))
    mask, target_mask = (
        np.arange(40)[None] < np.array([[40], [7], [21]]),
        np.arange(6)[None] < np.array([[6], [4], [2]]),
    )
    prompt = rng.normal(size=(5, config.d_model)).astype(np.float32)
    model.save_pretrained(folder, max_shard_size=shard)
    decoder = {
        "decoder_input_ids": torch.tensor(targets),
        "decoder_attention_mask": torch.tensor(target_mask.astype(np.int64)),
    }
    longer = torch.tensor(np.pad(mask, ((0, 0), (5, 0)), constant_values=True).astype(np.int64))
    embedded = torch.cat([torch.tensor(prompt).expand(3, -1, -1), model.shared(torch.tensor(tokens))], dim=1)
    plain = model(input_ids=torch.tensor(tokens), attention_mask=longer[:, 5:], **decoder)
    prompted = model(inputs_embeds=embedded, attention_mask=longer, **decoder)
    return {
        "tokens": tokens.astype(np.int32),
        "targets": targets.astype(np.int32),
        "mask": mask,
        "target_mask": target_mask,
        "prompt": prompt,
        "logits": _logits(plain),
        "prompted": _logits(prompted),
        "both_ways": _buckets(bidirectional=True),
        "backwards": _buckets(bidirectional=False),
    }


def _buckets(bidirectional: bool) -> np.ndarray:
    """Of distances from −300 to 300."""
    distances = torch.arange(-300, 301)
    return T5Attention._relative_position_bucket(distances, bidirectional, 32, 128).numpy().astype(np.int8)


def _random(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = float("norm" in name.lower() and name.endswith("weight"))
            # T5 does not divide its scores by √d_kv: with larger queries, rounding errors would grow in every layer.
            std = 0.1 if name.endswith(".q.weight") else 0.3
            parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _logits(output) -> np.ndarray:
    return output.logits.detach().numpy()


if __name__ == "__main__":
    for kind, make in {"vit": vit, "bert": bert, "t5": t5}.items():
        with tempfile.TemporaryDirectory() as folder:
            arrays = make(Path(folder), seed=0, **TINY[kind])
            shutil.copyfile(Path(folder) / "model.safetensors", GOLDEN / f"{kind}.safetensors")
            np.savez_compressed(GOLDEN / f"{kind}.npz", **arrays)
