"""The whole loop on a real model: its own answers logged, learned from, promoted and measured."""
