"""The mathematics, on tensors alone, in the order of one training step.

1. `token_stats`: what the logits say of each token: ln p of the one that was sampled, and the entropy.
   `linear_stats`: the same from hidden states and the output matrix, a tile of logits at a time.
2. `advantages`: how good each response was among those to the same prompt.
3. `entropy_change`: how far, by estimate, one token's update moves the entropy.
4. `weights`: STEER's answer: the larger that change, the smaller the token's weight, lambda.
5. `loss`: the clipped surrogate at each token, and the one number that a mini-batch makes of it.
6. `tabular`: a policy with free logits, where the estimates of step 3 can be checked against the change itself.

Signatures name the axes, and a name may end in the letters of its axes (`mask_BT`, `rewards_PG`):

    batch   B   sequences                     prompts  P   prompts of a rollout
    tokens  T   response tokens of each       group    G   responses to each
    vocab   V   the vocabulary                states   S   states of a tabular policy
    rows    N   any leading axes, flattened   *shape       any axes: (batch, tokens), (rows), ...

Axes of one name have one length within a call.
"""
