"""What other frameworks call their settings: where each is to be had here, or what to do where it is not."""

from __future__ import annotations

from fnmatch import fnmatchcase

_ANSWERS = {
    "ppo_epochs num_iterations inner_epochs update_epochs": (
        "how often a rollout is learnt from is optimizer.repeats, each in rollout.prompts / "
        "optimizer.mini_batch_prompts optimiser steps"
    ),
    "*epoch*": "train.rollouts sets the length; an epoch is task.train_problems / rollout.prompts rollouts",
    "steps max_steps total_steps total_training_steps train_steps": (
        "train.rollouts counts rollouts, each of rollout.prompts / optimizer.mini_batch_prompts optimiser steps"
    ),
    "lr actor_lr": "the learning rate is optimizer.learning_rate, which optimizer.schedule may change",
    "*warmup_ratio* *warmup_steps_ratio*": (
        "the warm-up is a number of optimiser steps, optimizer.warmup_steps, of optimizer.schedule"
    ),
    "*warmup* *scheduler* lr_decay*": (
        "transformers' schedules are optimizer.schedule, with optimizer.warmup_steps and optimizer.schedule_settings"
    ),
    "optim optimizer_type": "optimizer.name says which optimiser",
    "adam_beta* beta1 beta2": "AdamW's decay rates are optimizer.betas=[0.9, 0.999]",
    "grad_clip clip_grad* gradient_clip*": "gradients are scaled down to optimizer.max_grad_norm",
    "kl kl_* *_kl *_kl_* use_kl* ref_model* *reference_model*": (
        "KL to the model that the run began from is algorithm.kl_coefficient, with algorithm.kl_estimator and "
        "algorithm.kl_in (loss or reward); intervention.name=kl-cov holds some tokens to the policy that sampled them"
    ),
    "beta": "the KL term's weight is algorithm.kl_coefficient; AdamW's decay rates are optimizer.betas",
    "*filter_groups* *dynamic_sampl* max_num_gen_batches max_resample*": (
        "groups without signal are sampled again with rollout.resample, so many times at most"
    ),
    "*overlong* soft_max_length soft_cache_length": (
        "DAPO's soft punishment is algorithm.overlong_buffer, with algorithm.overlong_penalty"
    ),
    "system_prompt*": "the system prompt is task.system, with a task that reads a file",
    "chat_template* *template_kwargs": "arguments of the chat template are task.template.NAME=VALUE",
    "*val_file* *val_data* eval_file*": "a file of held-out problems is task.validation_file",
    "prompt_key question_key prompt_column": "the question's column is task.question",
    "answer_key label_key answer_column": "the answer's column is task.answer",
    "clip clip_eps* cliprange* clip_ratio* clip_range epsilon epsilon_low": (
        "the clip range is algorithm.clip_low and algorithm.clip_high; AdamW's epsilon is optimizer.eps"
    ),
    "epsilon_high": "the clip range's upper side is algorithm.clip_high",
    "ent_coef* entropy_coef* entropy_loss* entropy_bonus*": (
        "intervention.name=entropy-loss adds the term, and intervention.coefficient weighs it"
    ),
    "adv_estimator advantage_estimator": "algorithm.advantage says how advantages are estimated",
    "scale_rewards norm_adv_by_std*": (
        "algorithm.advantage=dr-grpo leaves out the division by the group's standard deviation"
    ),
    "loss_type loss_agg_mode loss_reduction": "algorithm.reduction says how token losses become one number",
    "critic* value_* vf_coef* gamma lam gae*": (
        "there is no critic and no discount: advantages come from the rewards of responses (algorithm.advantage)"
    ),
    "reward_func* reward_fn* reward_model* custom_reward* verifier": (
        "the task grades the responses (task.name); a function of your own is task.reward=module:function"
    ),
    "reward_weight": "the parts of an own reward are weighed by task.reward_weights.NAME=WEIGHT",
    "*lora* *peft* adapter* load_in_* *quantiz* *quantis* qlora*": (
        "there are no adapters and no quantised weights, all weights are trained; to save memory: "
        "engine.activations=recompute, or engine.name=deepspeed with engine.offload=optimizer (see `steer plan`); "
        "STEER with LoRA runs inside TRL (see docs, integrations)"
    ),
    "stop_* *_stop eos eos_token*": (
        "a response ends at the end tokens that the model's folder names, at a text of rollout.stop, "
        "or after rollout.max_new_tokens"
    ),
    "do_sample greedy": "greedy decoding, in evaluation, is evaluation.temperature=0",
    "min_p repetition_penalty presence_penalty frequency_penalty": (
        "there is none: responses are sampled at rollout.temperature and rollout.top_p"
    ),
    "gpu_memory_utili*": "the share of a GPU that vLLM takes is rollout.gpu_memory",
    "tp tp_size *tensor_parallel_size *tensor_model_parallel_size": (
        "rollout.tensor_parallel says how many ranks share one engine of vLLM's"
    ),
    "*vllm*": "vLLM generates with rollout.engine=vllm",
    "n n_samples num_samples num_generations group_size samples_per_prompt rollout_n num_return_sequences": (
        "responses a prompt are rollout.responses"
    ),
    "max_completion_length max_response_length max_length max_tokens response_length generate_max_len": (
        "the longest response is rollout.max_new_tokens"
    ),
    "max_prompt_length prompt_length prompt_max_len": (
        "the longest prompt is task.prompt_tokens, with a task that reads a file"
    ),
    "train_batch_size rollout_batch_size": "prompts a rollout are rollout.prompts",
    "ppo_mini_batch_size mini_batch_size": "prompts an optimiser step are optimizer.mini_batch_prompts",
    "gradient_accumulation* grad_accum*": (
        "a mini-batch of optimizer.mini_batch_prompts is split by itself; optimizer.micro_batch_sequences or "
        "optimizer.micro_batch_tokens sets the parts, which changes memory and not the step"
    ),
    "per_device_*_batch_size *micro_batch_size* batch_size": (
        "sequences a forward pass are optimizer.micro_batch_sequences; a step's size is optimizer.mini_batch_prompts"
    ),
    "bf16 bfloat16": "model.dtype=bfloat16, which trains with engine.name=deepspeed",
    "fp16 float16 half": "there is no float16; model.dtype=bfloat16 trains with engine.name=deepspeed",
    "precision mixed_precision torch_dtype": "the precision is model.dtype",
    "*deepspeed* ds_config zero zero3 fsdp* *fsdp": "ZeRO is engine.name=deepspeed, with engine.zero_stage",
    "*gradient_checkpointing* activation_checkpointing": "engine.activations=recompute does that",
    "gpus n_gpus* num_gpus* nnodes num_nodes world_size num_processes": (
        "torchrun or deepspeed starts the ranks (`torchrun --nproc-per-node 2 -m steer_core train ...`); "
        "`steer plan` has the options --gpus and --nodes"
    ),
    "logging_steps log_every log_interval log_freq logging_strategy": (
        "every rollout is logged, to metrics.jsonl and TensorBoard"
    ),
    "report_to logger *wandb* trackers": (
        "train.tracker=wandb adds Weights & Biases; metrics.jsonl and TensorBoard are always written"
    ),
    "save_steps save_every save_freq save_strategy save_interval": (
        "a checkpoint is saved every train.checkpoint_every rollouts"
    ),
    "save_total_limit max_ckpt_num": "the last train.checkpoints_kept stay, and the best train.best_kept",
    "eval_steps test_freq eval_every eval_strategy": "an evaluation is made every evaluation.every rollouts",
    "output_dir out_dir save_path default_local_dir": "the option --out names the folder",
    "resume resume_from* resume_mode": "`steer train --resume RUN` goes on from a run's last checkpoint",
    "model_name* pretrain*": "the model is model.path",
    "dataset* data_path train_files train_file": (
        "the problems are task.name: countdown makes its own, maths, code and own read task.file"
    ),
}
_OURS = {
    "warmup_steps", "kl_coefficient", "kl_estimator", "kl_in", "overlong_buffer", "overlong_penalty", "reward_weights",
}  # fmt: skip
"""Settings of ours that the words above would take for another framework's."""


def called_here(word: str) -> str | None:
    """Where a setting of another framework is to be had here, or what to do instead; None for a word that is no such.

    word: the setting's name without its sections.
    """
    word = word.lower().replace("-", "_")
    if word in _OURS:
        return None
    found = (answer for words, answer in _ANSWERS.items() if any(fnmatchcase(word, p) for p in words.split()))
    return next(found, None)
