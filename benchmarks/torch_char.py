"""The peer of benchmarks.shakespeare: a character-level GPT in PyTorch.

The well-known CPU setting: 4 layers, 4 heads, width 128, context 64, batch 12, 2,000
steps of AdamW (lr 1e-3 to 1e-4 by cosine, 100 of warm-up, betas 0.9 and 0.99, weight
decay 0.1 on matrices, clip 1), no dropout, no biases, tied embeddings: 0.80M
parameters.

  python -m benchmarks.torch_char --data=FOLDER

Prints {"seconds": s, "nats": n} once it has evaluated: seconds since the process began,
nats per character over the last tenth of the text, each position once.
"""

import argparse
import json
import math
import os
import pathlib

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS = 4, 4, 128, 64, 12, 2000


def process_age() -> float:
  """Seconds since this process was started, imports included (Linux)."""
  start = int(pathlib.Path('/proc/self/stat').read_text().rsplit(')', 1)[1].split()[19])
  uptime = float(pathlib.Path('/proc/uptime').read_text().split()[0])
  return uptime - start / os.sysconf('SC_CLK_TCK')


def main():
  import torch
  from torch import nn
  from torch.nn import functional

  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', required=True)
  parser.add_argument('--steps', type=int, default=STEPS)
  args = parser.parse_args()
  text = pathlib.Path(args.data, 'input.txt').read_text()
  letters = {c: i for i, c in enumerate(sorted(set(text)))}
  ids = torch.tensor([letters[c] for c in text])
  cut = int(0.9 * len(ids))
  train, val = ids[:cut], ids[cut:]
  torch.manual_seed(1337)

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
      self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
      self.out = nn.Linear(WIDTH, WIDTH, bias=False)
      self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
      self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
      b, t, _ = x.shape
      parts = self.qkv(self.norm1(x)).split(WIDTH, -1)
      q, k, v = (p.view(b, t, HEADS, -1).transpose(1, 2) for p in parts)
      y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).reshape(b, t, WIDTH))
      return x + self.down(functional.gelu(self.up(self.norm2(x))))

  class GPT(nn.Module):
    def __init__(self):
      super().__init__()
      self.tokens = nn.Embedding(len(letters), WIDTH)
      self.places = nn.Embedding(CONTEXT, WIDTH)
      self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
      self.norm = nn.LayerNorm(WIDTH, bias=False)
      for name, p in self.named_parameters():
        if p.ndim == 2:
          last = name.endswith(('out.weight', 'down.weight'))
          nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)

    def forward(self, x, y):
      h = self.tokens(x) + self.places.weight[: x.shape[1]]
      for block in self.blocks:
        h = block(h)
      logits = self.norm(h) @ self.tokens.weight.T
      return functional.cross_entropy(logits.flatten(0, 1), y.flatten())

  model = GPT()
  matrices = [p for p in model.parameters() if p.ndim == 2]
  others = [p for p in model.parameters() if p.ndim != 2]
  groups = [
    dict(params=matrices, weight_decay=0.1),
    dict(params=others, weight_decay=0.0),
  ]
  optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
  for step in range(args.steps):
    share = max(0.0, (step - 100) / (args.steps - 100))
    cosine = 1e-4 + 0.5 * (1 + math.cos(math.pi * share)) * (1e-3 - 1e-4)
    rate = 1e-3 * (step + 1) / 101 if step < 100 else cosine
    for group in optimizer.param_groups:
      group['lr'] = rate
    starts = torch.randint(len(train) - CONTEXT, (BATCH,))
    x = torch.stack([train[s : s + CONTEXT] for s in starts])
    y = torch.stack([train[s + 1 : s + 1 + CONTEXT] for s in starts])
    loss = model(x, y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

  total = 0.0
  with torch.no_grad():
    pieces = torch.cat([train[-1:], val])
    for i in range(0, len(val), 64 * CONTEXT):
      part = pieces[i : i + 64 * CONTEXT + 1]
      whole = (len(part) - 1) // CONTEXT * CONTEXT
      if whole:
        x, y = part[:whole].view(-1, CONTEXT), part[1 : whole + 1].view(-1, CONTEXT)
        total += float(model(x, y)) * whole
      if whole < len(part) - 1:
        x, y = part[None, whole:-1], part[None, whole + 1 :]
        total += float(model(x, y)) * y.numel()
  numbers = {'seconds': round(process_age(), 2), 'nats': round(total / len(val), 4)}
  print(json.dumps(numbers), flush=True)


if __name__ == '__main__':
  main()
