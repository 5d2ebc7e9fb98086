"""STEER on the embedded task: the paper's algorithm on one screen, made of public functions.

    python examples/minimal.py                                            # STEER, 12 rollouts, under a minute
    python examples/minimal.py intervention.name=kl-cov train.seed=1      # any method, and most settings

Left out on purpose: several ranks, packing, recomputed activations, checks of finite values, logs, the probe,
evaluations, checkpoints, and what is off by default (schedules, KL, several passes over a rollout, dynamic sampling,
punishment of long responses). `steer_core.Trainer` adds these around the same calls and arrives at the same weights,
bit for bit (`tests/test_minimal.py`).

Axes: B responses, P prompts, G responses a prompt, T response tokens.
"""

import sys

import torch

from steer_core import (
    ADVANTAGES,
    ActiveIntervention,
    Config,
    Policy,
    SteerError,
    load_config,
    load_policy,
    make_engine,
    make_sampler,
    make_scoring,
    make_task,
    mini_batches,
    reduce_loss,
    rollout_problems,
    rollout_seed,
    sample_and_grade,
    score_rollout,
)


def train(config: Config) -> Policy:
    """The algorithm of STEER (arXiv 2510.10150), for any method of `steer_core.interventions`."""
    policy = load_policy(**vars(config.model))
    model, group = policy.model, config.rollout.responses
    sampler, engine, scoring = make_sampler(policy, config), make_engine(policy, config), make_scoring(policy, config)
    task, active = make_task(config.task, policy.tokenizer), ActiveIntervention(config, model, engine, scoring)
    problems = task.problems("train", config.task.train_problems)
    real = torch.promote_types(model.dtype, torch.float32)

    for n in range(1, config.train.rollouts + 1):
        # 1. Sample a group of responses to each prompt with the policy theta_old, and grade them.
        chosen, seed = rollout_problems(problems, n, config), rollout_seed(config, n)
        answers = sample_and_grade(sampler, chosen, group, config.rollout, seed, [task.rollout_grader(seed)])
        rewards_PG = torch.tensor(answers.rewards, dtype=real, device=model.device).view(-1, group)
        mask_BT = answers.rollout.response_mask_BT.bool()

        # 2. ln p and H at every token under theta_old.
        old = score_rollout(model, answers.rollout, config, scoring)

        # 3. Advantages from the rewards of each group; a method may change what a response is credited with.
        estimate, settings = ADVANTAGES[config.algorithm.advantage], config.algorithm.advantage_settings
        advantages_PG = estimate(rewards_PG, mask_BT.sum(-1).view(-1, group), **settings)
        advantages_PG = active.credit(advantages_PG, rewards_PG, old, mask_BT, [problem.id for problem in chosen], n)
        batches = list(mini_batches(answers.rollout, old, advantages_PG.flatten(), config, n))
        active.begin_rollout(batches, n)

        for batch in batches:
            # 4. lambda from Omega: before any gradient, where the rule must see the whole step.
            denominator = active.denominator(batch)
            planned, new_stats = [], []
            if active.needs_values(batch):
                with torch.no_grad():
                    values = [active.score(part) for part in batch]
                planned = active.loss_terms(values, batch, denominator)

            for i, part in enumerate(batch):
                # 5. lambda x clipped surrogate, and its gradient.
                stats = active.score(part)
                new_stats.append(stats.detach())
                terms = planned[i] if planned else active.loss_terms(new_stats[-1:], [part], denominator)[0]
                loss_BT = active.token_losses(stats, part, terms)
                loss = reduce_loss(loss_BT, part.mask_BT, config.algorithm.reduction, denominator)
                engine.backward(loss, last=part is batch[-1])

            # 6. The optimiser's step; a method with a memory sees the entropy that the policy had in it.
            engine.step()
            active.end_step(new_stats, batch)

        # 7. Sample from the new policy from now on.
        sampler.sync_weights(engine.weights())
        print(f"rollout {n}: reward {rewards_PG.mean():.3f}, entropy {old.entropy[mask_BT].mean():.3f} nats")
    return policy


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        train(load_config(None, ["intervention.name=steer", "train.rollouts=12", *sys.argv[1:]]))
    except SteerError as error:
        sys.exit(f"error: {error}")
