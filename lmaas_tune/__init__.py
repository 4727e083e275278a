"""Tune prompts of language models you cannot train."""
