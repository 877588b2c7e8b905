"""A simulation of many replicas that share a catalogue of many models, in SimPy."""
