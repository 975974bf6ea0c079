"""Adapter Studio: train, keep and chat with QLoRA adapters on one shared base model."""

__version__ = "0.1.0"
