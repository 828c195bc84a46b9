"""A training step of one package's MAE, timed; run by external.py in that package's environment.
Prints a line of JSON."""

import argparse
import json
import os
import statistics
import sys
import time
import types
from contextlib import nullcontext
from importlib.metadata import version

import torch
from torch import nn

PIXELS, PATCH, WIDTH, DEPTH, HEADS = 112, 16, 384, 12, 6
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 512, 8, 16
RATIO = 0.75


def patches_of(images: torch.Tensor) -> torch.Tensor:
    """(batch, 1, H, W) -> (batch, patches, pixels)"""
    return nn.functional.unfold(images, PATCH, stride=PATCH).mT


class Monai(nn.Module):
    def __init__(self):
        super().__init__()
        from monai.networks.nets import MaskedAutoEncoderViT

        self.mae = MaskedAutoEncoderViT(
            in_channels=1,
            img_size=(PIXELS, PIXELS),
            patch_size=(PATCH, PATCH),
            hidden_size=WIDTH,
            mlp_dim=4 * WIDTH,
            num_layers=DEPTH,
            num_heads=HEADS,
            masking_ratio=RATIO,
            decoder_hidden_size=DECODER_WIDTH,
            decoder_mlp_dim=4 * DECODER_WIDTH,
            decoder_num_layers=DECODER_DEPTH,
            decoder_num_heads=DECODER_HEADS,
            spatial_dims=2,
            qkv_bias=True,
        )

    def forward(self, images):
        predicted, mask = self.mae(images)
        error = ((predicted - patches_of(images)) ** 2).mean(-1)
        return (error * mask).sum() / mask.sum()


class Lightly(nn.Module):
    def __init__(self):
        super().__init__()
        # torchvision's compiled operators are those of another build of torch; none is used here
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("not needed")
        from lightly.models import utils
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer

        vit = VisionTransformer(
            img_size=PIXELS,
            patch_size=PATCH,
            in_chans=1,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
        )
        self.utils, self.encoder = utils, MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = MAEDecoderTIMM(
            in_chans=1,
            num_patches=vit.patch_embed.num_patches,
            patch_size=PATCH,
            embed_dim=WIDTH,
            decoder_embed_dim=DECODER_WIDTH,
            decoder_depth=DECODER_DEPTH,
            decoder_num_heads=DECODER_HEADS,
            mlp_ratio=4.0,
        )

    def forward(self, images):
        utils, batch = self.utils, images.shape[0]
        kept, hidden = utils.random_token_mask(
            size=(batch, self.encoder.sequence_length), mask_ratio=RATIO, device=images.device
        )
        encoded = self.decoder.embed(self.encoder.encode(images=images, idx_keep=kept))
        tokens = utils.repeat_token(
            self.decoder.mask_token, (batch, self.encoder.sequence_length)
        ).to(encoded.dtype)
        decoded = self.decoder.decode(utils.set_at_index(tokens, kept, encoded))
        predicted = self.decoder.predict(utils.get_at_index(decoded, hidden))
        target = utils.get_at_index(patches_of(images), hidden - 1)  # CLS is token 0
        return nn.functional.mse_loss(predicted, target)


def own(precision: str, device: str) -> nn.Module:
    from models import own_model

    from sssd_hf import SSSDConfig

    fields = {"image_size": PIXELS, "patch_size": PATCH, "num_channels": 1, "norm_pix_loss": False}
    return own_model(SSSDConfig.from_size("small", "mae", "mae", **fields), device, precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("own", "monai", "lightly"), required=True)
    parser.add_argument("--precision", default="no")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    torch.manual_seed(0)
    device, is_own = arguments.device, arguments.model == "own"
    if is_own:
        model = own(arguments.precision, device)
    else:
        model = {"monai": Monai, "lightly": Lightly}[arguments.model]()
    model = model.to(device).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True if is_own else None)
    images = torch.randn(arguments.batch, 1, PIXELS, PIXELS, device=device)
    bf16 = arguments.precision == "bf16"
    walls, processors = [], []
    for step in range(1 + arguments.steps):
        wall, processor = time.perf_counter(), time.process_time()
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            output = model(images)
        loss = output.loss if is_own else output
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        if step:
            walls.append(time.perf_counter() - wall)
            processors.append(time.process_time() - processor)
    told = {
        "wall": statistics.median(walls),
        "processor": statistics.median(processors),
        "parameters": sum(p.numel() for p in weights),
        "version": version("sssd_hf" if is_own else arguments.model),
        "torch": torch.__version__,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
