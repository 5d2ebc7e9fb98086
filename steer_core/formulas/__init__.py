"""The mathematics, on tensors alone: token statistics, advantages, entropy change, weights, loss."""
