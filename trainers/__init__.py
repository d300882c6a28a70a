"""Trainers: lists of stages."""
