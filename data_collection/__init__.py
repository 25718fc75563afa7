"""Trials, everyone's, become training data: foreign logs -> runs -> a corpus -> rows for trl."""
