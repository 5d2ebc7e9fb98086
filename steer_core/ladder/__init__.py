"""Entropy change through shared parameters: passes over a model, real optimiser steps, attribution."""
