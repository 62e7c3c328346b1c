"""Encoder, prompts and heads in torch, and the files they come from.

May import `configuration`, `corpora` and `errors`; `backbones`, `shapes`, `strategies` and `adapters` need no
torch. Enter at `loading.load_backbone` and `network.Model`.
"""
