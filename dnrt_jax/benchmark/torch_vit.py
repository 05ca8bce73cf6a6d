"""A ViT with RAA + ARR and its training step in plain PyTorch, for the benchmark `peer`.

Written as a PyTorch user would: fused attention, fused AdamW, ARR's running means in closed form
instead of a loop over samples. Parameters have the names of timm and of the authors, so the weights
can be made with `dnrt_jax.convert.to_torch`.
"""

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]


class RAA(nn.Module):
    """x * Phi(x + w.x + b) on [..., D]."""

    def __init__(self, dim):
        super().__init__()
        self.shift_proj_weight = nn.Parameter(torch.zeros(1, dim))
        self.shift_proj_bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        shift = functional.linear(x, self.shift_proj_weight, self.shift_proj_bias)
        return x * torch.special.ndtr(x + shift)


class Mlp(nn.Module):
    def __init__(self, dim, hidden_dim, act):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = RAA(hidden_dim) if act == "raa" else nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, d // self.num_heads)
        x = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.proj(x.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, dim, num_heads, act, drop_path_rate):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim, 4 * dim, act)
        self.drop_path_rate = drop_path_rate

    def drop_path(self, x):
        if not self.training or not self.drop_path_rate:
            return x
        keep = 1 - self.drop_path_rate
        return x * (x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep)

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, dim, patch_size):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Images [B, 3, S, S] -> logits [B, K] and the class tokens after each block, J of [B, D]."""

    def __init__(self, num_classes, act, image_size, patch_size, dim, depth, heads, drop_path=0.0):
        super().__init__()
        self.patch_embed = PatchEmbed(dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        tokens = 1 + (image_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, dim))
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, act, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images):
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        responses = []
        for block in self.blocks:
            x = block(x)
            responses.append(x[:, 0])
        return self.head(self.norm(x)[:, 0]), responses


class ARR:
    """The class means [J, K, D], updated in the order of the samples."""

    def __init__(self, layers, num_classes, dim, device, momentum=0.1):
        # The last row is a dummy: selecting rows with a mask would synchronize with the device.
        self.mean = torch.zeros(layers, num_classes + 1, dim, device=device)
        self.seen = torch.zeros(num_classes, dtype=torch.bool, device=device)
        self.momentum = momentum

    def loss(self, responses, labels):
        """Updates the means and returns the mean |response - updated class mean|."""
        x = torch.stack(responses).float()
        with torch.no_grad():
            target = self._update(x, labels)
        return (x - target).abs().mean()

    def _update(self, x, labels):
        m, order = self.momentum, torch.arange(len(labels), device=labels.device)
        upto = (labels[:, None] == labels) & (order[:, None] >= order)
        rank = upto.sum(1)  # from 1
        first = (rank == 1) & ~self.seen[labels]
        enter = torch.where(first, 1.0, m)
        weights = upto * enter * (1 - m) ** (rank[:, None] - rank).clamp(min=0)
        kept = (1 - m) ** rank * self.seen[labels]
        target = kept[:, None] * self.mean[:, labels] + weights @ x
        last = rank == (labels[:, None] == labels).sum(1)
        self.mean[:, torch.where(last, labels, len(self.seen))] = target
        self.seen[labels] = True
        return target


class Trainer:
    """AdamW (decay 0.05), gradients clipped to norm 1, cross-entropy + weight x ARR."""

    def __init__(self, model, arr_weight, num_classes, *, rate, dtype, device):
        self.model, self.device, self.dtype = model.to(device), torch.device(device), dtype
        self.call = self.model
        blocks, dim = len(model.blocks), model.cls_token.shape[-1]
        self.arr_weight, self.arr = arr_weight, ARR(blocks, num_classes, dim, device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=rate, weight_decay=0.05, fused=True
        )

    def compile(self):
        self.call = torch.compile(self.model)

    def forward(self, images):
        """u8[B, 3, S, S] -> logits, responses."""
        x = images.float().div(255).sub(0.5).div(0.5)
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            return self.call(x)

    def step(self, images, labels):
        """Runs one step and returns the loss before the update, as a tensor."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        logits, responses = self.forward(images)
        loss = functional.cross_entropy(logits.float(), labels)
        if self.arr_weight:
            loss = loss + self.arr_weight * self.arr.loss(responses, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def predict(self, images):
        self.model.eval()
        return self.forward(images)[0].float()
