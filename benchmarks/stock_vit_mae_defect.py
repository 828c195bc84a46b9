"""Why SSSD has modules of its own: the stock ViTMAE, built from a config, has no positions.

`python benchmarks/stock_vit_mae_defect.py` builds `transformers.ViTMAEForPreTraining` and
`SSSDForPreTraining` from the same config, looks at their position tables, and trains both on a toy
task (an 8 x 8 pattern whose patches differ by place alone). Takes about half a minute on one core.
"""

import torch
import transformers
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from sssd_hf import SSSDConfig, SSSDForPreTraining

SIZES = {
    "image_size": 32,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 128,
    "layer_norm_eps": 1e-6,
    "norm_pix_loss": False,
}


def toy_batch(generator: torch.Generator) -> torch.Tensor:
    """(64, 3, 32, 32): one fixed pattern, its contrast drawn for each image."""
    pattern = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return pattern * (0.5 + torch.rand(64, 1, 1, 1, generator=generator))


def train(model: torch.nn.Module, steps: int = 300) -> float:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        noise = torch.rand(64, 64, generator=generator)
        loss = model(toy_batch(generator), noise=noise).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def main() -> None:
    torch.manual_seed(0)
    stock = ViTMAEForPreTraining(ViTMAEConfig(**SIZES))
    own = SSSDForPreTraining(SSSDConfig(**SIZES, distillation_weight=0.0))
    tables = {
        "stock encoder": stock.vit.embeddings.position_embeddings,
        "stock decoder": stock.decoder.decoder_pos_embed,
        "SSSD encoder": own.encoder.embeddings.position_embeddings,
        "SSSD decoder": own.decoder.position_embeddings,
    }
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for name, table in tables.items():
        print(f"{name}: largest position entry {table.abs().max():.3f}")
    print(f"stock, built from the config: loss {train(stock):.4f} after 300 steps")
    print(f"SSSD, built from the same config: loss {train(own):.4f} after 300 steps")


if __name__ == "__main__":
    main()
