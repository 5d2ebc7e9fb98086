"""Sampling: prompts in, responses out, by Hugging Face or vLLM."""
