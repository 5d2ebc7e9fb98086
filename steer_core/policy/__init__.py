"""The language model that is trained: loading, scoring, its tokenizer."""
