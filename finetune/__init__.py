"""Corpus -> adapter: rendered rows and a recipe become a PEFT folder.

Knows a folder of rows and a recipe, and no other room.
"""
