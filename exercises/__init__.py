"""Exercises that check themselves: README.md is the handout."""
