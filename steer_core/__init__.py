"""Entropy dynamics in RLVR: entropy change, STEER's weights, and the training loop they act in.

Importing the package imports nothing heavy. A trainer of another project takes what it needs from
`token_stats`, `entropy_change`, `weights`, `loss` and `advantages`; the loop is `trainer`.
"""
