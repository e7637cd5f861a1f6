"""Sentencepiece's BPE as pairs that merge, which is how other tools write it.

Sentencepiece joins the two neighbours whose union has the best score, the leftmost of
equals; others hold a list of pairs, the first of which is joined first. So a piece is a
pair for each way to cut it into two pieces, in the order of the pieces' scores.

Source: Kudo and Richardson 2018 (arXiv 1808.06226); Sennrich et al. 2016 (1508.07909).
"""

from collections.abc import Mapping


def merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
  """The pairs for pieces with their scores, the best first."""
  found = []
  for piece in sorted(scores, key=lambda piece: -scores[piece]):
    cuts = [
      n for n in range(1, len(piece)) if piece[:n] in scores and piece[n:] in scores
    ]
    found += [(piece[:n], piece[n:]) for n in _leftmost_first(piece, cuts)]
  return found


def _leftmost_first(piece: str, cuts: list[int]) -> list[int]:
  """The cuts in an order in which the left one of two overlapping pieces is joined.

  x y z overlap where x y and y z are both the piece. The first is cut at |x|, the
  second at |y|, and |x| + |y| is the length of the piece. Of a piece such as aaa either
  may be the left one; runs are joined from the left, so the longer part comes first.
  """
  order = sorted(cuts, reverse=True)
  for n in cuts:
    other = len(piece) - n
    overlaps = other in cuts and n < other and piece.startswith(piece[n:])
    if overlaps and not piece.startswith(piece[other:]):
      order.remove(n)
      order.insert(order.index(other), n)
  return order
